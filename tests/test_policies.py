"""Policies start at the mixture they are given, learn towards positive slopes, and stay in their range.

What all of them have in common is in test_policy_contract.py.
"""

import copy
import io
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from amal_hf import (
    Convex,
    ConvexOrNone,
    Delayed,
    ExampleTable,
    FixedWeights,
    GatedConvex,
    LossNetwork,
    MeanOne,
    MetaWeightNet,
    NetworkPolicy,
    PerLossNetwork,
    Policy,
    RandomWeights,
    SmallLoss,
    StateNetwork,
    clamp,
    convex,
)
from amal_hf.policies.heuristics import quantile
from amal_hf.policies.policy import Observation, Signals, Sizes, as_mixture
from amal_hf.policies.shared_weights import SharedWeights
from amal_hf.task import Task


EXAMPLES, TEACHERS = 8, (0,)
FEATURES = 6 + 2 * len(TEACHERS)
"""What a loss network sees of an example beyond its losses, with what it only takes note of."""


class Entry(NamedTuple):
    """A policy and the weights it starts from, given a mixture that sums to one (`None`: not from the mixture)."""

    make: Callable[[], Policy]
    start: Callable[[Tensor], Tensor] | None


class OwnNetwork(NetworkPolicy):
    """A user's own, on all features as they are."""

    def __init__(self):
        super().__init__(hidden=16, learning_rate=1e-2, normalisation=None, seed=0)

    def width(self, sizes):
        return sizes.losses + FEATURES + 1


def network(normalisation):
    return lambda: LossNetwork(normalisation=copy.deepcopy(normalisation))


SAME, DIMMED = (lambda mixture: mixture), (lambda mixture: 0.9 * mixture)
FREE = {"clamped table": Entry(ExampleTable, SAME), "mean-one network": Entry(network(MeanOne()), SAME)}
OWN = {"one's own": Entry(OwnNetwork, SAME)}
CONVEX = {
    "convex table": Entry(lambda: ExampleTable(bound=convex), SAME),
    "convex network": Entry(network(Convex()), SAME),
}
GATED = {
    "gated network": Entry(network(GatedConvex()), SAME),
    "convex-or-none network": Entry(network(ConvexOrNone()), DIMMED),
}
LEARNING = {**FREE, **CONVEX, **GATED, **OWN}
ALIKE = {"fixed": Entry(FixedWeights, SAME), "shared": Entry(SharedWeights, SAME)}
POLICIES = {**LEARNING, **ALIKE, "random": Entry(RandomWeights, None)}
TABLES = ["clamped table", "convex table"]
NETWORKS = [name for name in LEARNING if "network" in name]
every_policy = pytest.mark.parametrize("name", POLICIES)
every_learning = pytest.mark.parametrize("name", LEARNING)


def begun(name, losses=2, mixture=None, examples: int | None = EXAMPLES):
    policy = POLICIES[name].make()
    policy.reset(Sizes(losses, TEACHERS, examples), as_mixture(mixture, losses))
    return policy


def seen(losses=2, ids=range(EXAMPLES)):
    """Examples that differ in every feature; the last that is read tells the halves apart, and none has a class."""
    features = torch.randn(EXAMPLES, losses + FEATURES, generator=torch.Generator().manual_seed(0))
    features[:, -3], features[:, -1] = torch.tensor([1.0] * 4 + [-1.0] * 4), -1
    return Observation(torch.tensor(list(ids)), features[[i % EXAMPLES for i in ids]], 0.5)


HELPS_FIRST_HALF = torch.zeros(EXAMPLES, 2)
"""The first loss helps the first four examples and hurts the others; the second loss does neither."""
HELPS_FIRST_HALF[:4, 0], HELPS_FIRST_HALF[4:, 0] = 2.0, -2.0


def taught(policy, steps=40):
    for _ in range(steps):
        policy.update(seen(), HELPS_FIRST_HALF)
    return policy


@every_policy
@pytest.mark.parametrize("mixture", [[1.0], [0.3, 0.7], [0.2, 0.5, 0.3]])
def test_it_starts_at_the_initial_mixture(name, mixture):
    """Before anything is learned a run is that of the fixed mixture, whatever the features say; with one loss too.
    "None of them" starts with a tenth.
    """
    weights = begun(name, len(mixture), mixture).weights(seen(len(mixture)))
    assert weights.shape == (EXAMPLES, len(mixture))
    if POLICIES[name].start is None:
        torch.testing.assert_close(weights.sum(1), torch.ones(EXAMPLES))
    else:
        start = POLICIES[name].start(torch.tensor(mixture))
        torch.testing.assert_close(weights, start.expand(EXAMPLES, -1), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("make", "columns"),
    [
        (lambda: LossNetwork(normalisation=Convex()), 8),
        (lambda: LossNetwork(normalisation=MeanOne()), 8),
        (lambda: PerLossNetwork(normalisation=Convex()), 3),
    ],
)
def test_networks_compare_slopes_by_what_a_loss_can_pull(make, columns):
    """A teacher at temperature 2 has twice the slope of a label that says the same: neither is to be preferred."""
    policy, observation = make(), seen()._replace(features=torch.ones(EXAMPLES, columns))
    policy.reset(Sizes(2, (), EXAMPLES, pulls=(1.0, 2.0)), torch.tensor([0.5, 0.5]))
    for slopes, same in (([1.0, 2.0], True), ([1.0, 1.0], False)):
        for _ in range(5):
            policy.update(observation, torch.tensor([slopes]).expand(EXAMPLES, 2))
        first, second = policy.weights(observation).detach().unbind(1)
        assert torch.allclose(first, second, atol=1e-5) == same


@pytest.mark.parametrize(("make", "columns"), [(lambda: LossNetwork(normalisation=MeanOne()), 9), (PerLossNetwork, 4)])
def test_every_example_has_a_progress_of_its_own(make, columns):
    """The examples of a trajectory are of several steps: each is weighed as at its time, whatever K and B are."""
    policy = make()
    policy.reset(Sizes(3, (), EXAMPLES), torch.full((3,), 1 / 3))
    features = torch.rand(EXAMPLES, columns, generator=torch.Generator().manual_seed(0))
    times, slopes = torch.linspace(0, 1, EXAMPLES), torch.tensor([[1.0, -1.0, 0.5]]).expand(EXAMPLES, 3)
    for _ in range(30):
        policy.update(Observation(torch.arange(EXAMPLES), features, times), slopes * (times[:, None] - 0.5))
    together = policy.weights(Observation(torch.arange(EXAMPLES), features, times)).detach()
    apart = [
        policy.weights(Observation(torch.tensor([n]), features[n : n + 1], float(times[n]))).detach()
        for n in range(EXAMPLES)
    ]
    torch.testing.assert_close(together, torch.cat(apart))


def test_weights_that_need_not_add_up_follow_slopes_as_they_are():
    """Meta-Weight-Net learns the same whatever the losses can pull, as its paper has it."""
    ended = []
    for pulls in ((), (1.0, 3.0)):
        policy = MetaWeightNet(learning_rate=0.1)
        policy.reset(Sizes(2, (), EXAMPLES, pulls=pulls), torch.tensor([0.5, 0.5]))
        observation = seen()._replace(features=seen().features[:, :2])
        for _ in range(5):
            policy.update(observation, HELPS_FIRST_HALF + 0.5)
        ended.append(policy.weights(observation).detach())
    torch.testing.assert_close(*ended, rtol=0, atol=0)


@every_policy
@pytest.mark.parametrize("losses", [1, 2, 3])
def test_weights_stay_in_their_range(name, losses):
    """Never negative, never NaN, convex ones sum to one, a table's at most 2, however hard the slopes pull: a negative
    weight would train away from a loss.
    """
    policy, observation = begun(name, losses), seen(losses)
    for step in range(10):
        slopes = 50 * torch.randn(EXAMPLES, losses, generator=torch.Generator().manual_seed(step))
        policy.update(observation, slopes)
    weights = policy.weights(observation)
    assert weights.shape == (EXAMPLES, losses)
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    if name in CONVEX:
        torch.testing.assert_close(weights.sum(1), torch.ones(EXAMPLES))
    if name == "clamped table":
        assert (weights <= 2).all()


@every_learning
def test_a_loss_with_positive_slope_gains_weight(name):
    """The whole point: where following a loss lowers the meta loss its weight grows, where it raises the meta loss it
    shrinks.
    """
    policy = begun(name, mixture=[0.5, 0.5])
    before = policy.weights(seen())[:, 0].detach()
    after = taught(policy).weights(seen())[:, 0].detach()
    assert (after[:4] > before[:4] + 0.05).all()
    assert (after[4:] < before[4:] - 0.05).all()


@pytest.mark.parametrize("name", ["clamped table", pytest.param("mean-one network")])
def test_a_single_loss_can_be_weighed_between_examples(name):
    """With one loss there is no mixture to choose, but bad examples can still be trained on less."""
    policy, observation = begun(name, 1), seen(1)
    for _ in range(80):
        policy.update(observation, HELPS_FIRST_HALF[:, :1])
    weights = policy.weights(observation).detach()
    assert weights[:4].min() > weights[4:].max() + 0.2


# ---- tables ----


@pytest.mark.parametrize("name", TABLES)
def test_a_resumed_table_of_a_stream_goes_on_as_if_it_had_not_stopped(name):
    """Its rows go by the ids that have come so far."""
    first, second = taught(begun(name, examples=None)), begun(name, examples=None)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.weights(seen()).equal(first.weights(seen()))
    assert taught(second, 3).weights(seen()).equal(taught(first, 3).weights(seen()))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("examples", [EXAMPLES, None])
def test_a_table_moves_only_the_rows_of_the_batch_and_only_along_slopes(name, examples):
    """Examples not in the step, and examples left out for bad slopes (slope 0), keep what they have learned."""
    policy = taught(begun(name, examples=examples), 3)
    before = policy.weights(seen())
    slopes = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    policy.update(seen(ids=[6, 2]), slopes)
    after = policy.weights(seen())
    kept = [0, 1, 3, 4, 5, 6, 7]
    torch.testing.assert_close(after[kept], before[kept])
    assert (after[2] != before[2]).all()


def test_a_tables_own_initial_weights_take_the_place_of_the_runs():
    """AMAL starts labels at 0.1 and teacher at 0.9 whatever the run's mixture."""
    policy = ExampleTable(initial=[0.1, 0.9])
    policy.reset(Sizes(2, TEACHERS, EXAMPLES), as_mixture(None, 2))
    torch.testing.assert_close(policy.weights(seen()), torch.tensor([[0.1, 0.9]]).expand(EXAMPLES, -1))


@pytest.mark.parametrize(("bound", "initial"), [(clamp, [3.0, 0.5]), (convex, [1.0, 1.0])])
def test_a_table_starts_within_its_bound(bound, initial):
    """A slope of 0 promises to leave an example alone; from a start outside the bound it cannot."""
    policy = ExampleTable(bound=bound, initial=initial)
    policy.reset(Sizes(2, TEACHERS, EXAMPLES), as_mixture(None, 2))
    before = policy.weights(seen())
    policy.update(seen(), torch.zeros(EXAMPLES, 2))
    torch.testing.assert_close(policy.weights(seen()), before)


# ---- the network ----

TASKS = {
    "classes": (Task(), (4, 3), torch.tensor([0, 2, -100, 1])),
    "several labels": (
        Task("multi_label_classification"),
        (4, 3),
        torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [-100, -100, -100]]),
    ),
    "regression": (Task("regression"), (4, 1), torch.zeros(4)),
    "tokens": (Task(), (4, 5, 3), torch.tensor([[0, 1, 2, -100, -100]] * 3 + [[-100] * 5])),
    "no labels": (Task("single_label_classification"), (4, 3), None),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_reads_every_kind_of_task(name, task):
    """As many finite features as the network was built for, without a graph, at logits of ±10,000 and losses of any
    size too.
    """
    read_as, shape, labels = TASKS[task]
    logits = 1e4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    batch = {"attention_mask": torch.ones(4, 5)} | ({} if labels is None else {"labels": labels})
    losses = torch.tensor([[0.0, 1e8], [-3.0, 1.0], [0.1, 0.2], [1e4, 0.0]])
    policy = begun(name)
    features = policy.observe(Signals(losses, logits, (logits.half().flip(-1),), batch, read_as))
    assert features.shape == (4, 2 + FEATURES)
    assert features.isfinite().all()
    assert not features.requires_grad
    policy.update(Observation(torch.arange(4), features, 0.0), torch.ones(4, 2).cumsum(0) - 2.5)
    assert policy.weights(Observation(torch.arange(4), features, 1.0)).isfinite().all()


def test_a_network_sees_how_well_student_and_teacher_fit_the_label():
    """The features are log losses, then the label's probability and the relative entropy of the student, then of the
    teacher, then of the probe, which knows nothing here, and the class.
    """
    student, teacher = torch.tensor([[math.log(3), 0.0, 0.0]]), torch.zeros(1, 3)
    signals = Signals(torch.tensor([[1.0, -2.0]]), student, (teacher,), {"labels": torch.tensor([0])}, Task())
    p = torch.tensor([0.6, 0.2, 0.2])
    entropy = -(p * p.log()).sum() / math.log(3)
    expected = torch.tensor([[math.log(2), 0.0, 0.6, entropy, 1 / 3, 1.0, 0.5, 1.0, 0.5, 0.0]])
    torch.testing.assert_close(begun("convex network").observe(signals), expected)


def test_a_network_learns_that_a_rare_class_helps():
    """All else equal, only how common its class is tells an example whose losses help; an update counts classes."""
    policy = LossNetwork()
    policy.reset(Sizes(1, (), None, classes=2), torch.ones(1))
    labels = torch.tensor([0] * 7 + [1])
    signals = Signals(torch.ones(8, 1), torch.zeros(8, 2), (), {"labels": labels}, Task())
    rare = Observation(torch.arange(8), policy.observe(signals), 0.5)
    for _ in range(40):
        policy.update(rare, torch.where(labels == 1, 7.0, -1.0)[:, None])
    common, helpful = policy.weights(rare)[[0, 7], 0]
    assert policy.class_counts.seen.tolist() == [281.0, 41.0]
    assert helpful > 4 * common


@pytest.mark.parametrize(
    ("normalisation", "balance", "ratio"),
    [(None, 0.5, 3.0), (None, 1.0, 9.0), (None, 0.0, 1.0), (MeanOne(), 0.5, 3.0), (Convex(), 1.0, 1.0)],
)
def test_a_rare_class_counts_more_once_classes_are_counted(normalisation, balance, ratio):
    """By the power of how common it is, before anything is learned; not where an example's weights have a sum."""
    policy = LossNetwork(normalisation=normalisation, balance=balance)
    policy.reset(Sizes(2, (1,), None, classes=2), torch.tensor([0.5, 0.5]))
    labels = torch.tensor([0] * 9 + [1])
    signals = Signals(torch.ones(10, 2), torch.zeros(10, 2), (torch.zeros(10, 2),), {"labels": labels}, Task())
    rows = Observation(torch.arange(10), policy.observe(signals), 0.5)
    assert policy.weights(rows).sum(1).allclose(torch.ones(10))
    for _ in range(200):
        policy.update(rows, torch.zeros(10, 2))
    common, rare = policy.weights(rows).sum(1)[[0, 9]]
    torch.testing.assert_close(rare / common, torch.tensor(ratio), rtol=0.02, atol=0)
    torch.testing.assert_close(policy.weights(rows).sum(1).mean(), torch.tensor(1.0), rtol=0.02, atol=0)


def test_a_mean_of_one_holds_in_batches_with_more_rare_rows_than_most():
    """The running mean follows what weights come to with the balance of classes, not before it."""
    policy = LossNetwork(normalisation=MeanOne())
    policy.reset(Sizes(1, (), None, classes=2), torch.ones(1))
    policy.class_counts.seen = torch.tensor([9e6, 1e6])
    features = torch.zeros(4, 7)
    features[2:, -1] = 1
    rows = Observation(torch.arange(4), features, 0.5)
    for _ in range(60):
        policy.update(rows, torch.zeros(4, 1))
    torch.testing.assert_close(policy.weights(rows).mean(), torch.tensor(1.0), rtol=0.01, atol=0)


def test_an_update_climbs_the_mean_gain_of_the_weights_that_are_used():
    """What an example counts for is in the gradient too: a small step moves scores along the derivative of the mean of
    weights times slopes, taken by finite differences.
    """
    policy = LossNetwork(normalisation=GatedConvex(), balance=1.0)
    policy.reset(Sizes(1, (0,), None, classes=2), torch.ones(1))
    policy.double()
    policy.class_counts.seen = torch.tensor([90.0, 10.0], dtype=torch.float64)
    features = torch.rand(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features[:, -1] = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    rows, slopes = Observation(torch.arange(6), features, 0.5), torch.tensor([[1.0, -1, 2, 1, -1, 3]]).T.double()
    found: dict[str, Tensor] = {}
    policy.optimizer.register_step_pre_hook(
        lambda *_: found.update({name: p.grad.clone() for name, p in policy.network.named_parameters()})
    )
    before = policy.class_counts.seen.clone()
    policy.update(rows, slopes)
    policy.reset(Sizes(1, (0,), None, classes=2), torch.ones(1))
    policy.double()
    policy.class_counts.seen = before + torch.tensor([4.0, 2.0], dtype=torch.float64)  # an update counts first
    bias = policy.network[-1].bias
    for number in range(len(bias)):
        gains = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                bias[number] += step
                gains.append((policy.weights(rows) * slopes).mean().item())
                bias[number] -= step
        torch.testing.assert_close(-found["2.bias"][number].item(), (gains[0] - gains[1]) / 2e-5, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_weights_of_an_example_do_not_depend_on_how_a_batch_is_cut(name):
    """Gradient accumulation and the last, smaller batch must not change what an example weighs."""
    policy, whole = taught(begun(name)), seen()
    parts = [Observation(whole.ids[cut], whole.features[cut], 0.5) for cut in (slice(0, 1), slice(1, 6), slice(6, 8))]
    torch.testing.assert_close(torch.cat([policy.weights(part) for part in parts]), policy.weights(whole))


@pytest.mark.parametrize(("teachers", "expected"), [((), MeanOne), ((1,), GatedConvex)])
def test_a_network_shares_out_where_there_is_a_teacher_and_weighs_examples_where_there_is_none(teachers, expected):
    """A teacher can stand in for a wrong label; without one an example must be able to count less, and a single loss
    to be weighed at all. What was asked for stays.
    """
    for given, kind in ((None, expected), (ConvexOrNone(), ConvexOrNone)):
        policy = LossNetwork(normalisation=given)
        policy.reset(Sizes(2, teachers, None), torch.tensor([0.5, 0.5]))
        assert type(policy.normalisation) is kind


def test_mean_one_weights_sum_to_one_on_average():
    """Examples compete: once the weights settle, the running mean holds their average sum at one while single examples
    are far from it.
    """
    sums = taught(begun("mean-one network"), 120).weights(seen()).sum(1)
    assert abs(sums.mean() - 1) < 0.1
    assert sums.max() - sums.min() > 0.5


@pytest.mark.parametrize(("name", "most"), [("gated network", 2.0), ("convex-or-none network", 1.0)])
def test_an_example_of_which_everything_misleads_is_left_out(name, most):
    """Where all losses help, an example counts as much as it may; where all hurt, hardly at all."""
    policy = begun(name)
    for _ in range(60):
        policy.update(seen(), HELPS_FIRST_HALF[:, :1].expand(-1, 2))
    sums = policy.weights(seen()).sum(1)
    assert (sums[:4] > 0.8 * most).all()
    assert (sums[4:] < 0.2 * most).all()


# ---- controls and arguments ----


def test_random_weights_are_a_function_of_seed_and_example():
    """An example has one draw for the whole run, in whatever batch it comes; another seed or example has another."""
    drawn = begun("random", 3).weights(seen(3, range(500)))
    again = begun("random", 3).weights(seen(3, [7, 499, 0]))
    other = RandomWeights(seed=1)
    other.reset(Sizes(3, TEACHERS, None), as_mixture(None, 3))
    assert again.equal(drawn[[7, 499, 0]])
    assert len(drawn.unique(dim=0)) == 500
    assert (other.weights(seen(3, range(500))) != drawn).all()
    torch.testing.assert_close(drawn.mean(0), torch.full((3,), 1 / 3), rtol=0, atol=0.05)
    # The variance of one share of a uniform draw from the simplex is (K - 1) / (K² (K + 1)).
    torch.testing.assert_close(drawn.var(0), torch.full((3,), 2 / 36), rtol=0.2, atol=0)


def test_no_random_weight_is_nan():
    """One such draw would end the training: with a million examples and three losses one run in six."""
    assert begun("random", 3).weights(Observation(torch.tensor([18_789_023]), torch.zeros(1, 0), 0.0)).isfinite().all()


BAD = [
    lambda: ExampleTable(learning_rate=0),
    lambda: ExampleTable(learning_rate=-0.1),
    lambda: ExampleTable(learning_rate=math.nan),
    lambda: LossNetwork(hidden=0),
    lambda: LossNetwork(learning_rate=0),
    lambda: LossNetwork(learning_rate=math.nan),
    lambda: LossNetwork(balance=-0.1),
    lambda: LossNetwork(balance=math.nan),
    lambda: ExampleTable(initial=[1.0]).reset(Sizes(2, (), 4), torch.ones(2)),
    lambda: ExampleTable(initial=[1.0, -1.0]).reset(Sizes(2, (), 4), torch.ones(2)),
]
UNCHECKED = [
    lambda: ExampleTable(learning_rate=math.inf),
    lambda: LossNetwork(learning_rate=math.inf),
    # A mixture of zeros has no shares: every weight, and then the student, would be NaN.
    *(lambda name=name: begun(name, mixture=[0.0, 0.0]) for name in NETWORKS),
]


@pytest.mark.parametrize("make", [*BAD, *(pytest.param(make) for make in UNCHECKED)])
def test_an_argument_out_of_range_is_refused(make):
    """At construction, with the value that came, rather than as NaN or weights that never move."""
    with pytest.raises(ValueError, match=r"got .+\."):
        make()


def test_as_mixture_gives_equal_shares_or_what_was_said():
    """Unsaid, losses share equally; said, numbers stand as they are, also if they do not sum to one."""
    torch.testing.assert_close(as_mixture(None, 4), torch.full((4,), 0.25))
    assert as_mixture([1.0, 3.0], 2).tolist() == [1.0, 3.0]


@pytest.mark.parametrize("bad", [[1.0], [1.0, 2.0, 3.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf], 1.0])
def test_as_mixture_refuses_what_is_no_mixture(bad):
    """The message names how many numbers are wanted and what came."""
    with pytest.raises(ValueError, match="must hold 2 finite numbers.*got"):
        as_mixture(bad, 2)


# ---- what only some policies have ----


def test_label_smoothing_is_not_taken_for_a_bad_fit():
    """The network is shown the probability of the label, whatever the student's loss makes of it."""
    seen = []
    for smoothing in (0.0, 0.3):
        policy = LossNetwork()
        policy.reset(Sizes(1, (), None, 3), torch.ones(1))
        batch, logits = {"labels": torch.tensor([0])}, torch.tensor([[2.0, 0.0, 0.0]])
        seen.append(policy.observe(Signals(torch.ones(1, 1), logits, (), batch, Task(label_smoothing=smoothing))))
    assert torch.equal(*seen)


def test_the_rate_of_a_delayed_policy_is_that_of_the_policy():
    """`meta_learning_rate` would else be asked for in vain."""
    policy = Delayed(ExampleTable(0.1), 0.5)
    policy.learning_rate = 0.4
    policy.reset(Sizes(1, (), 4), torch.ones(1))
    assert policy.policy.learning_rate == 0.4


def test_a_delayed_policy_takes_back_what_did_not_count():
    """A step that the gradient scaler skips must leave nothing, in the policy that learns as in the rows."""
    policy = Delayed(ExampleTable(0.1), 0.5)
    policy.reset(Sizes(1, (), 4), torch.ones(1))
    ids = torch.tensor([1, 2])
    restore = policy.restorer(ids)
    policy.update(Observation(ids, torch.zeros(2, 0), 0.0), torch.ones(2, 1))
    assert (policy.policy.store.table[1:3] > 1).all() and (policy.store.table[1:3] > 1).all()
    restore()
    assert (policy.policy.store.table == 1).all() and (policy.store.table == 1).all()


def test_a_delayed_policy_is_told_of_steps_that_are_over():
    """If it wants to be, and only then."""

    class Told(ExampleTable):
        notes_steps = True

        def note_step(self, features):
            self.told = features

    policy, features = Delayed(Told(), 0.5), torch.ones(3, 1)
    policy.note_step(features)
    assert policy.notes_steps and policy.policy.told is features
    assert not Delayed(ExampleTable(), 0.5).notes_steps


@pytest.mark.parametrize("make", [lambda: LossNetwork(probe=False), MetaWeightNet, lambda: ExampleTable(0.1)])
def test_a_delayed_policy_has_one_scale(make):
    """Examples that were judged weigh as much on average as those that were not, whatever the mixture sums to: or they
    would be drawn, and learned from, half as often.
    """
    policy = Delayed(make(), 0.5)
    policy.reset(Sizes(2, (1,), 8), torch.tensor([0.9, 0.9]))
    batch = {"labels": torch.tensor([0, 1, 0, 1])}
    features = policy.observe(Signals(torch.ones(4, 2), torch.zeros(4, 2), (torch.zeros(4, 2),), batch, Task()))
    policy.update(Observation(torch.arange(4), features, 0.1), torch.zeros(4, 2))
    later = Observation(torch.arange(8), torch.cat([features, features]), 0.9)
    torch.testing.assert_close(policy.weights(later).sum(1), torch.full((8,), 1.8), rtol=1e-3, atol=1e-3)


def test_a_selection_goes_by_the_losses_that_an_example_has():
    """Two rows of one vote that is badly met against two of five that are well: the mean of what is there decides."""
    policy = SmallLoss(0.5)
    policy.reset(Sizes(5, (), 4, names=tuple("abcde")), torch.full((5,), 0.2))
    losses = torch.tensor([[2.0, 0, 0, 0, 0]] * 2 + [[0.5] * 5] * 2)
    signals = Signals(losses, torch.zeros(4, 2), (), {}, Task(), present=lambda: losses > 0)
    seen = Observation(torch.arange(4), policy.observe(signals), 1.0, losses > 0)
    torch.testing.assert_close(seen.features[:, 0], torch.tensor([2.0, 2.0, 0.5, 0.5]))
    assert (policy.weights(seen).sum(1) > 0).tolist() == [False, False, True, True]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_a_quantile_is_that_of_what_is_known(count, share):
    """As torch has it; of nothing at all it is none."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    values[::3] = torch.nan
    torch.testing.assert_close(quantile(values, share), values.nanquantile(share), equal_nan=True)


def test_an_example_that_comes_twice_moves_twice():
    """As in a trajectory of several steps."""
    policy = ExampleTable(0.1)
    policy.reset(Sizes(1, (), 4), torch.ones(1))
    observation = Observation(torch.tensor([2, 2]), torch.zeros(2, 0), 0.0)
    policy.update(observation, torch.tensor([[1.0], [3.0]]))
    torch.testing.assert_close(policy.store.table[:, 0], torch.tensor([1.0, 1.0, 1.4, 1.0]))


def test_factors_of_losses_stay_within_twice_the_mixture():
    """Of a loss that helps at every step too."""
    policy = SharedWeights(learning_rate=0.5)
    policy.reset(Sizes(2, (), None), torch.tensor([0.5, 0.5]))
    observation = Observation(torch.arange(3), torch.zeros(3, 0), 0.0)
    for _ in range(20):
        policy.update(observation, torch.tensor([[1.0, -1.0]] * 3))
    torch.testing.assert_close(policy.weights(observation), torch.tensor([[1.0, 0.0]] * 3))


def test_losses_are_compared_with_their_running_means():
    """A tenth of the way in every update."""
    policy = StateNetwork(())
    policy.reset(Sizes(1, (), None, 3), torch.ones(1))
    batch = {"labels": torch.tensor([0, 1])}
    losses = torch.tensor([[1.0], [3.0]])
    features = policy.observe(Signals(losses, torch.zeros(2, 3), (), batch, Task()))
    policy.update(Observation(torch.arange(2), features, 0.0), torch.ones(2, 1))
    torch.testing.assert_close(policy.running_losses, 0.1 * losses.log1p().mean(0))
    # An infinite one, which is the largest number by then, is not of the mean.
    features[0, policy.label_count] = torch.finfo(torch.float32).max
    before = policy.running_losses.clone()
    policy.update(Observation(torch.arange(2), features, 0.0), torch.ones(2, 1))
    torch.testing.assert_close(policy.running_losses, before.lerp(losses[1].log1p(), 0.1))
