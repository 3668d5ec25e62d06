"""Every policy that is exported keeps one contract, on a batch as a trainer gives it: classes of which one is missing,
a teacher, hidden states.
"""

import io
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import exported
from elsewhere import PLACE, Computer

from amal_hf import (
    AboveAverage,
    AnnealedWeights,
    BayesMixture,
    ClassProportional,
    CommentaryNetwork,
    Convex,
    ConvexOrNone,
    Delayed,
    ExampleTable,
    FixedWeights,
    Frozen,
    GatedConvex,
    HardMining,
    LossNetwork,
    MeanOne,
    MetaWeightNet,
    PerLossNetwork,
    Policy,
    RandomRectified,
    RandomWeights,
    RectifiedSlopes,
    SharedWeights,
    SmallLoss,
    SourceGain,
    StateNetwork,
    TeacherBelief,
    TwiceSigmoid,
    convex,
)
from amal_hf.clean_probe import CleanRows
from amal_hf.policies.bounds import Normalisation
from amal_hf.policies.policy import Independent, Observation, Signals, Sizes, as_mixture, weights_of
from amal_hf.shapes import WITHOUT_SOURCE
from amal_hf.task import Task


B, C, WIDTH = 8, 3, 4
SIZES = Sizes(2, (1,), B, C, states=(WIDTH, WIDTH), names=("labels", "teacher"))
EQUAL = torch.tensor([0.5, 0.5])
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, -100])
BATCH = {"labels": LABELS, WITHOUT_SOURCE: torch.linspace(0, 3, B)}
PRESENT = torch.stack([LABELS >= 0, torch.ones(B, dtype=torch.bool)], 1)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TEACHER = drawn(B, C, seed=1)


def frozen():
    """On what another of its kind has learned."""
    learned = StateNetwork()
    learned.reset(SIZES, EQUAL)
    return Frozen(
        StateNetwork(), {name: value for name, value in learned.state_dict().items() if name != "_extra_state"}
    )


def beside_an_independent_teacher(kind):
    """A policy whose teacher has not seen the labels."""

    class Beside(kind):
        def reset(self, sizes, initial):
            super().reset(sizes._replace(independent=Independent(0, 1)), initial)

    return Beside


POLICIES: dict[str, Callable[[], Policy]] = {
    "AnnealedWeights": lambda: AnnealedWeights([1.0, 0.0]),
    "BayesMixture": beside_an_independent_teacher(BayesMixture),
    "ClassProportional": lambda: ClassProportional([3, 2, 2]),
    "CommentaryNetwork": lambda: CommentaryNetwork(drawn(B, 5), C),
    "Delayed": lambda: Delayed(ExampleTable(), 0.5),
    "ExampleTable": ExampleTable,
    "FixedWeights": FixedWeights,
    "Frozen": frozen,
    "HardMining": HardMining,
    "LossNetwork": LossNetwork,
    "MetaWeightNet": MetaWeightNet,
    "PerLossNetwork": PerLossNetwork,
    "RandomRectified": RandomRectified,
    "RandomWeights": RandomWeights,
    "RectifiedSlopes": RectifiedSlopes,
    "SharedWeights": SharedWeights,
    "SmallLoss": SmallLoss,
    "SourceGain": SourceGain,
    "StateNetwork": StateNetwork,
    "TeacherBelief": TeacherBelief,
}
NORMALISATIONS = (AboveAverage, Convex, ConvexOrNone, GatedConvex, MeanOne, TwiceSigmoid)
VARIANTS: dict[str, Callable[[], Policy]] = {
    "a network later": lambda: Delayed(LossNetwork(), 0.5),
    "a table later, by which rows are drawn": lambda: Delayed(ExampleTable(), 0.5, draw=True),
    "a loss network, independent teacher": beside_an_independent_teacher(LossNetwork),
    "a convex table": lambda: ExampleTable(bound=convex),
    "a state network with a memory": lambda: StateNetwork(likelihoods=True, memory=True),
    "a state network that reads gains": lambda: StateNetwork(source_gain=True),
    "a network that reads gains, later": lambda: Delayed(StateNetwork(source_gain=True), 0.5),
    **{
        f"a loss network, {kind.__name__}": lambda kind=kind: LossNetwork(normalisation=kind())
        for kind in NORMALISATIONS
    },
}
every_policy = pytest.mark.parametrize(
    "make", [pytest.param(make, id=name) for name, make in {**POLICIES, **VARIANTS}.items()]
)


def test_none_is_left_out():
    """A new policy, or a new way of keeping weights in range, has to be put into the tables above."""
    assert exported(Policy) == POLICIES.keys()
    assert exported(Normalisation) == {kind.__name__ for kind in NORMALISATIONS}


def begun(make):
    return started(make())


def started(policy):
    """As before the first step of a run; one that does not learn is told of labels then."""
    policy.reset(SIZES, EQUAL)
    if policy.rows_wanted and not policy.learns:
        told(policy)
    return policy


def told(policy, place="cpu"):
    policy.note_labels(TEACHER.to(place), LABELS.to(place))
    assert not policy.rows_wanted


def ask(logits):
    """As both losses would: the label's, and none of the teacher."""
    return torch.stack([-logits.log_softmax(-1)[:, 0], logits.new_zeros(B)], 1)


def seen(policy, progress=0.6, place="cpu", dtype=torch.float32):
    """What a policy makes of the batch, where the student is of this type."""
    states = tuple(drawn(B, WIDTH, seed=seed).to(place, dtype) for seed in (2, 3))
    losses = (drawn(B, 2, seed=4).abs() * PRESENT).to(place, dtype)
    logits = drawn(B, C, seed=5).to(place, dtype).requires_grad_()
    batch = {name: value.to(place) for name, value in BATCH.items()}
    signals = Signals(losses, logits, (TEACHER.to(place),), batch, Task(), states, ask)
    return Observation(torch.arange(B, device=place), policy.observe(signals), progress, PRESENT.to(place))


SLOPES = drawn(B, 2, seed=6) * PRESENT


def taught(policy, steps=3, place="cpu", dtype=torch.float32):
    """Shown clean rows before every update, as by a trainer."""
    for step in range(steps):
        if policy.reads_clean_states:
            rows = torch.arange(6), drawn(6, WIDTH, seed=step).to(dtype), torch.arange(6) % C
            policy.note_clean(CleanRows(*(part.to(place) for part in rows)))
        if policy.rows_wanted:
            told(policy, place)
        policy.update(seen(policy, 0.3, place, dtype), SLOPES.to(place, dtype))
    return policy


def weights_at(policy, progress):
    return weights_of(policy, seen(policy, progress))


@every_policy
def test_weights_are_numbers_of_at_least_zero(make):
    """One for each example and loss, before and after it has learned, and none for a loss that is not there; features
    are as many at all times, finite, and keep no graph to the student.
    """
    policy = begun(make)
    shape = (B, seen(policy).features.shape[1])
    for step in range(3):
        features = seen(policy).features
        assert features.shape == shape and features.isfinite().all() and not features.requires_grad
        for progress in (0.0, 0.6, 1.0):
            weights = weights_at(policy, progress)
            assert weights.shape == (B, 2) and weights.isfinite().all() and (weights >= 0).all()
            assert weights[7, 0] == 0 and weights.sum() > 0
        taught(policy, 1 + step)


@every_policy
def test_it_works_where_float64_is_the_default(make, monkeypatch):
    """Of torch: then its layers have that, and so have the run's equal shares and what a policy is shown."""
    given = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        monkeypatch.setattr(f"{__name__}.TEACHER", TEACHER.double())
        monkeypatch.setattr(f"{__name__}.SLOPES", SLOPES.double())
        monkeypatch.setattr(f"{__name__}.EQUAL", as_mixture(None, 2))
        policy = begun(make)
        if policy.learns:
            taught(policy)
        assert weights_at(policy, 0.6).isfinite().all()
    finally:
        torch.set_default_dtype(given)


@every_policy
def test_only_what_says_so_has_rows_drawn(make):
    """A rate for each row, none negative, and weights that are then no other sum than the mixture's."""
    policy = taught(begun(make))
    for progress in (0.0, 0.6):
        rates = policy.rates(progress)
        assert (rates is not None) == (policy.draws and progress > 0)
        if rates is not None:
            assert rates.shape == (B,) and rates.isfinite().all() and (rates >= 0).all()
            sums = weights_at(policy, progress).sum(1)
            assert (sums[rates > 0] - 1).abs().max() < 1e-6


@every_policy
def test_only_what_says_so_learns(make):
    """One that does not is left alone by slopes, and needs no meta set; one that does has other weights after them."""
    policy = begun(make)
    before = weights_at(policy, 0.6)
    after = weights_at(taught(policy), 0.6)
    assert before.equal(after) != policy.learns


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@every_policy
def test_a_resumed_policy_goes_on_as_if_it_had_not_stopped(make, dtype):
    """The state through a file gives the same weights to the last bit, and the same further updates: an optimizer's
    memory is part of it. Also beside a student in fp64.
    """
    first, second = taught(begun(make), dtype=dtype), begun(make)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    if not first.holds_for_one_step:
        assert weights_at(second, 0.6).equal(weights_at(first, 0.6))
    assert weights_at(taught(second, 2, dtype=dtype), 0.6).equal(weights_at(taught(first, 2, dtype=dtype), 0.6))


@every_policy
def test_a_reset_forgets_everything(make):
    """A second `train()` or the next trial of a search starts where the first did."""
    policy, fresh = begun(make), begun(make)
    started(taught(policy))
    assert weights_at(policy, 0.6).equal(weights_at(fresh, 0.6))
    assert weights_at(taught(policy), 0.6).equal(weights_at(taught(fresh), 0.6))


@every_policy
def test_an_update_that_did_not_count_is_taken_back(make):
    """A step that the gradient scaler skips leaves nothing behind."""
    policy = taught(begun(make), 2)
    before, restore = weights_at(policy, 0.6), policy.restorer(torch.arange(B))
    taught(policy, 1)
    restore()
    if not policy.holds_for_one_step:
        assert weights_at(policy, 0.6).equal(before)


@every_policy
def test_on_a_gpu_it_is_the_same_and_waited_for_by_nobody(make):
    """Also on one without float64. What a policy has is there from its first weights on; what is drawn by example is
    drawn on the CPU.
    """
    here, policy = weights_at(taught(begun(make)), 0.6), begun(make)
    with Computer() as computer:
        taught(policy, place=PLACE)
        assert torch.equal(weights_of(policy, seen(policy, place=PLACE)).cpu(), here)
        computer.waits.clear()
        weights_of(policy, seen(policy, place=PLACE))
        assert computer.waits.keys() <= {"", "fixed_weights.weights", "heuristics.importance"}


@every_policy
def test_no_global_random_number_is_drawn(make, monkeypatch):
    """Dropout masks and shuffling must be those of the same run without learned weights, or the two could not be
    compared; on a GPU all seeds of a run would else draw the same masks.
    """
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    weights_at(taught(begun(make)), 0.6)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert before[0].equal(after[0]) and before[1:] == after[1:] and not seeds


@every_policy
def test_it_says_what_it_is(make):
    """In a line, without the address of anything; figures, of the few that have any, are finite numbers."""
    policy = taught(begun(make))
    said = policy.describe()
    assert said and "\n" not in said and "0x" not in said
    assert all(np.isfinite(value) for value in policy.figures().values())
