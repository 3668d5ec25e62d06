"""A trainer's record holds what its data say, in the order of the user's ids."""

import datasets
import numpy as np
import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows

from amal_hf import (
    AMALTrainer,
    CrossEntropy,
    Distillation,
    ExampleTable,
    LabelBlend,
    RuleLosses,
    TokenMask,
    amal,
    commentaries,
    random_weights,
)
from amal_hf.run_record import record_of, texts_of
from amal_hf.shapes import EXAMPLE_ID, TRUE_LABEL, VOTES


class Words:
    """A tokenizer that knows nothing but numbers."""

    def convert_ids_to_tokens(self, ids):
        return [f"w{i}" for i in ids]

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(self.convert_ids_to_tokens(row)) for row in rows]

    def save_pretrained(self, folder):
        """Nothing to save."""


def rows_with_all(count=24):
    """Rows with ids of their own, texts, a known truth and the votes of two rules; the second is mostly silent."""
    rows = toy_rows(count)
    labels = np.array(rows["labels"])
    votes = np.stack([labels, np.where(np.arange(count) % 3, -1, (labels + 1) % 3)], 1)
    extra = {
        EXAMPLE_ID: [f"row-{i}" for i in range(count)],
        "text": [f"text {i}" for i in range(count)],
        TRUE_LABEL: np.where(np.arange(count) % 4, labels, (labels + 1) % 3).tolist(),
        VOTES: votes.tolist(),
    }
    return datasets.Dataset.from_dict({**rows.to_dict(), **extra})


def trained(folder, losses=None, method=None, train=None, **options):
    teacher = torch.eye(3).repeat(8, 1)
    trainer = AMALTrainer(
        model=tiny_bert(),
        args=toy_arguments(folder, **options),
        train_dataset=rows_with_all() if train is None else train,
        meta_dataset=toy_rows(10, 4),
        losses=losses or [CrossEntropy(), Distillation(lambda b: teacher[b["example_id"]]), RuleLosses(["a", "b"])],
        method=method or amal(),
    )
    trainer.train()
    return trainer


def test_a_record_agrees_with_its_trainer(tmp_path):
    """Weights, ids, classes, truth, votes and the teacher's probability of the label, each from where it stands."""
    trainer = trained(tmp_path)
    record, rows = record_of(trainer), rows_with_all()
    weights = trainer.example_weights()
    assert record.ids == rows[EXAMPLE_ID][:]
    np.testing.assert_array_equal(record.weights["labels"], np.float32(weights["labels"]))
    own = np.column_stack([weights["rules/a"], weights["rules/b"]])
    own[np.array(rows[VOTES]) < 0] = np.nan
    np.testing.assert_allclose(record.weights["rules"], np.nanmean(own, 1), rtol=1e-6)
    np.testing.assert_allclose(record.rules.weights, own, rtol=1e-6)
    # Label, teacher and the rules that vote begin with equal shares.
    votes = np.array(rows[VOTES])
    shares = 1 / (2 + (votes >= 0).sum(1, keepdims=True))
    np.testing.assert_allclose(record.rules.shares, np.broadcast_to(shares, votes.shape), rtol=1e-6)
    (first, _) = record.rule_summaries()
    assert first.lift == pytest.approx(np.mean(own[:, 0] / shares[:, 0]), rel=1e-6)
    labels = np.array(rows["labels"])
    np.testing.assert_array_equal(record.labels, labels)
    np.testing.assert_array_equal(record.truth, np.array(rows[TRUE_LABEL]))
    held = torch.eye(3).repeat(8, 1).softmax(-1)[torch.arange(24), torch.from_numpy(labels)]
    np.testing.assert_allclose(record.teachers["teacher"], held, rtol=1e-6)
    assert texts_of(trainer.train_dataset, None) == {"text": rows["text"][:]}
    assert record.classes == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert record.settings["losses"] == "labels, teacher, rules"
    assert record.settings["optimizer steps"] == 6


def test_losses_and_guesses_are_those_of_training(tmp_path):
    """With a student that learns nothing they are what it gives at the end, example by example."""
    trainer = trained(tmp_path, losses=[CrossEntropy()], method=random_weights(), learning_rate=0.0)
    trainer.model.eval()
    rows = rows_with_all()
    with torch.no_grad():
        logits = trainer.model(torch.tensor(rows["input_ids"]), torch.tensor(rows["attention_mask"])).logits
    record = record_of(trainer)
    trainer.model.train()
    # Dropout changes them a little.
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(rows["labels"]), reduction="none")
    assert np.corrcoef(record.losses["labels"], losses)[0, 1] > 0.5
    np.testing.assert_allclose(-np.log(record.student), record.losses["labels"], rtol=1e-4)
    assert set(record.guesses) <= {0, 1, 2}


def test_an_example_without_a_label_has_no_weight_of_it(tmp_path):
    """It would otherwise lead the list of the lowest weights, with which nothing is wrong."""
    rows = rows_with_all().to_dict()
    rows["labels"] = [-100 if i % 4 == 0 else label for i, label in enumerate(rows["labels"])]
    losses = [CrossEntropy(), RuleLosses(["a", "b"])]
    record = record_of(trained(tmp_path, losses=losses, train=datasets.Dataset.from_dict(rows)))
    np.testing.assert_array_equal(np.isnan(record.weights["labels"]), np.arange(24) % 4 == 0)
    assert np.isfinite(record.weights["rules"]).all()


def test_a_resumed_run_has_the_whole_record(tmp_path):
    """Notes and quantiles from before an interruption are there after it, as in an uninterrupted run."""
    options = {"save_strategy": "steps", "save_steps": 3, "logging_steps": 1, "max_steps": 6}
    whole = record_of(trained(tmp_path, **options))
    trainer = AMALTrainer(
        model=tiny_bert(),
        args=toy_arguments(tmp_path, **options),
        train_dataset=rows_with_all(),
        meta_dataset=toy_rows(10, 4),
        losses=[
            CrossEntropy(),
            Distillation(lambda b: torch.eye(3).repeat(8, 1)[b["example_id"]]),
            RuleLosses(["a", "b"]),
        ],
        method=amal(),
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    resumed = record_of(trainer)
    for name in whole.losses:
        np.testing.assert_array_equal(resumed.losses[name], whole.losses[name])
        np.testing.assert_array_equal(resumed.weights[name], whole.weights[name])
    steps = [[e["step"] for e in record.log_history if "weight_labels_p50" in e] for record in (resumed, whole)]
    assert steps[0] == steps[1] == [1, 2, 3, 4, 5, 6]


def test_a_stream_is_recorded_by_its_ids(tmp_path):
    """Rows come in any order; weights kept by the policy and notes kept beside it must be of the same examples."""
    rows = toy_rows(24)
    ids = [5 * i + 7 for i in range(24)]
    stream = rows.add_column(EXAMPLE_ID, ids).to_iterable_dataset()
    trainer = trained(tmp_path, losses=[CrossEntropy()], method=amal(ExampleTable()), train=stream, max_steps=6)
    record = record_of(trainer)
    assert sorted(record.ids) == ids
    np.testing.assert_allclose(-np.log(record.student), record.losses["labels"], rtol=1e-4)
    labels = dict(zip(ids, rows["labels"], strict=True))
    notes = trainer.mixture.notes.of(torch.tensor(record.ids))
    assert len(labels) == len(notes["loss/labels"])
    assert record.labels is None and texts_of(trainer.train_dataset, None) == {}


def test_changes_of_batches_are_recorded(tmp_path):
    """λ of a `LabelBlend` is there; so are the first texts under a `TokenMask`, if a tokenizer can read them."""
    blended = record_of(trained(tmp_path, losses=[CrossEntropy()], method=commentaries(LabelBlend(3))))
    assert blended.shares.shape == (3, 3)
    assert np.isnan(blended.losses["labels"]).all()
    unlisted = [rows_with_all()[row] for row in range(24)]
    of_a_list = record_of(
        trained(tmp_path, losses=[CrossEntropy()], method=commentaries(LabelBlend(3)), train=unlisted)
    )
    assert of_a_list.classes == blended.classes and len(blended.classes) == 3
    mask = TokenMask(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), [0])
    trainer = trained(tmp_path, losses=[CrossEntropy()], method=commentaries(mask))
    trainer.processing_class = Words()
    words, kept = record_of(trainer).masked[0]
    assert words == [f"w{i}" for i in rows_with_all()["input_ids"][0]]
    assert len(kept) == len(words) and all(0 < share <= 1 for share in kept)


def test_texts_come_from_tokens_where_there_are_none():
    """Many training sets have lost their texts to tokenising."""
    assert texts_of(toy_rows(8), None) == {}
    assert texts_of(toy_rows(8), Words())["text"][0].startswith("w")
