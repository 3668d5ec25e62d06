"""What users switch on in `Trainer` works with a method on."""

import copy
import logging

import numpy as np
import pytest
import torch
from conftest import CHECKPOINTING, tiny_bert, toy_arguments, toy_rows
from generation import tiny_generator
from peft import LoraConfig, get_peft_model
from test_trainer import StopAt, new_trainer, state_of, table_teacher

from amal_hf import (
    AMALTrainer,
    CardDetails,
    CrossEntropy,
    Distillation,
    DoubleBackward,
    ExampleTable,
    FiniteDifference,
    ForwardMode,
    LastLayer,
    amal,
    deep_interactions,
    learning_to_reweight,
)
from amal_hf.run_facts import gather
from amal_hf.run_record import settings_of
from amal_hf.undisturbed import undisturbed


def trained(folder, model=None, method=amal, **options):
    trainer = new_trainer(folder, method, model=model, meta_interval=1, **options)
    trainer.train()
    assert np.isfinite(np.array(trainer.example_weights()["labels"][:])).any()
    return trainer


def test_activation_checkpointing_changes_no_number(tmp_path):
    """It trades memory for time; weights and student must come out as without it."""
    kwargs = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}}
    plain, checkpointed = trained(tmp_path), trained(tmp_path, **kwargs)
    for ours, theirs in zip(state_of(checkpointed), state_of(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_half_precision_and_checkpointing_go_together(tmp_path):
    """Layers that run again in the backward pass must run as they did, also where plain attention is the quicker."""
    kwargs = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}, "bf16": True}
    trained(tmp_path, tiny_bert(attn_implementation="sdpa"), **kwargs)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_checkpointing_is_on_in_the_meta_step_as_well(checkpointed):
    """Without it a student that only just fits would run out of memory in its first meta step: for a gradient each
    layer is run again. Nothing is in training mode all the same, and afterwards all is as before.
    """
    model, runs = tiny_bert().train(), []
    if checkpointed:
        getattr(model, f"{CHECKPOINTING}_enable")(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}})
    layers = model.bert.encoder.layer
    layers[0].attention.register_forward_hook(lambda *_: runs.append(1))
    ids = torch.tensor(toy_rows(2)["input_ids"])
    with undisturbed(model):
        assert not any(module.training for module in model.modules())
        model(ids, labels=torch.tensor([0, 1])).loss.backward()
        assert len(runs) == 1 + checkpointed
        with torch.no_grad():
            model(ids)
        assert len(runs) == 2 + checkpointed
    assert all(module.training for module in model.modules())
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("family", ["t5", "bart", "marian", "llama"])
def test_no_dropout_in_the_meta_step_of_checkpointed_students(family):
    """Many drop out by the mode of the very layers that are checkpointed, and the two sides of a difference would each
    drop others. A cache of the decoder is not written twice.
    """
    model, rows = tiny_generator(family), torch.arange(5, 25).view(2, 10)
    config = model.config
    for name in ("dropout", "attention_dropout", "activation_dropout", "dropout_rate"):
        if hasattr(config, name):
            setattr(config, name, 0.5)
    model = type(model)(config).train()

    def gradient():
        with undisturbed(model):
            loss = model(input_ids=rows, labels=rows).loss
            return loss.detach(), torch.autograd.grad(loss, model.get_output_embeddings().weight)[0]

    plain = gradient()
    getattr(model, f"{CHECKPOINTING}_enable")(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}})
    for _ in range(2):
        torch.testing.assert_close(gradient(), plain)


def test_torch_compile_changes_no_number(tmp_path):
    """The meta step takes no second derivative, so a compiled student can stay compiled."""
    model = lambda: tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # noqa: E731
    compiled = trained(tmp_path, model(), torch_compile=True, torch_compile_backend="aot_eager", max_steps=3)
    plain = trained(tmp_path, model(), max_steps=3)
    for ours, theirs in zip(state_of(compiled), state_of(plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3, equal_nan=True)


TANGENTS = [FiniteDifference(), ForwardMode(), DoubleBackward(), LastLayer()]


@pytest.mark.parametrize("tangent", TANGENTS, ids=lambda tangent: type(tangent).__name__)
def test_bf16_finds_nearly_the_same_weights(tmp_path, tangent):
    """Under autocast too every way of measuring slopes works; finite differences take a wider radius. The weights must
    be close to those in full precision.
    """
    runs = (
        trained(
            tmp_path, tiny_bert(attn_implementation="eager"), lambda: amal(tangent=copy.deepcopy(tangent)), bf16=bf16
        )
        for bf16 in (True, False)
    )
    half, full = runs
    difference = np.abs(np.array(half.example_weights()["labels"][:]) - np.array(full.example_weights()["labels"][:]))
    assert difference.mean() < 0.05


def with_adapters():
    return get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))


def with_a_frozen_encoder():
    model = tiny_bert()
    model.base_model.requires_grad_(False)
    return model


@pytest.mark.parametrize("student", [with_adapters, with_a_frozen_encoder])
def test_students_of_which_a_part_is_trained(tmp_path, student):
    """Only trainable parameters move, the frozen ones keep their bits, and weights are learned all the same."""
    model = student()
    before = {name: p.clone() for name, p in model.named_parameters()}
    weights = np.array(trained(tmp_path, model=model).example_weights()["labels"][:])
    assert all(torch.equal(p, before[name]) != p.requires_grad for name, p in model.named_parameters())
    assert np.nanstd(weights) > 0


def test_a_smaller_batch_after_running_out_of_memory_starts_over(tmp_path):
    """`auto_find_batch_size` tries again with half the batch; learned weights must begin anew with it, and card and
    report say what fitted in the end.
    """
    attempts = []

    def hungry(outputs, batch):
        attempts.append(len(outputs.logits))
        if outputs.logits.requires_grad and len(outputs.logits) > 4:
            raise RuntimeError("CUDA out of memory.")
        return outputs.logits.square().sum(1)

    options = {"auto_find_batch_size": True, "per_device_train_batch_size": 8}
    run = trained(tmp_path, losses=[CrossEntropy(), hungry], **options)
    assert max(attempts) == 8
    assert attempts[-1] <= 4
    fitted = run.state.train_batch_size
    assert fitted <= 4 and settings_of(run)["examples per step"] == fitted
    assert gather(run, CardDetails()).hyperparameters["per_device_train_batch_size"] == fitted


def test_hyperparameter_search_reaches_the_options(tmp_path):
    """Options are fields of the arguments, so that a search can set them.

    Every trial starts from the initial mixture.
    """
    pytest.importorskip("optuna")
    trainer = AMALTrainer(
        model_init=lambda: tiny_bert(),
        args=toy_arguments(tmp_path, max_steps=2),
        train_dataset=toy_rows(24),
        eval_dataset=toy_rows(8, 2),
        meta_dataset=toy_rows(10, 4),
        losses=[CrossEntropy(), Distillation(table_teacher(24))],
        method=amal(),
    )
    seen = []
    trainer.add_callback(Watch(trainer, seen))
    trainer.hyperparameter_search(
        lambda trial: {"meta_learning_rate": trial.suggest_categorical("meta_learning_rate", [0.125])},
        n_trials=2,
        backend="optuna",
    )
    assert seen == [(0.125, 0.5)] * 2


def searched(folder, method, options, **given):
    """A trainer that was made with some arguments, after one trial with others."""
    pytest.importorskip("optuna")
    trainer = AMALTrainer(
        model_init=lambda: tiny_bert(),
        args=toy_arguments(folder, **given),
        train_dataset=toy_rows(24),
        eval_dataset=toy_rows(8, 2),
        meta_dataset=toy_rows(10, 4),
        method=method,
    )
    best = trainer.hyperparameter_search(lambda trial: trial.suggest_int("n", 1, 1) and options, n_trials=1)
    return trainer, best.objective


def test_after_a_search_there_is_nothing_to_publish(tmp_path):
    """It keeps no student of its trials: a card and a push say what to do, and do after it was done."""
    trainer, _ = searched(tmp_path, amal(), {"learning_rate": 1e-3})
    for publish in (trainer.create_model_card, trainer.push_to_hub):
        with pytest.raises(ValueError, match="search .* call train"):
            publish()
    trainer.train()
    trainer.create_model_card()
    assert (tmp_path / "README.md").is_file()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_trial_smooths_labels_as_it_was_told(tmp_path, smoothing):
    """`Trainer` reads that argument when it is made: a trial is the run of a trainer that was made with its options,
    in its weights and in its objective.
    """
    trainer, objective = searched(tmp_path, amal(), {"label_smoothing_factor": smoothing}, label_smoothing_factor=0.1)
    made, same = searched(tmp_path, amal(), {}, label_smoothing_factor=smoothing)
    assert objective == same
    assert trainer.example_weights()[:] == made.example_weights()[:]


@pytest.mark.parametrize(
    ("method", "message"),
    [(learning_to_reweight, "every step needs its slopes; meta_interval is 3"), (deep_interactions, "every 3")],
)
def test_a_trial_that_could_not_learn_is_refused(tmp_path, method, message):
    """What is refused of a new trainer: weights of another step were used, or none were ever learned."""
    with pytest.raises(ValueError, match=message):
        searched(tmp_path, method(), {"meta_interval": 3}, max_steps=12)


class Watch(StopAt):
    """At the start of every run: the policy's learning rate and the label weight."""

    def __init__(self, trainer, seen):
        super().__init__(99)
        self.trainer = trainer
        self.seen = seen

    def on_train_begin(self, args, state, control, **kwargs):
        policy = self.trainer.mixture.policy
        start = policy.normalisation(policy.network[-1].bias)
        self.seen.append((policy.optimizer.param_groups[0]["lr"], round(start[0].item(), 6)))


@pytest.mark.parametrize("method", [amal, lambda: amal(ExampleTable())], ids=["network", "table"])
def test_streams_with_their_own_ids(tmp_path, method):
    """A stream has no row numbers; its own ids name the examples in the weights."""
    ids = [1000 + i for i in range(24)]
    stream = toy_rows(24).add_column("example_id", ids).to_iterable_dataset()
    teacher = lambda batch: torch.zeros(len(batch["example_id"]), 3)  # noqa: E731
    trainer = trained(tmp_path, train=stream, method=method, losses=[CrossEntropy(), Distillation(teacher)])
    assert sorted(trainer.example_weights()["example_id"][:]) == ids


def test_streams_without_ids(tmp_path):
    """A network needs no ids; a table does, and says so before training."""
    stream = toy_rows(24).to_iterable_dataset()
    new_trainer(tmp_path, amal, train=stream, losses=[CrossEntropy()]).train()
    with pytest.raises(ValueError, match="column 'example_id'"):
        new_trainer(tmp_path, lambda: amal(ExampleTable()), train=stream, losses=[CrossEntropy()])


def test_torch_datasets_and_workers(tmp_path):
    """Ids are added to any map-style dataset and come through worker processes."""

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, row):
            return {key: torch.tensor(value) for key, value in rows[row].items()}

    rows = toy_rows(24)
    options = {"max_steps": -1, "num_train_epochs": 1}
    ours = trained(tmp_path, train=Rows(), dataloader_num_workers=2, **options)
    theirs = trained(tmp_path, train=rows, **options)
    for a, b in zip(state_of(ours), state_of(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_users_own_loss(tmp_path):
    """A plain function is a loss under its own name."""

    def confidence(outputs, batch):
        return outputs.logits.square().mean(1)

    trainer = trained(tmp_path, losses=[CrossEntropy(), confidence])
    assert trainer.example_weights().column_names == ["example_id", "labels", "confidence"]


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_teacher_models(tmp_path, cached, caplog):
    """`teacher_model=` takes one model or several, live or cached; each has its own weight column."""
    options = {"teacher_cache_dir": str(tmp_path / "cache")} if cached else {}
    teachers = [tiny_bert(5), tiny_bert(6)]
    trainer = AMALTrainer(
        model=tiny_bert(),
        args=toy_arguments(tmp_path, **options),
        train_dataset=toy_rows(24),
        meta_dataset=toy_rows(8, 4),
        teacher_model=teachers,
        method=amal(),
    )
    trainer.train()
    assert trainer.example_weights().column_names == ["example_id", "labels", "teacher", "teacher_2"]
    assert not any(p.requires_grad for p in teachers[0].parameters())


def test_live_and_cached_teachers_train_the_same_student(tmp_path):
    """A cache is a matter of speed, not of numbers."""
    runs = []
    for options in ({}, {"teacher_cache_dir": str(tmp_path / "cache")}):
        trainer = AMALTrainer(
            model=tiny_bert(),
            args=toy_arguments(tmp_path, **options),
            train_dataset=toy_rows(24),
            meta_dataset=toy_rows(8, 4),
            teacher_model=tiny_bert(5),
            method=amal(),
        )
        trainer.train()
        runs.append(state_of(trainer))
    for ours, theirs in zip(*runs, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_student_as_its_own_teacher(tmp_path):
    """Self-distillation: a frozen copy of the student as it is now."""
    student = tiny_bert()
    trainer = AMALTrainer(
        model=student, args=toy_arguments(tmp_path), train_dataset=toy_rows(24), teacher_model=student
    )
    trainer.train()
    assert all(p.requires_grad for p in student.parameters())
    assert trainer.state.log_history[0]["loss_teacher"] > 0


def test_no_meta_step_is_a_log_only(tmp_path, caplog):
    """Nothing that a run logs at warning level comes from us when all is well."""
    with caplog.at_level(logging.WARNING, logger="amal_hf"):
        trained(tmp_path)
    assert not [record for record in caplog.records if record.name.startswith("amal_hf")]
