"""What cannot be weighed is refused before a text is embedded, by all who embed rows."""

import datasets
import pytest
from test_kept_rows import texts

from amal_hf import answered_rows, kept_rows
from amal_hf.embedded_rows import labels_of_both


BOTH = pytest.mark.parametrize("take", [kept_rows, answered_rows])


@BOTH
def test_what_is_no_share_is_refused_before_anything_is_read(take):
    """In words."""
    with pytest.raises(ValueError, match="from 0 to 1, got 40"):
        take(texts(3), texts(3), None, None, wrong=40)


@BOTH
def test_classes_numbered_in_another_order_are_refused(take):
    """Right labels would be taken for wrong ones; nothing is read."""
    turned = texts(3).cast_column("label", datasets.ClassLabel(names=["c", "a", "b"]))
    with pytest.raises(ValueError, match=rf"{take.__name__}: the classes of rows are .* one number would mean two"):
        take(texts(3), turned, None, None)


def labelled(rows, labels, kind="int64"):
    """With other labels."""
    return rows.remove_columns("label").add_column("label", labels, feature=datasets.Value(kind))


@BOTH
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda rows, clean: (rows, labelled(clean, [0, 1, -100])), ValueError, "3 clean rows, and 1 of them without"),
        (lambda rows, clean: (labelled(rows, [-100] * 3), clean), ValueError, "got 0 labels"),
        (
            lambda rows, clean: (labelled(rows, [0, None, 1]), clean),
            TypeError,
            "_rows: labels of rows .*-100 for no label",
        ),
        (lambda rows, clean: (labelled(rows, ["a", "b", "c"], "string"), clean), TypeError, "names of classes"),
        (lambda rows, clean: (labelled(rows, [0, 0.5, 1], "float32"), clean), ValueError, "whole numbers, one a row"),
        (lambda rows, clean: (rows, labelled(clean, ["a"] * 3, "string")), TypeError, "labels of clean .* names of"),
        (lambda rows, clean: (rows, clean.select([])), ValueError, "0 clean rows"),
        (lambda rows, clean: (rows.select([]), clean), ValueError, "got 0 labels"),
        (lambda rows, clean: (rows, clean.rename_column("text", "sentence")), ValueError, r"\['text'\] are not among"),
    ],
)
def test_what_cannot_be_weighed_is_refused_before_anything_is_read(take, change, error, words):
    """In words: to embed many texts takes long."""
    with pytest.raises(error, match=words):
        take(*change(texts(3), texts(3)), None, None)


@BOTH
def test_names_and_missing_labels_become_numbers_as_is_advised(take):
    """In this order: -100 among the names would be a class of its own."""
    rows, clean = labelled(texts(3), ["b", None, "a"], "string"), labelled(texts(3), ["b", "a", "a"], "string")
    with pytest.raises(TypeError, match="class_encode_column makes numbers of names; after it, dataset.map .* -100"):
        take(rows, clean, None, None)
    rows, clean = (part.class_encode_column("label") for part in (rows, clean))
    rows = rows.map(lambda row: {"label": -100 if row["label"] is None else row["label"]})
    labels, right = labels_of_both(take.__name__, rows, clean, None)
    assert labels.tolist() == [1, -100, 0] and right.tolist() == [1, 0, 0]


@BOTH
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.remove_columns("label"), "expected a column `label` or `labels`"),
        (lambda rows: rows.rename_column("label", "labels"), "the same in both sets"),
        (lambda rows: rows.rename_column("text", "body"), "Expected one of"),
    ],
)
def test_other_columns_are_refused(take, change, words):
    """In words."""
    with pytest.raises(ValueError, match=words):
        take(change(texts(20)), texts(20), None, None)
