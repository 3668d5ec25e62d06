"""Rows of each class are counted where there are classes and rows that can be counted."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from amal_hf.class_counts import class_counts
from amal_hf.losses import IGNORED


@pytest.mark.parametrize("name", ["label", "labels"])
@pytest.mark.parametrize("feature", [ClassLabel(num_classes=4), Value("int64"), Value("uint8")], ids=str)
def test_rows_of_each_class(name, feature):
    """In the order of the classes, a class without rows too."""
    rows = Dataset.from_dict({name: [0, 2, 2, 0, 2]}, features=Features({name: feature}))
    assert class_counts(rows, 4) == (2, 0, 3, 0)


def test_rows_without_a_label_are_not_counted():
    """Of a selection the rows that are left."""
    rows = Dataset.from_dict({"labels": [1, IGNORED, 1, 0, 0]}).select([0, 1, 3])
    assert class_counts(rows, 2) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "classes"),
    [
        (Dataset.from_dict({"labels": [0.5, 1.0]}), 2),
        (Dataset.from_dict({"labels": [3, 7]}), 1),
        (Dataset.from_dict({"labels": [[0, 1], [1, 1]]}), 2),
        (Dataset.from_dict({"input_ids": [[1], [2]]}), 2),
        (Dataset.from_dict({"labels": [0, 1]}).to_iterable_dataset(), 2),
        (torch.utils.data.TensorDataset(torch.zeros(2)), 2),
        (None, 2),
    ],
    ids=["numbers", "regression", "several at once", "no labels", "stream", "not of datasets", "nothing"],
)
def test_what_has_no_classes_or_cannot_be_counted(rows, classes):
    """Gives nothing, and nothing is read from it."""
    assert class_counts(rows, classes) == ()


def test_large_sets_are_read_in_blocks(monkeypatch):
    """A block's end changes nothing."""
    rows = Dataset.from_dict({"label": [i % 3 for i in range(50)]})
    whole = class_counts(rows, 3)
    monkeypatch.setattr("amal_hf.class_counts._BLOCK", 7)
    assert class_counts(rows, 3) == whole == (17, 17, 16)
