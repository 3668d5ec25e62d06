"""What must hold of `AMALTrainer` with losses and a method on."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from amal_hf import (
    AboveAverage,
    AMALTrainer,
    ConvexOrNone,
    CorrectedCrossEntropy,
    CrossEntropy,
    CustomLoss,
    Distillation,
    ExampleTable,
    GeneralizedCrossEntropy,
    LastLayer,
    LossNetwork,
    MeanOne,
    NetworkPolicy,
    StateNetwork,
    TokenMask,
    Trajectory,
    amal,
    amal_as_published,
    commentaries,
    deep_interactions,
    learning_to_reweight,
    random_weights,
)
from amal_hf.learner import WeightLearner
from amal_hf.metrics import auc


def _seeded():
    return torch.Generator().manual_seed(0)


METHODS = {
    "fixed": lambda: None,
    "random": random_weights,
    "network": amal,
    "network, mean one": lambda: amal(LossNetwork(normalisation=MeanOne())),
    "network or none, last layer": lambda: amal(LossNetwork(normalisation=ConvexOrNone()), tangent=LastLayer()),
    "table": lambda: amal(ExampleTable()),
    "as published": lambda: amal_as_published(phase_epochs=1, repeats=2),
    "learning to reweight": learning_to_reweight,
    "deep interactions": lambda: deep_interactions(trajectory=Trajectory(2)),
    "deep interactions, memory": lambda: deep_interactions(
        StateNetwork((), normalisation=AboveAverage(), likelihoods=True, memory=True), window=2
    ),
    "token mask": lambda: commentaries(TokenMask(torch.randn(60, 8, generator=_seeded(), dtype=torch.float64), [0])),
    "deep interactions, restarted": lambda: dataclasses.replace(
        deep_interactions(StateNetwork((-1,)), trajectory=Trajectory(3)), restart_every=3
    ),
}
RESTARTED = "deep interactions, restarted"
"""Learns the weights of the first three steps only."""
all_methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
learned = pytest.mark.parametrize("method", list(METHODS.values())[2:], ids=list(METHODS)[2:])


def table_teacher(rows, seed=9):
    """A teacher that is a table of random logits."""
    logits = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    return lambda batch: logits[batch["example_id"]]


def new_trainer(folder, method, rows=24, model=None, callbacks=None, losses=None, train=None, **options):
    """A student with two losses."""
    made = method()
    if made is not None and made.policy.holds_for_one_step:
        options["meta_interval"] = None
    if made is not None and made.restart_every:
        options["lr_scheduler_type"] = "constant"
    if made is not None and made.trajectory is not None:
        options["meta_interval"] = None
    return AMALTrainer(
        model=tiny_bert() if model is None else model,
        args=toy_arguments(folder, **{"meta_interval": 2, **options}),
        train_dataset=toy_rows(rows) if train is None else train,
        eval_dataset=toy_rows(12, 3),
        meta_dataset=toy_rows(10, 4),
        losses=[CrossEntropy(), Distillation(table_teacher(rows))] if losses is None else losses,
        method=made,
        callbacks=callbacks,
    )


def test_a_student_with_one_output_is_known_to_hit_numbers(tmp_path):
    """Its configuration says so only once it was called; until then a teacher would be taken for one that has soft
    targets, which pulls as hard as its temperature.
    """
    losses = [CrossEntropy(), Distillation(lambda batch: batch["labels"][:, None], 4.0)]
    model = tiny_bert(num_labels=1)
    trainer = new_trainer(tmp_path, amal, model=model, losses=losses)
    assert trainer.mixture.losses[1].pull == 1


@pytest.mark.parametrize(
    ("outputs", "labels", "kind"),
    [(1, lambda row: 0.5, "regression"), (3, lambda row: [1.0, 0.0, 1.0], "multi_label_classification")],
)
def test_a_saved_student_says_how_it_is_read(tmp_path, outputs, labels, kind):
    """Pipelines go by its configuration, which its head writes where it sees labels: here without an evaluation, in a
    student that was made later.
    """
    rows = toy_rows(8).remove_columns("labels").map(lambda row: {"labels": labels(row)})
    given = {"model_init": lambda: tiny_bert(num_labels=outputs), "args": toy_arguments(tmp_path, max_steps=1)}
    trainer = AMALTrainer(**given, train_dataset=rows, losses=[CrossEntropy()])
    assert trainer.model.config.problem_type == kind
    trainer.train()
    trainer.save_model(tmp_path / "student")
    assert type(trainer.model).from_pretrained(tmp_path / "student").config.problem_type == kind


def test_yes_or_no_labels_are_not_smoothed(tmp_path, caplog):
    """Nor in evaluation, where `Trainer` would take them for numbers of classes, as a configuration does not say what
    they are: the same numbers as without smoothing, and a word that it does nothing.
    """
    rows = toy_rows(12).remove_columns("labels").map(lambda row: {"labels": [1.0, 0.0, 1.0]})
    scores = []
    for smoothing in (0.0, 0.1):
        args = toy_arguments(tmp_path, max_steps=1, label_smoothing_factor=smoothing)
        trainer = AMALTrainer(tiny_bert(), args, train_dataset=rows, eval_dataset=rows, losses=[CrossEntropy()])
        trainer.train()
        scores.append(trainer.evaluate()["eval_loss"])
    assert scores[0] == scores[1]
    assert caplog.text.count("label_smoothing_factor=0.1 is not used") == 1


def test_evaluation_reads_no_column_of_losses(tmp_path):
    """One schema for all splits leaves them empty where they are for training alone, ids among them."""

    def scored(outputs, batch):
        return batch["scores"] * outputs.logits.pow(2).mean(-1)

    train = toy_rows(12).add_column("scores", [1.0] * 12).add_column("example_id", [f"row {n}" for n in range(12)])
    dev = toy_rows(8, 3).add_column("scores", [None] * 8).add_column("example_id", [None] * 8)
    losses = [CrossEntropy(), CustomLoss(scored, "scored", columns=("scores",))]
    trainer = new_trainer(tmp_path, METHODS["fixed"], train=train, losses=losses, eval_strategy="steps", eval_steps=2)
    trainer.eval_dataset = dev
    trainer.train()
    plain = AMALTrainer(trainer.model, toy_arguments(tmp_path), eval_dataset=toy_rows(8, 3))
    assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    assert trainer.predict(dev).predictions.shape == (8, 3)
    assert "scores" in next(iter(trainer.get_train_dataloader()))


def test_the_launcher_may_set_the_precision(tmp_path, monkeypatch):
    """`accelerate launch --mixed_precision bf16` leaves the arguments as they are; slopes take the radius of bf16."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = new_trainer(tmp_path, amal)
    assert not trainer.args.bf16
    assert trainer._student().dtype == torch.bfloat16


@all_methods
def test_a_plain_trainer_goes_on_with_the_student(tmp_path, method):
    """On clean rows, as the README advises: from the student as it is and from a copy of its weights it ends at the
    same numbers, so nothing of ours is left in it.
    """
    trainer = new_trainer(tmp_path, method)
    trainer.train()
    copied = tiny_bert()
    copied.load_state_dict(trainer.model.state_dict())
    for student in (trainer.model, copied):
        Trainer(model=student, args=toy_arguments(tmp_path), train_dataset=toy_rows(10, 4)).train()
    ours, theirs = trainer.model.state_dict(), copied.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters()})


def no_dropout(**config):
    return tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **config)


@all_methods
def test_gradients_do_not_depend_on_how_a_batch_is_cut(tmp_path, monkeypatch, method):
    """The same examples must give the same gradient for every batch size and accumulation, the ragged last window
       included.

    In fp64, networks of weights too, since rounding is what is left otherwise.
    """
    new_network = NetworkPolicy.new_network
    monkeypatch.setattr(NetworkPolicy, "new_network", lambda *args: new_network(*args).double())
    runs = []
    for size, accumulation in ((12, 1), (4, 3), (2, 6), (3, 4)):
        seen = Gradients()
        # 22 rows: a full window of 12 and a ragged one of 10
        trainer = new_trainer(
            tmp_path,
            method,
            rows=22,
            model=no_dropout().double(),
            callbacks=[seen],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            meta_interval=1,
            train_sampling_strategy="sequential",
            max_grad_norm=0.0,
        )
        trainer.train()
        runs.append((seen.steps, trainer.example_weights().to_pandas().to_numpy()))
    steps, weights = runs[0]
    assert len(steps) == 6
    for other_steps, other_weights in runs[1:]:
        for ours, theirs in zip(steps, other_steps, strict=True):
            norm = torch.stack([g.norm() for g in ours.values()]).norm()
            difference = torch.stack([(ours[name] - theirs[name]).norm() for name in ours]).norm()
            assert difference / norm < 1e-6
        np.testing.assert_allclose(other_weights, weights, rtol=1e-5, atol=1e-6)


@learned
def test_the_student_does_not_notice_a_meta_step(tmp_path, method, monkeypatch):
    """Parameters, gradients, modes and random numbers must be untouched, or the training would be another one."""
    trainer = new_trainer(
        tmp_path, method, train=toy_rows(24), gradient_accumulation_steps=2, num_train_epochs=3, max_steps=-1
    )
    owner, name = (AMALTrainer, "_meta_step")
    if trainer.method.trajectory is not None:
        owner, name = WeightLearner, "learn_from_trajectory"
    inner, steps = getattr(owner, name), []

    def snapshot():
        model = trainer.model
        return [
            *(p.detach().clone() for p in model.parameters()),
            *(torch.zeros(1) if p.grad is None else p.grad.clone() for p in model.parameters()),
            torch.tensor([module.training for module in model.modules()]),
            torch.get_rng_state(),
            torch.tensor(np.random.get_state()[1].astype(np.int64)),
        ]

    def watched(self, *args, **options):
        before = snapshot()
        result = inner(self, *args, **options)
        steps.append(all(torch.equal(a, b) for a, b in zip(before, snapshot(), strict=True)))
        return result

    monkeypatch.setattr(owner, name, watched)
    trainer.train()
    assert len(steps) >= 2
    assert all(steps)


class StopAt(TrainerCallback):
    """Ends the run after a number of steps, as an interruption would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def state_of(trainer):
    weights = trainer.example_weights().to_pandas().to_numpy()
    return [*trainer.model.state_dict().values(), torch.get_rng_state(), torch.from_numpy(weights)]


@all_methods
def test_an_interrupted_run_equals_the_uninterrupted_one(tmp_path, method):
    """Stopped at every step of twelve and resumed, all must come out bit for bit.

    Student, weights, random numbers, meta set.
    """
    warmup = 3 if method is METHODS[RESTARTED] else 2  # which has to end with a short run
    saving = {"save_strategy": "steps", "save_steps": 1}
    options = {"max_steps": 12, **saving, "meta_warmup_steps": warmup, "logging_steps": 5}
    whole = new_trainer(tmp_path / "whole", method, rows=18, **options)
    whole.train()
    expected = state_of(whole)
    for step in range(1, 12):
        resumed = new_trainer(tmp_path / "again", method, rows=18, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        for ours, theirs in zip(state_of(resumed), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_an_interruption_inside_an_accumulation_window_is_resumed_from_its_step(tmp_path):
    """With accumulation and a ragged last window the meta set must go on at the right batch."""
    options = {
        "max_steps": -1,
        "num_train_epochs": 3,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "meta_interval": 1,
    }
    whole = new_trainer(tmp_path / "whole", METHODS["table"], rows=18, **options)
    whole.train()
    interrupted = new_trainer(tmp_path / "cut", METHODS["table"], rows=18, callbacks=[StopAt(4)], **options)
    interrupted.train()
    resumed = new_trainer(tmp_path / "cut", METHODS["table"], rows=18, **options)
    resumed.train(resume_from_checkpoint=True)
    for ours, theirs in zip(state_of(resumed), state_of(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@all_methods
def test_evaluation_is_the_plain_task_loss(tmp_path, method):
    """Scores must not depend on teachers or weights, nor need them."""
    trainer = new_trainer(tmp_path, method)
    plain = Trainer(model=trainer.model, args=trainer.args, eval_dataset=trainer.eval_dataset)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)
    ours = trainer.predict(toy_rows(5, 8).remove_columns("labels")).predictions
    np.testing.assert_array_equal(ours, plain.predict(toy_rows(5, 8).remove_columns("labels")).predictions)
    assert trainer.predict(trainer.train_dataset).predictions.shape == (24, 3)


def test_a_mixture_of_labels_alone_is_the_mean_loss(tmp_path):
    """One loss with weight one must train as the model's own loss does."""
    seen, expected = Gradients(), Gradients()
    options = {"per_device_train_batch_size": 8, "max_steps": 1, "loss_weights": [1.0]}
    new_trainer(
        tmp_path, METHODS["fixed"], losses=[CrossEntropy()], callbacks=[seen], model=no_dropout(), **options
    ).train()
    args = toy_arguments(tmp_path, **options)
    Trainer(model=no_dropout(), args=args, train_dataset=toy_rows(24), callbacks=[expected]).train()
    for name, gradient in expected.steps[0].items():
        torch.testing.assert_close(seen.steps[0][name], gradient)


class StopWithin(TrainerCallback):
    """Ends a run between the micro-batches of a step."""

    def on_substep_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


@pytest.mark.parametrize("callbacks", [[], [StopWithin()]], ids=["whole", "cut"])
def test_a_batch_by_hand_is_a_step_by_itself(tmp_path, callbacks):
    """`compute_loss` in a notebook, before training and after: the mean over the rows, however many make a step.

    Also where training was stopped within one.
    """
    trainer = new_trainer(
        tmp_path, METHODS["fixed"], losses=[CrossEntropy()], model=no_dropout(), gradient_accumulation_steps=2
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    batch = next(iter(trainer.get_train_dataloader()))
    plain = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}

    def agree():
        torch.testing.assert_close(
            trainer.compute_loss(trainer.model.train(), dict(batch)), trainer.model(**plain).loss
        )

    agree()
    trainer.train()
    agree()
    agree()


def test_logs_hold_the_parts(tmp_path):
    """Users tune by the parts of the loss and the spread of the weights.

    They must be finite plain numbers that JSON takes.
    """
    trainer = new_trainer(tmp_path, METHODS["network"])
    trainer.train()
    entry = trainer.state.log_history[0]
    assert {
        "loss_labels",
        "loss_teacher",
        "weight_labels_mean",
        "weight_teacher_p90",
        "meta_loss",
        "meta_skipped",
    } <= set(entry)
    assert json.loads(json.dumps(entry)) == entry


@pytest.mark.parametrize(
    ("objective", "formula"),
    [(CrossEntropy(), lambda p: -p.log()), (GeneralizedCrossEntropy(0.5), lambda p: (1 - p.sqrt()) / 0.5)],
)
def test_weights_learn_to_lower_the_objective(tmp_path, objective, formula):
    """What a meta step reports is the method's objective over the clean rows, with no label smoothed."""
    method = dataclasses.replace(amal(ExampleTable()), objective=objective)
    options = {"max_steps": 1, "logging_steps": 1, "meta_batch_size": 10, "label_smoothing_factor": 0.3}
    trainer = new_trainer(tmp_path, lambda: method, **options)
    clean = next(iter(trainer.get_eval_dataloader(trainer.meta_dataset)))
    with torch.no_grad():
        probability = trainer.model.eval()(**{**clean, "labels": None}).logits.softmax(-1)
    expected = formula(probability.gather(1, clean["labels"][:, None])).mean()
    trainer.train()
    assert trainer.state.log_history[0]["meta_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_rows_that_are_trusted_are_not_corrected(tmp_path):
    """Where every row is, a run on corrected labels is one on labels, with weights learned from clean rows alone too;
    where none is it is another.
    """

    def weights_of(loss, trusted):
        rows = toy_rows(24).add_column("checked", [trusted] * 24)
        trainer = new_trainer(tmp_path, amal, losses=[loss], train=rows)
        trainer.train()
        return torch.tensor(trainer.example_weights()["labels"][:])

    corrected = CorrectedCrossEntropy(torch.full((3, 3), 0.2) + 0.4 * torch.eye(3), trusted="checked")
    plain = weights_of(CrossEntropy(), True)
    assert torch.equal(weights_of(corrected, True), plain)
    assert not torch.allclose(weights_of(corrected, False), plain)


def test_meta_steps_follow_warm_up_and_interval(tmp_path):
    """12 steps, a quarter of them warm-up, every third: steps 3, 6 and 9."""
    trainer = new_trainer(
        tmp_path, METHODS["network"], max_steps=12, meta_warmup_steps=0.25, meta_interval=3, logging_steps=1
    )
    trainer.train()
    assert [entry["step"] - 1 for entry in trainer.state.log_history if "meta_loss" in entry] == [3, 6, 9]


def test_weights_follow_the_users_ids_through_shuffling(tmp_path):
    """`example_weights` must name examples as the user does, wherever they stood in the set."""
    rows = toy_rows(24).add_column("example_id", [f"row-{i}" for i in range(24)]).shuffle(seed=1)
    trainer = new_trainer(tmp_path, METHODS["random"], train=rows)
    trainer.train()
    weights = trainer.example_weights()
    assert weights["example_id"][:] == rows["example_id"][:]
    assert weights.column_names == ["example_id", "labels", "teacher"]
    sums = np.array(weights["labels"][:]) + np.array(weights["teacher"][:])
    np.testing.assert_allclose(sums, 1, rtol=1e-5)


def test_a_second_run_starts_over(tmp_path):
    """A search trains the same trainer again; what an earlier trial has learned must not leak into it."""
    trainer = AMALTrainer(
        model_init=lambda: tiny_bert(),
        args=toy_arguments(tmp_path, meta_interval=1),
        train_dataset=toy_rows(24),
        meta_dataset=toy_rows(10, 4),
        losses=[CrossEntropy(), Distillation(table_teacher(24))],
        method=amal(),
    )
    trainer.train()
    first = state_of(trainer)
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(first[:-1], state_of(trainer)[:-1], strict=True))


def test_two_trainers_do_not_share_what_one_learns(tmp_path):
    """A method is a recipe; what is learned belongs to the trainer."""
    method = amal()
    one = new_trainer(tmp_path, lambda: method)
    other = new_trainer(tmp_path, lambda: method)
    assert len({id(one.method.policy), id(other.method.policy), id(method.policy)}) == 3


def test_best_model_and_early_stopping(tmp_path):
    """The usual callbacks must find what they look for: no loss falls by as much as is asked for here."""
    trainer = new_trainer(
        tmp_path,
        METHODS["network"],
        callbacks=[EarlyStoppingCallback(1, early_stopping_threshold=1e9)],
        load_best_model_at_end=True,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        metric_for_best_model="loss",
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint is not None
    assert trainer.state.global_step == 4 < trainer.state.max_steps


@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("fixed", "random", RESTARTED, "token mask")]
)
def test_labels_that_are_wrong_lose_their_weight(tmp_path, name):
    """With 40 % wrong labels and a teacher that errs elsewhere, label weight must tell right rows from wrong ones."""
    rows = toy_rows(240)
    truth = torch.tensor(rows["labels"][:])
    wrong = torch.rand(240, generator=torch.Generator().manual_seed(0)) < 0.4
    noisy = rows.remove_columns("labels").add_column("labels", torch.where(wrong, (truth + 1) % 3, truth).tolist())
    unsure = torch.rand(240, 1, generator=torch.Generator().manual_seed(1)) < 0.4
    teacher = torch.nn.functional.one_hot(truth, 3) * 6.0 * ~unsure
    trainer = new_trainer(
        tmp_path,
        METHODS[name],
        train=noisy,
        losses=[CrossEntropy(), Distillation(lambda batch: teacher[batch["example_id"]])],
        max_steps=120,
        meta_interval=1,
        learning_rate=5e-3,
        per_device_train_batch_size=24,
        meta_batch_size=10,
    )
    trainer.train()
    assert auc(np.array(trainer.example_weights()["labels"][:]), ~wrong.numpy()) > 0.7
