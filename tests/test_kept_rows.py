"""Rows whose labels have weight enough."""

import re

import datasets
import numpy as np
import pytest
from conftest import tiny_bert
from test_teachers import tokenizer

from amal_hf import answered_rows, kept_rows
from amal_hf.noise import flip_labels
from amal_hf.shapes import TRUE_LABEL


WORDS = [f"w{number}" for number in range(40)]


def texts(count, seed=0):
    """The first two words say the class."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(3, size=count)
    given = [f"w{label} w{label} w{draw.integers(3, 40)}" for label in labels]
    names = datasets.ClassLabel(names=["a", "b", "c"])
    return datasets.Dataset.from_dict({"text": given, "label": labels}).cast_column("label", names)


@pytest.fixture(scope="module")
def reader():
    """A random encoder and its tokenizer."""
    return tiny_bert(hidden_size=32, num_hidden_layers=1).bert, tokenizer(["[PAD]", "[UNK]", *WORDS])


def test_wrong_labels_are_left_out(reader):
    """And right ones are not; columns and order stay."""
    rows = flip_labels(texts(600), 0.4, seed=0)
    kept = kept_rows(rows, texts(90, seed=1), *reader)
    right = np.array(kept["label"]) == np.array(kept[TRUE_LABEL])
    assert right.mean() > 0.97 and right.sum() > 0.95 * 0.6 * len(rows)
    assert kept.features == rows.features
    places = iter(rows.to_list())
    assert all(row in places for row in kept.to_list()), "another order"


def test_a_table_of_pairs_in_any_format(reader):
    """Both texts of a pair are read, whichever says the class; the label's column may have either name."""
    rows, clean = flip_labels(texts(300), 0.4, seed=0), texts(60, seed=1)

    def paired(row, number):
        both = ["w5 w6", row["text"]]
        return {"sentence1": both[number % 2], "sentence2": both[1 - number % 2]}

    rows, clean = (
        part.map(paired, with_indices=True, remove_columns="text").rename_column("label", "labels")
        for part in (rows, clean)
    )
    kept = kept_rows(rows.with_format("torch", columns=["labels"]), clean, *reader)
    wrong = np.array(kept.with_format(None)["labels"]) != np.array(kept.with_format(None)[TRUE_LABEL])
    assert 150 < len(kept) < 210 and wrong.mean() < 0.1


def test_rows_without_a_label_are_kept(reader):
    """There may be a teacher for them."""
    rows = texts(200).cast_column("label", datasets.Value("int64"))
    silent = rows.map(lambda row, number: {"label": -100 if number < 20 else row["label"]}, with_indices=True)
    kept = kept_rows(silent, texts(60, seed=1).cast_column("label", datasets.Value("int64")), *reader)
    assert kept["label"][:20] == [-100] * 20


@pytest.mark.parametrize(("wrong", "expected"), [(0.0, 300), (0.1, 270), (0.4, 180)])
def test_how_many_are_wrong_may_be_told(reader, wrong, expected):
    """Then the clean rows are not asked."""
    rows = flip_labels(texts(300), 0.4, seed=0)
    assert len(kept_rows(rows, texts(60, seed=1), *reader, wrong=wrong)) == pytest.approx(expected, abs=12)


def test_few_clean_rows_leave_all_as_it_was(reader, caplog):
    """And it is said why; unless it is known how many are wrong."""
    rows, clean = flip_labels(texts(300), 0.4, seed=0), texts(6, seed=1)
    assert len(kept_rows(rows, clean, *reader)) == 300
    assert "6 clean rows cannot tell how many labels are wrong" in caplog.text
    caplog.clear()
    assert len(kept_rows(rows, clean, *reader, wrong=0.4)) < 230
    assert not caplog.records


def test_how_many_are_wrong_is_said(reader, caplog):
    """And by how much that may be off; not if it was known before."""
    caplog.set_level("INFO", logger="amal_hf")
    rows, clean = flip_labels(texts(300), 0.4, seed=0), texts(60, seed=1)
    kept_rows(rows, clean, *reader)
    (told,) = re.findall(r"By 60 clean rows (\d+\.\d) % .* standard error of (\d+\.\d)", caplog.text)
    assert abs(float(told[0]) - 40) < 12 and 0 < float(told[1]) < 10
    caplog.clear()
    kept_rows(rows, clean, *reader, wrong=0.4)
    assert "rows are kept" in caplog.text and "clean rows" not in caplog.text


def test_a_class_of_which_nothing_is_left_is_named(reader, caplog):
    """A student would never see it."""
    rows, clean = texts(300), texts(90, seed=1)
    kept_rows(rows, clean, *reader)
    assert not caplog.records
    others = rows.filter(lambda row: row["label"] > 0)
    wrong = others.map(lambda row, number: {"label": 0 if number < 50 else row["label"]}, with_indices=True)
    kept = kept_rows(wrong, clean, *reader)
    assert 0 not in kept["label"] and len(kept) > len(wrong) - 60
    assert "of 1 classes no label passes for right, the first is 0" in caplog.text


@pytest.mark.parametrize("reads", [kept_rows, answered_rows])
def test_how_to_name_a_column_of_texts(reads):
    """By what there is: these functions have no `text_columns`."""
    rows = texts(3).rename_column("text", "phrase")
    with pytest.raises(ValueError, match="'phrase'.*rename_column") as told:
        reads(rows, rows, None, None)
    assert "text_columns" not in str(told.value)
