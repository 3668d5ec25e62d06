"""Rows with the answers of a teacher of seconds."""

import datasets
import numpy as np
import pytest
import torch
from conftest import tiny_bert
from test_kept_rows import reader, texts  # noqa: F401
from test_teachers import tokenizer

from amal_hf import (
    AMALArguments,
    AMALTrainer,
    CrossEntropy,
    amal,
    answered_rows,
    bayes_mixture,
    calibrated_temperature,
)
from amal_hf.noise import flip_labels
from amal_hf.shapes import TRUE_LABEL


def answers_of(rows):
    """`(N, C)`."""
    return np.array(rows.with_format(None)["answers"])


@pytest.fixture(scope="module")
def answered(reader):  # noqa: F811
    """Rows of which 40 % have wrong labels, clean ones, and what is made of them."""
    rows, clean = flip_labels(texts(400), 0.4, seed=0), texts(90, seed=1)
    return rows, clean, *answered_rows(rows, clean, *reader)


def test_answers_are_right_where_labels_are_wrong(answered):
    """Of rows and then of clean ones; all else stays as it was."""
    rows, clean, found, _ = answered
    assert found["text"][:] == [*rows["text"], *clean["text"]]
    assert found["label"][:] == [*rows["label"], *clean["label"]]
    assert {**found.features, "answers": None} == {**rows.features, "answers": None}
    assert found.features["answers"].feature.dtype == "float32"
    truth = np.array([*rows[TRUE_LABEL], *clean["label"]])
    assert (answers_of(found).argmax(1) == truth).mean() > 0.95


def test_they_are_as_sure_as_they_may_be(answered):
    """The temperature at which clean rows are most probable is one, and so the loss says to Bayes' rule."""
    rows, clean, found, loss = answered
    assert calibrated_temperature(answers_of(found)[len(rows) :], clean["label"][:]) == pytest.approx(1.0, rel=1e-4)
    assert (loss.temperature, loss.calibrated_at, loss.has_seen_labels) == (1.0, 1.0, False)


def test_no_row_is_answered_by_its_own_label(reader):  # noqa: F811
    """Labels that nothing in a text tells are not told by the answers, though there are features enough to."""
    wide = tiny_bert(hidden_size=256, num_hidden_layers=1).bert
    rows, clean = texts(120), texts(60, seed=1)
    told = np.random.default_rng(0).integers(3, size=60)
    odd = datasets.Dataset.from_dict(
        {"text": [f"w{3 + number % 37} w{39 - number // 2}" for number in range(60)], "label": told}, rows.features
    )
    found, _ = answered_rows(datasets.concatenate_datasets([odd, rows]), clean, wide, reader[1], wrong=0.0)
    assert (answers_of(found)[:60].argmax(1) == told).mean() < 0.5


def test_rows_without_a_label_are_answered(reader):  # noqa: F811
    """By a regression over all that have one."""
    rows, clean = (part.cast_column("label", datasets.Value("int64")) for part in (texts(200), texts(60, seed=1)))
    silent = rows.map(lambda row, number: {"label": -100 if number < 50 else row["label"]}, with_indices=True)
    answered, _ = answered_rows(silent, clean, *reader)
    assert answered["label"][:50] == [-100] * 50
    assert (answers_of(answered)[:50].argmax(1) == np.array(rows["label"][:50])).mean() > 0.95


@pytest.mark.parametrize("method", [amal, bayes_mixture])
def test_a_student_learns_beside_them(answered, reader, method, tmp_path, monkeypatch):  # noqa: F811
    """Rows and loss go into the trainer as they are, and every row has its own answers there."""
    words = reader[1]
    _, clean, found, loss = answered
    rows, clean = (part.map(lambda batch: words(batch["text"]), batched=True) for part in (found, clean))
    seen, plain = [], loss.source
    monkeypatch.setattr(loss, "source", lambda batch: seen.append((batch["example_id"], plain(batch))) or seen[-1][1])
    trainer = AMALTrainer(
        model=tiny_bert(num_labels=3),
        args=AMALArguments(tmp_path, max_steps=3, report_to="none", use_cpu=True, save_strategy="no"),
        losses=[CrossEntropy(), loss],
        method=method(),
        train_dataset=rows,
        meta_dataset=clean if method is amal else None,
        processing_class=words,
    )
    trainer.train()
    answers = torch.tensor(answers_of(rows), dtype=torch.float32)
    assert seen and all(torch.equal(answers[ids], given) for ids, given in seen)


def test_a_column_that_is_there_is_not_written_over():
    """In words, before anything is read."""
    rows = texts(3).add_column("answers", [1, 2, 3])
    with pytest.raises(ValueError, match="expected no column `answers`"):
        answered_rows(rows, texts(3), None, None)


def test_columns_of_other_kinds_are_refused_before_anything_is_read():
    """As `concatenate_datasets` refuses them."""
    clean = texts(30).add_column("source", [1] * 30)
    with pytest.raises(ValueError, match="source"):
        answered_rows(texts(30).add_column("source", ["a"] * 30), clean, None, None)


def test_an_encoder_that_tells_nothing_is_named(reader):  # noqa: F811
    """Which to change."""
    encoder, _ = reader
    blind = tokenizer(["[PAD]", "[UNK]"])
    with pytest.raises(ValueError, match="logits must be higher for the label") as told:
        answered_rows(texts(300), texts(90, seed=1), encoder, blind)
    assert "this encoder does not tell these classes" in told.value.__notes__[0]


def test_classes_that_only_names_know(reader):  # noqa: F811
    """Have a place among the answers, which must be as many as the student's."""
    names = datasets.ClassLabel(names=["a", "b", "c", "d", "e"])
    rows, clean = (part.cast_column("label", names) for part in (texts(120), texts(60, seed=1)))
    assert answers_of(answered_rows(rows, clean, *reader)[0]).shape == (180, 5)


def test_a_class_that_is_not_learned_is_named(reader, caplog):  # noqa: F811
    """All rows are there all the same, and clean ones with them: it is not said that they are not."""
    rows, clean = flip_labels(texts(300), 0.4, seed=0), texts(90, seed=1)
    some = clean.filter(lambda row: row["label"] > 0)
    wrong = rows.filter(lambda row: row[TRUE_LABEL] > 0)
    answered_rows(wrong, some, *reader)
    assert "answered_rows: of 1 classes no label passes for right, the first is 0" in caplog.text
    assert "kept" not in caplog.text
