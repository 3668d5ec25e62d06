"""Many batches judged by one meta gradient, and weights that are learned before they are used."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows
from transformers import TrainerCallback

from amal_hf import (
    AMALTrainer,
    CrossEntropy,
    Delayed,
    ExampleTable,
    FixedWeights,
    LabelBlend,
    LastLayer,
    LossNetwork,
    MeanOne,
    Method,
    RectifiedSlopes,
    SGDDirection,
    SmallLoss,
    StateNetwork,
    Trajectory,
    amal,
    commentaries,
    deep_interactions,
    learning_to_reweight,
)
from amal_hf.policies.policy import Observation, Sizes
from amal_hf.state import STATE_NAME
from amal_hf.tangents import movable_parameters


def new_trainer(folder, method, **options):
    learns = method.learns
    return AMALTrainer(
        model=tiny_bert().double(),
        args=toy_arguments(folder, **{"max_steps": 12, "logging_steps": 1, **options}),
        train_dataset=toy_rows(24),
        meta_dataset=toy_rows(10, 4) if learns else None,
        losses=[CrossEntropy()],
        method=method,
    )


def alike(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True))


class Watched(ExampleTable):
    """Compares what it is told with gradients of single examples, where the student stands at that moment, and the
    meta gradient of the window's first step.
    """

    def __init__(self, window):
        super().__init__(learning_rate=1e-9)
        self.window, self.trainer, self.seen = window, None, []

    def update(self, observation, slopes):
        super().update(observation, slopes)
        model, rows = self.trainer.model, self.trainer.train_dataset
        model.eval()
        moved = list(movable_parameters(model).values())
        if len(self.seen) % self.window == 0:
            meta = self.trainer._prepare_inputs(self.trainer._learner.next_meta_batch())
            self.direction = torch.autograd.grad(self.losses(model, meta).mean(), moved)
        batch = self.trainer.data_collator([rows[example] for example in observation.ids.tolist()])
        gradients = [torch.autograd.grad(loss, moved) for loss in self.each(model, batch)]
        expected = torch.stack([sum((a * b).sum() for a, b in zip(self.direction, g, strict=True)) for g in gradients])
        model.train()
        self.seen.append((observation.ids.tolist(), slopes[:, 0], expected / expected.abs().mean()))

    def each(self, model, batch):
        for row in range(len(batch["labels"])):
            yield self.losses(model, {name: value[row : row + 1] for name, value in batch.items()}).sum()

    def losses(self, model, batch):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


@pytest.mark.parametrize(("interval", "window"), [(None, 3), (4, 3), (3, 5)])
def test_a_step_is_judged_before_it_is_taken_along_the_direction_of_its_window(tmp_path, interval, window):
    """Slopes equal products of single gradients in float64, without dropout, the step's micro-batches together; steps
    between two windows are not judged, and all are where windows are longer than the interval.
    """
    trainer = new_trainer(
        tmp_path,
        Method("window", Watched(3), SGDDirection(), window=window),
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        meta_batch_size=10,
        meta_interval=interval,
    )
    policy = trainer.mixture.policy
    policy.trainer = trainer
    trainer.train()
    assert [len(ids) for ids, _, _ in policy.seen] == [4] * (9 if interval == 4 else 12)
    for _, slopes, expected in policy.seen:
        torch.testing.assert_close(slopes, expected, rtol=1e-5, atol=1e-7)
    logs = trainer.state.log_history
    assert [entry["step"] for entry in logs if "meta_loss" in entry] == [*range(1, 12, interval or 3)]
    assert sum("meta_skipped" in entry for entry in logs) == len(policy.seen)


@pytest.mark.parametrize(
    ("method", "judged", "measured"),
    [
        (lambda: amal(), [0, 1, 8, 9, 16, 17], [0, 8, 16]),
        (lambda: replace(amal(), window=1, interval=4), [0, 4, 8, 12, 16], [0, 4, 8, 12, 16]),
        (lambda: amal(ExampleTable()), [*range(20)], [*range(20)]),
        (lambda: amal(tangent=LastLayer()), [0, 16], [0, 16]),
        (lambda: deep_interactions(window=10), [*range(20)], [0, 10]),
        (lambda: replace(learning_to_reweight(), window=5), [*range(20)], [0, 5, 10, 15]),
    ],
)
def test_which_steps_are_judged_and_which_have_a_meta_gradient(tmp_path, method, judged, measured):
    """Of a run of 20 steps, by default; as the documentation of the methods says."""
    trainer = new_trainer(tmp_path, method(), max_steps=20)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] - 1 for entry in logs if "meta_skipped" in entry] == judged
    assert [entry["step"] - 1 for entry in logs if "meta_loss" in entry] == measured


@pytest.mark.parametrize("step", [4, 5, 6, 9])
def test_an_interrupted_run_equals_the_uninterrupted_one(tmp_path, step):
    """Between two windows, before one, and within one: the direction is in the checkpoint."""

    def trainer():
        method = Method("window", LossNetwork(learning_rate=0.05, normalisation=MeanOne()), window=2)
        return new_trainer(tmp_path, method, meta_interval=5, save_strategy="steps", save_steps=1)

    whole, again = trainer(), trainer()
    whole.train()
    assert [entry["step"] for entry in whole.state.log_history if "meta_loss" in entry] == [1, 6, 11]
    saved = torch.load(tmp_path / f"checkpoint-{step}" / STATE_NAME)["learner"]["direction"]
    assert bool(saved) == (step == 6)  # a copy of the student that is not needed would only take room
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert alike(whole, again)


def test_changes_of_batches_learn_at_every_step_of_a_window(tmp_path):
    """Along one direction as weights do, each time by another gradient."""
    trainer = new_trainer(tmp_path, replace(commentaries(LabelBlend(3)), window=3), max_steps=6)
    blend, seen = trainer.method.batch_policy, []
    update = blend.update
    blend.update = lambda gradients: (seen.append(torch.cat([g.flatten() for g in gradients])), update(gradients))
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "meta_loss" in entry] == [1, 4]
    assert len(seen) == 6 and all(g.abs().sum() > 0 and torch.isfinite(g).all() for g in seen)
    assert all(not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False))


def test_delayed_weights_are_learned_from_the_first_and_used_later(tmp_path):
    """Until then the student is that of the fixed mixture, bit for bit; afterwards it is not."""

    def run(until, steps):
        fixed = until is None
        policy = FixedWeights() if fixed else Delayed(ExampleTable(learning_rate=0.5), until)
        trainer = new_trainer(tmp_path, Method("delayed", policy, window=1 if fixed else 2), max_steps=12)
        trainer.add_callback(StopAfter(steps))
        trainer.train()
        return trainer

    assert alike(run(0.5, 6), run(None, 6))
    assert not alike(run(0.5, 9), run(None, 9))
    early = run(0.5, 6).mixture.policy.policy.store.table
    assert early.std() > 0.1


@pytest.mark.parametrize("options", [{"window": 2}, {"trajectory": Trajectory(2)}], ids=["window", "trajectory"])
def test_nothing_is_read_once_delayed_weights_are_used(tmp_path, options):
    """They belong to examples, so each step of the second half is spared what the policy would look at."""
    seen = []

    class Watched(ExampleTable):
        def observe(self, signals):
            seen.append(trainer.state.global_step)
            return super().observe(signals)

    trainer = new_trainer(tmp_path, Method("delayed", Delayed(Watched(), 0.5), **options))
    trainer.train()
    assert {*seen} == {*range(6)}


def test_delayed_weights_stay_as_they_are_once_they_are_used(tmp_path):
    """No meta step follows, every example has the weight that the policy gave it last, and a run that is interrupted
    before or after ends as one that is not.
    """

    def trainer():
        policy = Delayed(LossNetwork(learning_rate=0.05, normalisation=MeanOne()), 0.5)
        method = Method("delayed", policy, interval=2, window=2)
        return new_trainer(tmp_path, method, save_strategy="steps", save_steps=1)

    whole = trainer()
    whole.train()
    assert [entry["step"] for entry in whole.state.log_history if "meta_loss" in entry] == [1, 3, 5]
    used = [entry["weight_labels_p90"] for entry in whole.state.log_history if "weight_labels_p90" in entry]
    assert set(used[:6]) == {1.0} and any(value != 1.0 for value in used[6:])
    given = whole.example_weights()["labels"][:]
    for step in (3, 6, 9):
        again = trainer()
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert alike(whole, again) and again.example_weights()["labels"][:] == given
        assert again._learner.direction is None


class StopAfter(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.steps


def test_examples_of_several_steps_are_each_weighed_as_at_their_time():
    """A trajectory may lie on both sides of the moment from which weights are used."""
    policy = Delayed(ExampleTable(learning_rate=0.5), 0.5)
    policy.reset(Sizes(1, (), 4), torch.ones(1))
    seen = Observation(torch.arange(4), torch.zeros(4, 0), torch.tensor([0.2, 0.8, 0.2, 0.8]))
    policy.update(seen, torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]))
    assert policy.weights(seen).flatten().tolist() == [1.0, 1.5, 1.0, 0.5]


def test_a_table_inside_stays_in_memory_or_is_refused(tmp_path):
    """A checkpoint holds one table that is a file, that of the weights in use; another would be lost on resuming."""
    policy = Delayed(ExampleTable(), 0.5)
    policy.reset(Sizes(1, (), 4, folder=str(tmp_path)), torch.ones(1))
    assert policy.policy.store.in_memory and not policy.store.in_memory
    with pytest.raises(ValueError, match="checkpoints keep one"):
        policy.reset(Sizes(1, (), 2**25), torch.ones(1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Method("none", ExampleTable(), window=0), "window must be a whole number from 1"),
        (lambda: Method("both", ExampleTable(), trajectory=Trajectory(), window=2), "1 beside a trajectory"),
        (lambda: deep_interactions(trajectory=Trajectory(), window=2), "1 beside a trajectory"),
        (lambda: Method("phases", ExampleTable(), window=2, phase_epochs=1), "leave it at 1"),
        (lambda: Method("repeats", ExampleTable(), window=2, repeats=5, lookahead=True), "leave it at 1"),
        (lambda: Delayed(RectifiedSlopes(), 0.5), "meta_warmup_steps"),
        (lambda: Delayed(StateNetwork(), 1.0), "share of training between 0 and 1"),
        (lambda: Delayed(SmallLoss(among=8), 0.5), "SmallLoss does not learn its weights"),
    ],
)
def test_bad_input(build, message):
    """With what came and what to do."""
    with pytest.raises(ValueError, match=message):
        build()


def test_what_cannot_work_is_said_before_the_first_step(tmp_path):
    """One-step weights for some steps only, a warm-up until weights are used."""
    with pytest.raises(ValueError, match="meta_interval is 3"):
        new_trainer(tmp_path, Method("online", RectifiedSlopes(), window=2), meta_interval=3)
    late = Method("late", Delayed(ExampleTable(), 0.25))
    with pytest.raises(ValueError, match="leaves nothing of it"):
        new_trainer(tmp_path, late, meta_warmup_steps=3).train()
