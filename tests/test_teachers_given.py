"""Whatever people give as a teacher: it teaches what it knows, or is refused by name before training."""

import json
import logging

import pytest
import torch
from conftest import LENGTH, VOCABULARY, tiny_bert, toy_arguments, toy_rows
from datasets import ClassLabel
from generation import collator, pairs, tiny_generator
from test_teachers import config, tokenizer
from torch import nn
from transformers import (
    BertModel,
    DataCollatorWithPadding,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from amal_hf import AMALTrainer, CrossEntropy, Distillation, amal
from amal_hf.label_order import label_order


def new_trainer(folder, teacher, student=None, rows=None, **given):
    rows = toy_rows(12) if rows is None else rows
    options = {"meta_dataset": toy_rows(8, seed=1), "method": amal(), **given}
    return AMALTrainer(
        tiny_bert() if student is None else student,
        toy_arguments(folder, max_steps=2),
        train_dataset=rows,
        losses=[CrossEntropy(), Distillation(teacher)] if not isinstance(teacher, Distillation) else [teacher],
        **options,
    )


# ---- what it reads ----


def tiny_distilbert():
    torch.manual_seed(0)
    sizes = {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 32}
    return DistilBertForSequenceClassification(DistilBertConfig(vocab_size=VOCABULARY, num_labels=3, **sizes))


@pytest.mark.parametrize("cached", [False, True])
def test_a_teacher_sees_which_text_a_token_is_of(tmp_path, cached):
    """BERT tells the texts of a pair apart, and its student DistilBERT does not; evaluation leaves the column out."""
    teacher, seen = tiny_bert(1), []
    teacher.register_forward_pre_hook(lambda *call: seen.append(call[2]), with_kwargs=True)
    kinds = [[0] * (LENGTH // 2) + [1] * (LENGTH - LENGTH // 2)] * 12
    rows = toy_rows(12).add_column("token_type_ids", kinds)
    trainer = new_trainer(
        tmp_path,
        Distillation(teacher),
        tiny_distilbert(),
        rows,
        eval_dataset=rows,
        processing_class=tokenizer(),
        data_collator=DataCollatorWithPadding(tokenizer()),
    )
    if cached:
        trainer.args.teacher_cache_dir = str(tmp_path / "cache")
        trainer._open_teachers(rows)
    trainer.train()
    assert all(set(call["token_type_ids"].flatten().tolist()) == {0, 1} for call in seen) and seen
    assert trainer.evaluate()["eval_loss"] > 0


def test_what_a_function_reads_is_named(tmp_path):
    """Logits that were computed elsewhere are a column, which would be removed as one that nobody reads."""
    rows = toy_rows(12).add_column("scores", [[1.0, 2.0, 3.0]] * 12)
    given = Distillation(lambda batch: batch["scores"], columns="scores")
    trainer = new_trainer(tmp_path, given, rows=rows)
    trainer.train()
    with pytest.raises(KeyError) as error:
        new_trainer(tmp_path, Distillation(lambda batch: batch["scores"]), rows=rows).train()
    assert "columns=(...,)" in error.value.__notes__[0]


def test_a_function_runs_without_a_graph(tmp_path):
    """Its model is not trained, and what it shares with the student does not change the student's gradient."""
    teacher = tiny_bert(1)
    new_trainer(tmp_path, lambda batch: teacher(batch["input_ids"], batch["attention_mask"])).train()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    kept = torch.ones(4, 3, requires_grad=True)
    loss = Distillation(lambda batch: kept * 2)
    loss.teacher = loss.source
    assert not loss.prepare({})["teacher_logits"].requires_grad


def test_pictures_have_no_words_to_compare(tmp_path):
    """A teacher of a student without a vocabulary is taken as it is."""
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3}
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    student, teacher = (ViTForImageClassification(ViTConfig(**sizes, **shape)) for _ in range(2))
    rows = toy_rows(12).remove_columns(["input_ids", "attention_mask"])
    rows = rows.add_column("pixel_values", torch.randn(12, 1, 8, 8).tolist())
    trainer = new_trainer(tmp_path, teacher, student, rows, meta_dataset=rows)
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0


# ---- which class is which ----


@pytest.mark.parametrize(
    ("theirs", "ours", "classes", "order"),
    [
        (("YES", "NO"), ("LABEL_0", "LABEL_1"), ["no", "yes"], [1, 0]),
        (("YES", "NO"), ("no", "yes"), [], [1, 0]),
        (("yes", "no"), ("LABEL_0", "LABEL_1"), ["yes", "no"], None),
        (("LABEL_0", "LABEL_1"), ("LABEL_0", "LABEL_1"), ["no", "yes"], None),
        (("A", "a"), ("a", "A"), [], [1, 0]),
    ],
)
def test_classes_are_matched_by_name_wherever_it_stands(theirs, ours, classes, order):
    """In the student's configuration or its training set, in any case: one task often comes in two orders."""
    assert label_order(config(*theirs), config(*ours), classes) == order


def test_names_may_stand_in_one_half_of_a_configuration():
    """Given `label2id` alone, `transformers` makes up the names of `id2label`."""
    half = config("LABEL_0", "LABEL_1")
    half.label2id = {"no": 0, "yes": 1}
    assert label_order(config("yes", "no"), half) == [1, 0]


def test_an_order_that_is_assumed_is_said(caplog):
    """A student without names cannot be matched."""
    with caplog.at_level(logging.WARNING, logger="amal_hf"):
        assert label_order(config("yes", "no"), config("LABEL_0", "LABEL_1"), ["x", "y"]) is None
    assert "taken to be in the order of the teacher's: ['yes', 'no']" in caplog.text


def test_a_run_takes_names_from_its_training_set(tmp_path):
    """The teacher's answer for a class reaches the student's place of that class."""
    teacher = tiny_bert(1, id2label={0: "C", 1: "B", 2: "A"}, label2id={"C": 0, "B": 1, "A": 2})
    teacher.classifier.weight.data.zero_()
    teacher.classifier.bias.data = torch.tensor([1.0, 2.0, 3.0])
    rows = toy_rows(12).rename_column("labels", "label").cast_column("label", ClassLabel(names=["a", "b", "c"]))
    trainer = new_trainer(tmp_path, teacher, rows=rows)
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer.mixture.prepare(batch)["teacher_logits"][0].tolist() == [3.0, 2.0, 1.0]


# ---- which word is which ----


def test_a_longer_table_of_the_same_words_is_cut(tmp_path):
    """Large models fill their tables up; where both tokenizers are known to be the same, the rest says nothing."""
    words = tokenizer([f"w{n}" for n in range(VOCABULARY - 2)] + ["[PAD]", "[UNK]"])
    student, teacher = tiny_generator("gpt2"), tiny_generator("gpt2", 1)
    teacher.resize_token_embeddings(student.config.vocab_size + 3)
    rows = pairs(8, "gpt2")
    given = {"rows": rows, "meta_dataset": rows, "processing_class": words, "data_collator": collator()}
    trainer = new_trainer(tmp_path, Distillation(teacher, tokenizer=words), student, **given)
    trainer.train()
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer.mixture.prepare(batch)["teacher_logits"].shape[-1] == student.config.vocab_size
    with pytest.raises(ValueError, match="a longer table of words, give both"):
        new_trainer(tmp_path, Distillation(teacher), student, **given)


# ---- what is none ----


class Pipeline:
    """As those of `transformers`: a function, too."""

    def __init__(self):
        self.model, self.tokenizer = tiny_bert(), tokenizer()

    def __call__(self, texts):
        return texts


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (Pipeline, "Pass its model and tokenizer"),
        (lambda: nn.ModuleList([tiny_bert()]), "one loss each, or teacher_model"),
        (lambda: torch.zeros(12, 3), "must be a model, a folder, a Hub id or a function"),
    ],
)
def test_what_is_no_teacher_is_refused(teacher, message):
    """When the loss is made, and not at the first step."""
    with pytest.raises(TypeError, match=message):
        Distillation(teacher())


def test_a_teacher_without_logits_is_refused(tmp_path):
    """An encoder without a head, and a function of something else."""
    with pytest.raises(TypeError, match="a BertModel, returns a BaseModelOutput"):
        new_trainer(tmp_path, BertModel(tiny_bert().config)).train()
    with pytest.raises(TypeError, match="the teacher must give logits"):
        new_trainer(tmp_path, lambda batch: "yes").train()


def test_a_folder_of_adapters_is_refused(tmp_path):
    """What to do is said."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ValueError, match="is adapters to another model"):
        new_trainer(tmp_path, str(tmp_path))


def test_a_loss_may_be_given_as_the_teacher(tmp_path):
    """`teacher_model=Distillation(...)` says more than a model does, and is taken as it is."""
    trainer = AMALTrainer(
        tiny_bert(),
        toy_arguments(tmp_path, max_steps=1),
        train_dataset=toy_rows(12),
        teacher_model=Distillation(tiny_bert(1), temperature=4.0),
    )
    trainer.train()
    assert [loss.temperature for loss in trainer.mixture.distillations] == [4.0]
