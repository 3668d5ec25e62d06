"""Rows drawn as often as their weights say."""

from itertools import pairwise

import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows
from torch.utils.data import RandomSampler
from transformers import TrainerCallback

from amal_hf import (
    AMALTrainer,
    CrossEntropy,
    Delayed,
    ExampleTable,
    FixedWeights,
    LossNetwork,
    MeanOne,
    Method,
    RuleLosses,
    StateNetwork,
)
from amal_hf.drawn_rows import DrawnRows, drawn
from amal_hf.policies.policy import Observation, Sizes
from amal_hf.random_numbers import generator_of


def test_each_row_comes_as_often_as_its_rate_says():
    """Never by as much as one off, as many as there are rows, on average exactly, and in no order of numbers."""
    rates = torch.tensor([0.0, 0.1, 0.5, 1.0, 1.7, 2.2, 0.0, 3.5])
    wanted = rates.double() * len(rates) / rates.double().sum()
    counts = torch.stack([drawn(rates, generator_of(seed)).bincount(minlength=8) for seed in range(4000)]).double()
    assert (counts.sum(1) == 8).all() and ((counts - wanted).abs() < 1).all()
    torch.testing.assert_close(counts.mean(0), wanted, atol=0.03, rtol=0)
    orders = torch.stack([drawn(torch.ones(5), generator_of(seed)) for seed in range(2000)])
    assert (orders.sort(1).values == torch.arange(5)).all()
    torch.testing.assert_close(orders.double().mean(0), torch.full((5,), 2.0).double(), atol=0.15, rtol=0)


@pytest.mark.parametrize("rates", [torch.zeros(6), torch.full((6,), 1e-30), torch.full((6,), 1e30)])
def test_rates_count_beside_one_another_alone(rates):
    """Also all zero: then there is nothing to tell rows apart."""
    assert drawn(rates, generator_of(0)).sort().values.tolist() == [*range(6)]


def test_there_are_as_many_whatever_rounding_says(monkeypatch):
    """Sums of these rates end below the number of rows by a rounding, and a random number of zero does not lift it."""
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.zeros(shape))
    for rows, seed in ((7, 8), (50, 9), (1000, 9)):
        rates = torch.empty(rows).uniform_(generator=generator_of(seed))
        assert len(drawn(rates, torch.Generator())) == rows
    for rows in range(2, 400):
        assert len(drawn(torch.empty(rows).uniform_(generator=generator_of(rows)), torch.Generator())) == rows


def test_without_rates_the_order_is_the_samplers():
    """Row by row, and so are the random numbers that it takes; it is told of passes."""
    given = []
    for own in (True, False):
        torch.manual_seed(3)
        sampler = RandomSampler(range(9))
        rows = DrawnRows(sampler, lambda: None) if own else sampler
        given.append([*rows, *rows, torch.rand(()).item()])
    assert given[0] == given[1] and len(DrawnRows(sampler, lambda: None)) == 9
    sampler.set_epoch = given.append
    DrawnRows(sampler, lambda: None).set_epoch(4)
    assert given[2] == 4


def test_weights_of_drawn_rows_sum_to_what_they_did():
    """How often a row comes is the sum of its weights; its losses share what the mixture gives, by hand."""
    policy = Delayed(ExampleTable(learning_rate=0.5), 0.5, draw=True)
    policy.reset(Sizes(2, (), 3), torch.tensor([0.25, 0.75]))
    seen = Observation(torch.arange(3), torch.zeros(3, 0), 0.2)
    policy.update(seen, torch.tensor([[1.0, 0.0], [-1.0, -2.0], [0.0, 0.0]]))
    late = seen._replace(progress=0.6)
    weighed = policy.weights(late)
    assert weighed.tolist() == [[0.75, 0.75], [0.0, 0.0], [0.25, 0.75]]
    assert policy.rates(0.4) is None and policy.weights(late).equal(weighed)
    assert policy.rates(0.5).tolist() == [1.5, 0.0, 1.0]
    assert policy.weights(late).tolist() == [[0.5, 0.5], [0.0, 0.0], [0.25, 0.75]]
    policy.reset(Sizes(2, (), 3), torch.tensor([0.25, 0.75]))
    assert not policy.drawn


class Passes(TrainerCallback):
    """The rows of every pass, and the weights that they count with."""

    def __init__(self):
        self.rows, self.weights = [], []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.rows.append([])
        self.weights.append([])


class StopAfter(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.steps


def new_trainer(folder, method, passes=None, **options):
    trainer = AMALTrainer(
        model=tiny_bert().double(),
        args=toy_arguments(folder, **{"max_steps": 24, "logging_steps": 1, **options}),
        train_dataset=toy_rows(22),
        meta_dataset=toy_rows(10, 4) if method.learns else None,
        losses=[CrossEntropy()],
        method=method,
        callbacks=[] if passes is None else [passes],
    )
    if passes is not None:
        weigh = trainer.mixture.weigh

        def watched(*args, **more):
            weighed = weigh(*args, **more)
            passes.rows[-1] += weighed.observation.ids.tolist()
            passes.weights[-1] += weighed.weights.flatten().tolist()
            return weighed

        trainer.mixture.weigh = watched
    return trainer


def late(draw, until=0.5):
    return Method("late", Delayed(ExampleTable(learning_rate=0.5), until, draw=draw), interval=2)


def alike(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True))


def test_rows_are_weighed_until_a_pass_begins_in_which_they_are_drawn(tmp_path):
    """22 rows, six steps a pass. Until then the student is, bit for bit, that of weighed rows, also where weights are
    used from the middle of a pass on; then rows without weight do not come, and all others count one.
    """
    half = []
    for draw in (True, False):
        passes = Passes()
        trainer = new_trainer(tmp_path, late(draw, until=0.6), passes)
        trainer.add_callback(StopAfter(18))
        trainer.train()
        half.append(trainer)
        assert len(passes.rows) == 3 and len({*passes.weights[2]}) > 2
    assert alike(*half)
    passes = Passes()
    trainer = new_trainer(tmp_path, late(draw=True, until=0.6), passes)
    trainer.train()
    rates = torch.tensor(trainer.example_weights()["labels"][:])
    assert all(sorted(rows) == [*range(22)] for rows in passes.rows[:3])
    assert {*passes.weights[3]} == {1.0}
    counts = torch.tensor(passes.rows[3]).bincount(minlength=22)
    assert counts.sum() == 22 and ((counts - rates * 22 / rates.sum()).abs() < 1).all() and counts.max() > 1
    assert (rates == 0).any()


def test_passes_differ_from_one_another_and_runs_of_one_seed_do_not(tmp_path):
    """Two passes are drawn, each with random numbers of its own."""
    runs = []
    for seed in (0, 0, 1):
        passes = Passes()
        new_trainer(tmp_path, late(draw=True), passes, data_seed=seed).train()
        runs.append(passes.rows)
    assert runs[0] == runs[1] != runs[2]
    assert all(ours != theirs for ours, theirs in pairwise(runs[0]))
    trainer, seeds = new_trainer(tmp_path, late(draw=True)), []
    for step in (12, 17, 18):
        trainer.state.global_step, trainer.state.max_steps = step, 24
        seeds.append(trainer._rates(6)[1].initial_seed())
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 3, "max_steps": 8}], ids=["one", "three"])
@pytest.mark.parametrize("until", [0.5, 0.6], ids=["from a pass", "from within a pass"])
def test_an_interrupted_run_equals_the_uninterrupted_one(tmp_path, until, options):
    """Wherever it is interrupted: before weights are used, between then and the next pass, within a drawn pass."""

    def trainer():
        policy = Delayed(LossNetwork(learning_rate=0.05, normalisation=MeanOne()), until, draw=True)
        saves = {"save_strategy": "steps", "save_steps": 1}
        return new_trainer(tmp_path, Method("late", policy, interval=2, window=2), **saves, **options)

    whole = trainer()
    whole.train()
    steps = whole.state.max_steps
    for step in (steps // 3, round(0.65 * steps), 3 * steps // 4, steps - 1):
        again = trainer()
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert alike(whole, again)


def test_votes_share_what_a_drawn_row_counts(tmp_path):
    """Where a rule abstains it has no share: the sum of the weights of each row is what it was at first."""
    names = ["a", "b"]
    rows = toy_rows(24).map(lambda row, n: {"weak_labels": [n % 3, -1 if n % 2 else 1]}, with_indices=True)
    trainer = AMALTrainer(
        model=tiny_bert().double(),
        args=toy_arguments(tmp_path, max_steps=24, logging_steps=1),
        train_dataset=rows,
        meta_dataset=toy_rows(10, 4),
        losses=[CrossEntropy(), RuleLosses(names)],
        method=late(draw=True),
    )
    sums = []
    weigh = trainer.mixture.weigh

    def watched(*args, **more):
        weighed = weigh(*args, **more)
        sums.append(weighed.weights.sum(1))
        return weighed

    trainer.mixture.weigh = watched
    trainer.train()
    first, last = torch.cat(sums[:6]), torch.cat(sums[12:])
    assert (last - first[0]).abs().max() < 1e-6 and torch.isfinite(last).all()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (lambda: toy_rows(24).to_iterable_dataset(), {}, "a stream does not have"),
        (lambda: toy_rows(24), {"train_sampling_strategy": "sequential"}, "is 'sequential'"),
        (lambda: toy_rows(24), {"train_sampling_strategy": "group_by_length"}, "is 'group_by_length'"),
        (lambda: toy_rows(24), {"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches=True"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused_before_training(tmp_path, rows, options, message):
    """With what to do instead."""
    with pytest.raises(ValueError, match=message):
        AMALTrainer(
            model=tiny_bert(),
            args=toy_arguments(tmp_path, **options),
            train_dataset=rows(),
            meta_dataset=toy_rows(10, 4),
            method=late(draw=True),
        )


@pytest.mark.parametrize(("steps", "until", "drawn"), [(6, 0.5, 0), (12, 0.6, 0), (12, 0.5, 1), (13, 0.6, 1)])
def test_a_run_too_short_to_draw_from_is_refused_before_its_first_step(tmp_path, steps, until, drawn):
    """Six steps a pass: of two passes the second begins at a half."""
    passes = Passes()
    trainer = new_trainer(tmp_path, late(draw=True, until=until), passes, max_steps=steps)
    if drawn:
        trainer.train()
        assert trainer.method.policy.drawn
    else:
        with pytest.raises(ValueError, match="none does"):
            trainer.train()
        assert trainer.state.global_step == 0


def test_other_policies_want_each_row_once(tmp_path):
    """So their loaders are those of `Trainer`."""
    assert FixedWeights().rates(0.9) is None and not FixedWeights().draws
    trainer = new_trainer(tmp_path, late(draw=False))
    assert not isinstance(trainer.get_train_dataloader().batch_sampler.sampler, DrawnRows)


def test_a_network_is_asked_about_all_rows_as_each_drawn_pass_begins(tmp_path):
    """Its weights are then those that it gives the student as it stands; a table has nothing new to say of a row. What
    was learned last is asked: no further than it has learned, and without a change of the student or its dropout.
    """
    policy = Delayed(LossNetwork(learning_rate=0.05, normalisation=MeanOne()), 0.5, draw=True)
    trainer = new_trainer(tmp_path, Method("late", policy, interval=2))
    noted, note = [], trainer.method.policy.note_rows

    def watched(observation):
        before = trainer.method.policy.store.table.clone()
        note(observation)
        noted.append((observation.progress, observation.ids.tolist()))
        rows = trainer.method.policy.store.table[observation.ids]
        asked = trainer.method.policy.policy.weights(observation._replace(progress=0.5)).detach()
        torch.testing.assert_close(rows, asked.to(rows))
        assert not rows.equal(before[observation.ids])

    trainer.method.policy.note_rows = watched
    trainer.train()
    assert {progress for progress, _ in noted} == {0.5, 0.75}
    assert [row for progress, ids in noted if progress == 0.5 for row in ids] == [*range(22)]
    table = new_trainer(tmp_path, late(draw=True))
    table.method.policy.note_rows = None
    table.train()


def test_asking_moves_nothing_else(tmp_path):
    """Bit for bit the student of the first drawn pass is that of a run whose weights are asked of nobody, where the
    answers are the same: a network that has learned nothing gives all rows alike.
    """
    students = []
    for asks in (True, False):
        policy = Delayed(StateNetwork((), learning_rate=1e-12, normalisation=MeanOne()), 0.5, draw=True)
        trainer = new_trainer(tmp_path, Method("late", policy, interval=2), max_steps=18)
        if not asks:
            trainer.method.policy.wants_rows_at = lambda progress: False
        trainer.train()
        students.append(trainer)
    assert alike(*students)
