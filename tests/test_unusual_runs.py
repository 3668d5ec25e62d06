"""Runs that few people set up and that must be right all the same, or be refused by name."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, tiny_bert, toy_arguments, toy_rows
from datasets import Dataset, DatasetDict, IterableDataset
from generation import tiny_generator
from test_teachers import tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    default_data_collator,
)

from amal_hf import (
    AMALTrainer,
    CrossEntropy,
    CustomLoss,
    Distillation,
    ExampleTable,
    FixedWeights,
    LabelBlend,
    LastLayer,
    LossNetwork,
    Method,
    NeumannDirection,
    RectifiedSlopes,
    SGDDirection,
    TokenMask,
    Trajectory,
    amal,
    commentaries,
    deep_interactions,
    learning_to_reweight,
    student_from_teacher,
)
from amal_hf.generators import answers_by_token, is_causal, is_encoder_decoder
from amal_hf.learner import WeightLearner
from amal_hf.model_labels import class_count
from amal_hf.state import STATE_NAME
from amal_hf.tokens import token_means


MASKED = ("input_ids", "attention_mask")


def new_trainer(folder, method=None, train=None, losses=None, model=None, meta=None, collator=None, **options):
    return AMALTrainer(
        tiny_bert() if model is None else model,
        toy_arguments(folder, **options),
        train_dataset=toy_rows(24) if train is None else train,
        meta_dataset=toy_rows(12, seed=1) if meta is None else meta,
        eval_dataset=toy_rows(8, seed=2),
        data_collator=collator,
        losses=[CrossEntropy()] if losses is None else losses,
        method=amal() if method is None else method,
    )


# ---- which example is which ----


class OwnLoader(AMALTrainer):
    """A trainer whose batches come from somewhere else."""

    def get_train_dataloader(self):
        rows = toy_rows(24).with_format("torch")
        return self.accelerator.prepare(torch.utils.data.DataLoader(rows, batch_size=4))


def stream():
    yield from toy_rows(24)


@pytest.mark.parametrize("method", [learning_to_reweight, lambda: amal(ExampleTable())], ids=["moment", "table"])
def test_examples_that_cannot_be_told_apart_are_refused(tmp_path, method):
    """Weights by example need to know which example is which; without ids they would all be one."""
    unknown = IterableDataset.from_generator(stream)
    with pytest.raises(ValueError, match="keeps weights by example, and a training batch has no column 'example_id'"):
        new_trainer(tmp_path, method(), train=unknown).train()
    with pytest.raises(ValueError, match="has no column 'example_id'"):
        OwnLoader(
            tiny_bert(),
            toy_arguments(tmp_path),
            train_dataset=toy_rows(24),
            meta_dataset=toy_rows(12),
            losses=[CrossEntropy()],
            method=method(),
        ).train()


def test_rows_made_by_a_function_keep_their_numbers(tmp_path):
    """A dataset with a transform has whatever columns the function makes; its weights are those of the plain rows."""
    plain = toy_rows(24)
    raw = plain.rename_column("labels", "label").add_column("example_id", [f"row {n}" for n in range(24)])
    made = raw.with_transform(
        lambda batch: {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "labels": batch["label"],
        }
    )
    runs = []
    for name, rows in (("plain", plain), ("made", made)):
        options = {"remove_unused_columns": False, "collator": default_data_collator}
        runs.append(new_trainer(tmp_path / name, train=rows, meta=rows, **options))
        runs[-1].train()
    ours, theirs = (run.example_weights() for run in runs)
    assert theirs["example_id"][:2] == ["row 0", "row 1"]
    assert ours["labels"][:] == theirs["labels"][:]


def test_a_replaced_training_set_is_refused(tmp_path):
    """Its rows have no numbers, and a cache holds the teacher's answers for others."""
    trainer = new_trainer(tmp_path)
    trainer.train_dataset = toy_rows(24, seed=5)
    with pytest.raises(ValueError, match="train_dataset was replaced"):
        trainer.train()


def test_names_as_ids_do_no_harm_outside_the_training_set(tmp_path):
    """Meta and evaluation rows may carry ids that are text."""
    named = toy_rows(12, seed=1).add_column("example_id", [f"row {n}" for n in range(12)])
    trainer = new_trainer(tmp_path, meta=named)
    trainer.train()
    assert trainer.evaluate(named)["eval_loss"] > 0


def test_a_collator_that_packs_rows_is_refused(tmp_path):
    """Weights belong to examples, and a batch must have a row for each."""

    def packed(rows):
        batch = default_data_collator(rows)
        return {name: value.reshape(1, -1) for name, value in batch.items()}

    with pytest.raises(ValueError, match="made a batch of 1 rows from 4 examples"):
        new_trainer(tmp_path, Method("fixed", amal().policy), collator=packed).train()


# ---- students ----


class MyWriter(type(tiny_generator("gpt2"))):
    """A language model of a user's own."""


class MyTranslator(type(tiny_generator("bart"))):
    """A translator of a user's own."""


class MyTagger(BertForTokenClassification):
    """A tagger of a user's own."""


class Wrapped(type(tiny_bert())):
    """A classifier of a user's own that hands on whatever it is given."""

    def forward(self, **inputs):
        return super().forward(**inputs)


def test_inputs_that_a_forward_does_not_name(tmp_path):
    """Where columns are kept it gets those of its tokenizer, as with `Trainer`, and trains as if it named them."""
    weights = []
    for kind in (type(tiny_bert()), Wrapped):
        student = kind(tiny_bert().config)
        student.load_state_dict(tiny_bert().state_dict())
        trainer = AMALTrainer(
            student,
            toy_arguments(tmp_path, remove_unused_columns=False, label_names=["labels"]),
            train_dataset=toy_rows(24),
            meta_dataset=toy_rows(12, seed=1),
            data_collator=default_data_collator,
            processing_class=tokenizer(),
            method=amal(),
        )
        trainer.train()
        weights.append(trainer.example_weights()["labels"][:])
    assert weights[0] == weights[1]


def test_classes_derived_from_known_ones_are_known():
    """A subclass reads its labels as its parent does; code that came with a model says so by its loss."""
    writer, translator = MyWriter(tiny_generator("gpt2").config), MyTranslator(tiny_generator("bart").config)
    assert is_causal(writer) and not is_encoder_decoder(writer) and class_count(writer) == writer.config.vocab_size
    assert is_encoder_decoder(translator) and not is_causal(translator)
    assert answers_by_token(MyTagger(tiny_bert().config)) and not answers_by_token(tiny_bert())
    remote = tiny_bert()
    remote.loss_type = "ForCausalLM"
    assert is_causal(remote)


def test_a_masked_language_model_learns(tmp_path):
    """Its labels are words, which the collator chooses."""
    student, words = tiny_bert(head=BertForMaskedLM), tokenizer()
    words.add_special_tokens({"mask_token": "[MASK]"})
    collator = DataCollatorForLanguageModeling(words, mlm_probability=0.5)
    rows, meta = (toy_rows(16, seed=seed).remove_columns("labels") for seed in (0, 1))
    whole = toy_rows(16).map(lambda row: {"labels": row["input_ids"]})
    for train, clean, collate in ((rows, meta, collator), (whole, whole, default_data_collator)):
        trainer = new_trainer(tmp_path, amal(), train=train, meta=clean, model=student, collator=collate)
        trainer.train()
        assert trainer.state.log_history[-1]["train_loss"] > 1


@pytest.mark.parametrize("method", [amal, deep_interactions, learning_to_reweight, lambda: amal(ExampleTable())])
def test_multiple_choice(tmp_path, method):
    """A checkpoint says nothing of how many choices there are, and `num_labels` stays at two; a label is a place, and
    no class whose rows are counted.
    """

    def rows(count):
        ids = torch.randint(5, VOCABULARY, (count, 4, 6), generator=torch.Generator().manual_seed(count))
        labels = [number % 4 for number in range(count)]
        return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels})

    teacher = Distillation(lambda batch: torch.eye(4)[batch["labels"]])
    student = BertForMultipleChoice(tiny_bert(num_labels=2).config)
    losses = [CrossEntropy(), teacher]
    trainer = new_trainer(tmp_path, method(), rows(24), losses, student, rows(12), max_steps=8)
    trainer.eval_dataset = rows(8)
    trainer.train()
    weights = trainer.example_weights().with_format("torch")
    assert weights["labels"][:].isfinite().all() and weights["labels"][:].std() > 0
    assert trainer.evaluate()["eval_loss"] > 0 and class_count(trainer.model) == 0


def test_longer_logits_than_labels_are_refused():
    """Prompt tuning puts tokens before the text; taking their logits for those of words would train on nonsense."""
    with pytest.raises(ValueError, match=r"logits are for \(2, 7\) .* labels for \(2, 5\)"):
        token_means(lambda rows, places: rows[:, 0], torch.zeros(2, 7, 3), torch.ones(2, 5, dtype=torch.bool))


def test_running_statistics_are_those_of_the_student_alone(tmp_path):
    """Walking back through steps runs the student again; its batch norm has seen each batch once."""

    class Normed(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.norm = layer, nn.BatchNorm1d(layer.in_features)

        def forward(self, hidden):
            return self.layer(self.norm(hidden))

    student = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    student.classifier = Normed(student.classifier)
    new_trainer(tmp_path, deep_interactions(), model=student, max_steps=11).train()
    assert student.classifier.norm.num_batches_tracked == 11


@pytest.mark.parametrize("family", ["gpt2", "llama", "bart"])
def test_classifiers_that_read_forward_cannot_have_their_embeddings_changed(tmp_path, family):
    """They look for a text's last token by its number, and would answer at the padding; on the left there is none."""
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        num_labels=3,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    student = AutoModelForSequenceClassification.from_config(config)
    mask = TokenMask(torch.randn(VOCABULARY, 8), [0])
    with pytest.raises(ValueError, match="cannot see where a text ends"):
        new_trainer(tmp_path, commentaries(mask), model=student)
    if family != "bart":
        left = tokenizer()
        left.padding_side = "left"
        sets = {"train_dataset": toy_rows(8), "meta_dataset": toy_rows(8)}
        AMALTrainer(student, toy_arguments(tmp_path), **sets, method=commentaries(mask), processing_class=left)


def test_a_student_writes_as_its_teacher_does():
    """The settings of generation go with the layers."""
    teacher = tiny_generator("gpt2", n_layer=2)
    teacher.generation_config.max_new_tokens = 7
    assert student_from_teacher(teacher, 1).generation_config.max_new_tokens == 7


# ---- losses and teachers ----


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cache_of_what_padding_changes_is_refused(tmp_path, side):
    """Positions counted from the left differ with the padding there; the live teacher would say something else."""
    teacher = tiny_generator("gpt2").config
    teacher.num_labels, teacher.pad_token_id = 3, 0
    teacher = AutoModelForSequenceClassification.from_config(teacher)
    with torch.no_grad():
        teacher.transformer.wpe.weight.mul_(20)
    words = tokenizer()
    words.padding_side = side
    rows = toy_rows(8).map(lambda row, n: {name: row[name][: 3 + n] for name in MASKED}, with_indices=True)
    losses = [CrossEntropy(), Distillation(teacher)]
    options = {"losses": losses, "teacher_cache_dir": str(tmp_path / "cache")}

    def build():
        return new_trainer(tmp_path, train=rows, collator=DataCollatorWithPadding(words), **options)

    if side == "right":
        assert build().mixture.distillations
    else:
        with pytest.raises(ValueError, match="depend on how far it is padded"):
            build()


def test_a_list_of_losses_may_serve_two_trainers(tmp_path):
    """Each trainer has its own teacher's answers for its own rows."""
    teacher, losses = tiny_bert(1).eval(), [CrossEntropy(), Distillation(tiny_bert(1))]
    first, second = (
        new_trainer(
            tmp_path / str(seed), train=toy_rows(24, seed), losses=losses, teacher_cache_dir=str(tmp_path / "cache")
        )
        for seed in (3, 4)
    )
    for trainer, seed in ((first, 3), (second, 4)):
        batch = {"example_id": torch.arange(4), **toy_rows(24, seed).with_format("torch")[:4]}
        cached = trainer.mixture.prepare(batch)["teacher_logits"]
        expected = teacher(batch["input_ids"], batch["attention_mask"]).logits
        torch.testing.assert_close(cached, expected.detach(), rtol=1e-4, atol=1e-5)


def test_a_module_that_gives_logits_is_a_teacher(tmp_path):
    """Any callable of a batch is one, modules too."""

    class Constant(nn.Module):
        def forward(self, batch):
            return torch.zeros(len(batch["labels"]), 3)

    trainer = new_trainer(tmp_path, losses=[CrossEntropy(), Distillation(Constant())])
    trainer.train()
    assert trainer.state.global_step == 6


def test_adapters(tmp_path):
    """A student with adapters takes a teacher by name, or the model that the adapters were put into: a copy of it,
    since freezing it would freeze the student. A teacher with adapters reads all that the model in it does.
    """
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2)
    tiny_bert(1).save_pretrained(tmp_path / "teacher")
    base = tiny_bert()
    student = peft.get_peft_model(base, config)
    for source in (str(tmp_path / "teacher"), base, student):
        trainer = new_trainer(tmp_path / "out", model=student, losses=[CrossEntropy(), Distillation(source)])
        trainer.train()
        assert any(p.requires_grad for p in student.parameters())
    teacher = peft.get_peft_model(tiny_bert(2), config).eval()
    trainer = new_trainer(tmp_path / "out", losses=[CrossEntropy(), Distillation(teacher)])
    batch = toy_rows(4).with_format("torch")[:4] | {"token_type_ids": torch.ones(4, 10, dtype=torch.long)}
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert torch.equal(trainer.mixture.prepare({**batch})["teacher_logits"], teacher(**given).logits.detach())


def test_a_loss_that_reads_labels_leaves_them_to_evaluation(tmp_path):
    """Columns of losses are kept from the student, not labels from its evaluation."""

    def focal(outputs, batch):
        return nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none")

    trainer = new_trainer(tmp_path, losses=[CustomLoss(focal, "focal", columns=("labels",))])
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_loss_that_reads_the_students_inputs_leaves_them_to_the_collator(tmp_path):
    """Taken off the rows, an attention mask would be filled up with -100."""

    def masks(outputs, batch):
        assert set(batch["attention_mask"].unique().tolist()) == {0, 1}
        return outputs.logits.square().mean(1)

    rows = toy_rows(24).map(lambda row, number: {"attention_mask": [1] * (5 + number % 5)}, with_indices=True)
    rows = rows.map(lambda row: {"input_ids": row["input_ids"][: len(row["attention_mask"])]})
    losses = [CustomLoss(masks, "masks", columns=("attention_mask",))]
    new_trainer(tmp_path, train=rows, losses=losses, collator=DataCollatorWithPadding(tokenizer())).train()


def test_an_objective_may_read_a_column_of_its_own(tmp_path):
    """The meta set may have its clean labels under another name than the training set its noisy ones."""
    meta = toy_rows(12, seed=1).rename_column("labels", "gold")
    logs = []
    for column, rows in (("gold", meta), ("labels", meta.rename_column("gold", "labels"))):
        method = replace(amal(LossNetwork(probe=False)), objective=CrossEntropy(column, column=column))
        trainer = new_trainer(tmp_path, method, meta=rows)
        trainer.train()
        logs.append([entry.get("meta_loss") for entry in trainer.state.log_history])
    assert logs[0] == logs[1]


def test_a_stream_that_ends_within_a_step_leaves_its_last_rows_to_the_next_pass(tmp_path, monkeypatch):
    """`Trainer` takes no step on them, and would add their gradient to that of other rows; a trajectory would take
    them for part of the step before.
    """
    seen = []
    learn = WeightLearner.learn_from_trajectory

    def spy(learner, recorder, student, meta_batch):
        seen.append([sum(len(batch["example_id"]) for batch in step.batches) for step in recorder.steps])
        return learn(learner, recorder, student, meta_batch)

    monkeypatch.setattr(WeightLearner, "learn_from_trajectory", spy)
    stream = toy_rows(22).add_column("example_id", range(22)).to_iterable_dataset()
    method = deep_interactions(trajectory=Trajectory(2))
    new_trainer(tmp_path, method, train=stream, gradient_accumulation_steps=4, max_steps=6).train()
    assert seen == [[16, 16], [16, 16]]


def test_labels_of_another_column_are_shifted_for_tokens_too(tmp_path):
    """A second column that says the same as the labels is the same loss, whether tokens or examples are weighed."""
    from generation import collator, pairs

    rows = pairs(12, "gpt2").map(lambda row: {"other": row["labels"]})
    logs = []
    for per_token in (False, True):
        trainer = AMALTrainer(
            tiny_generator("gpt2"),
            toy_arguments(tmp_path, logging_steps=1, max_steps=2, learning_rate=0.0),
            train_dataset=rows,
            meta_dataset=pairs(6, "gpt2", seed=1),
            data_collator=collator(),
            losses=[CrossEntropy(), CrossEntropy("other", column="other")],
            method=replace(amal(), per_token=per_token),
        )
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for entry in logs:
        assert entry["loss_other"] == pytest.approx(entry["loss_labels"], rel=1e-5)
    assert logs[1]["loss_labels"] == pytest.approx(logs[0]["loss_labels"], rel=0.05)


# ---- what goes wrong on the way ----


class OwnLoss(AMALTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**{name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}).loss


class MoreLoss(AMALTrainer):
    def compute_loss(self, *args, **kwargs):
        return 2 * super().compute_loss(*args, **kwargs)


def test_a_loss_that_is_computed_past_the_mixture_is_refused(tmp_path):
    """Losses and method would do nothing, and meta steps cost all the same; what goes on from the mixture is fine."""
    given = {"train_dataset": toy_rows(8), "meta_dataset": toy_rows(8, seed=1)}
    with pytest.raises(RuntimeError, match="OwnLoss.compute_loss made a loss of its own"):
        OwnLoss(tiny_bert(), toy_arguments(tmp_path), method=amal(), **given).train()
    OwnLoss(tiny_bert(), toy_arguments(tmp_path), train_dataset=toy_rows(8)).train()
    MoreLoss(tiny_bert(), toy_arguments(tmp_path), method=amal(), **given).train()


def test_a_teacher_that_has_lost_its_mind_is_refused(tmp_path):
    """Its NaN would be the student's after one step, and a short run logs nothing on the way."""
    teacher = tiny_bert(seed=1)
    teacher.classifier.weight.data.fill_(float("nan"))
    trainer = new_trainer(tmp_path, losses=[CrossEntropy(), Distillation(teacher)])
    with pytest.raises(ValueError, match="teacher's logits are NaN on the first batch"):
        trainer.train()


def test_a_loss_that_is_lost_is_named(tmp_path, caplog):
    """Not the sum alone, which `Trainer` shows as 0."""

    def lost(outputs, batch):
        return outputs.logits.sum(1) * float("nan")

    new_trainer(tmp_path, losses=[CrossEntropy(), lost], max_steps=1).train()
    assert "The mean of 'lost' is NaN or infinite" in caplog.text


def test_a_run_shorter_than_the_first_log_shows_its_parts_at_the_end(tmp_path):
    """With `Trainer`'s 500 steps from log to log nothing would ever be seen of many runs."""
    trainer = new_trainer(tmp_path, logging_steps=500)
    trainer.train()
    (entry,) = trainer.state.log_history
    assert {"train_loss", "loss_labels", "weight_labels_mean", "meta_loss"} <= entry.keys()


def test_weights_of_a_stream_without_numbers_are_known_to_be_missing(tmp_path, caplog):
    """An empty dataset would be taken for a fault of the training set."""
    trainer = new_trainer(tmp_path, train=toy_rows(24).to_iterable_dataset())
    trainer.train()
    assert len(trainer.example_weights()) == 0
    assert "Training batches have no whole numbers in a column 'example_id'" in caplog.text


def test_weights_of_batches_without_numbers_are_said_to_be_nobodys(tmp_path, caplog):
    """A data loader of one's own over the rows as they were; a stream that brings numbers is told nothing."""
    given = {"meta_dataset": toy_rows(12, seed=1), "losses": [CrossEntropy()], "method": amal()}
    OwnLoader(tiny_bert(), toy_arguments(tmp_path), train_dataset=toy_rows(24), **given).train()
    assert caplog.text.count("it is not known which examples they hold") == 1
    caplog.clear()
    rows = toy_rows(24).add_column("example_id", range(100, 124)).to_iterable_dataset()
    trainer = new_trainer(tmp_path, train=rows)
    trainer.train()
    assert len(trainer.example_weights()) == 24 and not caplog.text


class Returns(type(tiny_bert())):
    """A classifier of a user's own whose outputs are none of `transformers`."""

    def __init__(self, kind):
        super().__init__(tiny_bert().config)
        self.kind = kind

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = super().forward(input_ids, attention_mask).logits
        return {"logits": logits} if self.kind is dict else (logits,)


@pytest.mark.parametrize("kind", [dict, tuple])
@pytest.mark.parametrize(
    "method",
    [amal, lambda: amal(tangent=LastLayer()), lambda: Method("fixed", FixedWeights())],
    ids=["all layers", "the last", "fixed"],
)
def test_outputs_that_losses_cannot_read_are_refused(tmp_path, kind, method):
    """`Trainer` takes them; the message says what to return."""
    with pytest.raises(TypeError, match=f"returned a {kind.__name__}. Return a ModelOutput"):
        new_trainer(tmp_path, method(), model=Returns(kind)).train()


class OwnModule(nn.Module):
    """A student that has a configuration and is none of `transformers`."""

    def __init__(self):
        super().__init__()
        self.inner, self.config = tiny_bert(), SimpleNamespace(num_labels=3, id2label={0: "a", 1: "b", 2: "c"})

    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.inner(input_ids, attention_mask, labels=labels)


def test_a_module_with_a_configuration(tmp_path):
    """Of a configuration no more is read than classes and their names; the run has a card as any other."""
    trainer = new_trainer(tmp_path, model=OwnModule())
    trainer.train()
    trainer.create_model_card()
    assert "OwnModule" in (tmp_path / "README.md").read_text()
    assert np.isfinite(trainer.example_weights()["labels"][:]).all()


# ---- what is kept ----


def test_nothing_is_kept_that_nobody_will_ask_for(tmp_path):
    """Teachers' logits end with their step, statistics with their log, copies of the student with their trajectory:
    they would stay on the device, and go into every checkpoint.
    """
    losses = [CrossEntropy(), Distillation(tiny_bert(seed=1))]
    trainer = new_trainer(tmp_path, losses=losses, logging_strategy="no", meta_interval=1, max_steps=5)
    trainer.train()
    assert not trainer._window.prepared and "meta_loss" not in trainer.state.log_history[-1]
    trainer = new_trainer(tmp_path, deep_interactions(trajectory=Trajectory(2)), meta_interval=4, max_steps=6)
    trainer.train()
    recorder = trainer._learner.recorder
    assert not recorder.steps and not recorder.trajectory.rewind.state_dict()


def test_a_meta_batch_that_leaves_nothing_to_read_is_warned_of(tmp_path, caplog):
    """The probe is never asked about rows that it has been fitted to; of 32 no smaller batch leaves enough."""
    for rows, size, warned in ((40, 40, True), (40, 8, False), (33, 2, True), (32, 1, False)):
        caplog.clear()
        new_trainer(tmp_path, meta=toy_rows(rows, seed=1), meta_batch_size=size)
        assert (f"A meta batch of {size} of the {rows} clean rows leaves less than 32" in caplog.text) == warned


# ---- optimizers ----


class Averaged(torch.optim.SGD):
    """Evaluates at other parameters than it trains at, as schedule-free optimizers do."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.trains = True
        self.others = [p.detach().clone() for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def _swap(self, trains):
        if trains != self.trains:
            for parameter, other in zip(self.param_groups[0]["params"], self.others, strict=True):
                kept = other.clone()
                other.copy_(parameter)
                parameter.copy_(kept)
        self.trains = trains

    def train(self):
        self._swap(True)

    def eval(self):
        self._swap(False)


@pytest.mark.parametrize("method", [lambda: amal(ExampleTable()), learning_to_reweight], ids=["table", "moment"])
def test_weights_are_learned_where_a_schedule_free_student_trains(tmp_path, method):
    """And not at the parameters of an evaluation that came before: it changes nothing in a run."""
    runs = []
    for strategy in ("no", "steps"):
        student = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        trainer = AMALTrainer(
            student,
            toy_arguments(tmp_path, eval_strategy=strategy, eval_steps=1, max_grad_norm=0.0),
            train_dataset=toy_rows(24),
            meta_dataset=toy_rows(12, seed=1),
            eval_dataset=toy_rows(4, seed=2),
            optimizers=(Averaged(student.parameters(), lr=0.1), None),
            method=method(),
        )
        trainer.train()
        runs.append(trainer.example_weights()["labels"][:])
    assert runs[0] == runs[1]


# ---- methods ----


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (lambda: Method("phases", ExampleTable(), phase_epochs=10), {"max_steps": -1, "num_train_epochs": 1}),
        (amal, {"meta_warmup_steps": 100}),
    ],
    ids=["phases", "warm-up"],
)
def test_a_run_that_will_learn_nothing_says_so(tmp_path, caplog, method, options):
    """Phases that come too late, and a warm-up as long as the run."""
    new_trainer(tmp_path, method(), **options).train()
    assert "will learn nothing in this run" in caplog.text


def test_a_meta_set_that_is_not_used_is_warned_of(tmp_path, caplog):
    """With fixed weights, and with nothing switched on at all."""
    with caplog.at_level(logging.WARNING):
        AMALTrainer(tiny_bert(), toy_arguments(tmp_path), train_dataset=toy_rows(8), meta_dataset=toy_rows(8))
        AMALTrainer(
            tiny_bert(),
            toy_arguments(tmp_path),
            train_dataset=toy_rows(8),
            meta_dataset=toy_rows(8),
            losses=[CrossEntropy()],
        )
    assert caplog.text.count("The meta set is not used") == 2


def test_the_rate_of_a_batch_policy_can_be_set(tmp_path):
    """`meta_learning_rate` is that of whatever learns."""
    trainer = new_trainer(tmp_path, commentaries(LabelBlend(3)), meta_learning_rate=0.5)
    assert trainer.method.batch_policy.optimizer.param_groups[0]["lr"] == 0.5


def test_a_checkpoint_given_as_a_path_is_that_checkpoint(tmp_path):
    """And not the newest one."""
    new_trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    resumed = new_trainer(tmp_path, save_strategy="steps", save_steps=2)
    steps = []
    resumed.training_step = lambda *given: steps.append(1) or AMALTrainer.training_step(resumed, *given)
    resumed.train(resume_from_checkpoint=Path(tmp_path) / "checkpoint-2")
    assert len(steps) == 4


@pytest.mark.parametrize(
    ("rows", "seed", "warned"), [(12, 1, False), (12, 7, True), (13, 1, True)], ids=["same", "other rows", "more rows"]
)
def test_a_run_that_is_resumed_with_another_meta_set_says_so(tmp_path, caplog, rows, seed, warned):
    """A split that is drawn anew makes clean rows of rows that were trained on. The order of batches is no other set,
    and what an older checkpoint does not say is not held against it.
    """
    new_trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    resumed = new_trainer(tmp_path, meta=toy_rows(rows, seed), meta_seed=5, meta_batch_size=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    said = f"another meta set (12 rows) than that of this run ({rows} rows)"
    assert (said in caplog.text) == warned and ("another meta set" in caplog.text) == warned
    caplog.clear()
    state = torch.load(tmp_path / "checkpoint-2" / STATE_NAME)["learner"]
    del state["meta_set"]
    resumed._learner.load_state_dict(state)
    assert "another meta set" not in caplog.text


def test_a_trajectory_of_largest_logits_is_resumed(tmp_path):
    """What is recorded of its steps goes through a checkpoint, named tuples among it."""
    from generation import collator, pairs

    def trainer(folder):
        return AMALTrainer(
            tiny_generator("gpt2"),
            toy_arguments(folder, save_strategy="steps", save_steps=3, max_steps=7),
            train_dataset=pairs(16, "gpt2"),
            meta_dataset=pairs(6, "gpt2", seed=1),
            data_collator=collator(),
            losses=[CrossEntropy(), Distillation(tiny_generator("gpt2", 1), top_k=4)],
            method=deep_interactions(),
        )

    whole = trainer(tmp_path / "whole")
    whole.train()
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    pairs_of = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs_of)


# ---- input of the wrong kind ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": CrossEntropy()}, "losses must be a list"),
        ({"method": amal}, "method must be a Method"),
        ({"method": LossNetwork()}, "method must be a Method"),
        ({"meta": DatasetDict(train=toy_rows(4))}, "several splits"),
        ({"meta": toy_rows(8).remove_columns("labels")}, "reads 'labels', and batches of meta_dataset hold"),
        ({"losses": [CrossEntropy("weak", column="week")]}, "no column 'week'"),
        (
            {
                "losses": [CrossEntropy("weak", column="weak")],
                "train": toy_rows(8).add_column("weak", [0, 1, 2, 3, 0, 0, 0, 0]),
            },
            "holds the label 3",
        ),
    ],
)
def test_what_is_wrong_is_named_at_construction(tmp_path, changes, message):
    """Before any work, and in the user's words."""
    with pytest.raises((TypeError, ValueError), match=message):
        new_trainer(tmp_path, **changes)


class Curved(SGDDirection):
    """A user's own direction, which asks for the curvature of the weighed loss."""

    needs_product = True


@pytest.mark.parametrize(
    ("options", "needy"),
    [
        ({"direction": NeumannDirection()}, "NeumannDirection"),
        ({"direction": Curved()}, "Curved"),
        ({"lookahead": True}, "lookahead"),
    ],
)
def test_weights_of_one_step_cannot_be_looked_ahead_with(options, needy):
    """They are not known before the slopes that the step ahead, or its curvature, would need."""
    with pytest.raises(ValueError, match=f"are those of one step .* {needy}.* needs them before"):
        Method("ahead", RectifiedSlopes(), **options)


def test_there_may_be_no_training_set(tmp_path):
    """A trainer that only evaluates."""
    trainer = AMALTrainer(
        tiny_bert(), toy_arguments(tmp_path), eval_dataset=toy_rows(8), losses=[CrossEntropy()], method=None
    )
    assert trainer.evaluate()["eval_loss"] > 0


def test_columns_of_every_kind_pass(tmp_path):
    """A user's `is_repeated` is no marker of ours, and names of classes are theirs to encode."""
    rows = toy_rows(24).add_column("is_repeated", [True] * 24)
    trainer = new_trainer(tmp_path, train=rows, meta=rows)
    trainer.train()
    assert trainer.state.global_step == 6
    named = Dataset.from_list([{**row, "labels": "abc"[row["labels"]]} for row in toy_rows(24)])

    def collate(given):
        return default_data_collator([{**row, "labels": "abc".index(row["labels"])} for row in given])

    new_trainer(tmp_path, train=named, meta=named, collator=collate).train()
