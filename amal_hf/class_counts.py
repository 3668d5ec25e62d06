"""How many training rows each class has."""

from typing import Any

import datasets
import numpy as np

from amal_hf.losses import IGNORED


_BLOCK = 100_000


def class_counts(dataset: Any, classes: int) -> tuple[int, ...]:
    """Rows of each class, C numbers.

    Empty where labels are not classes (numbers, several at once, words of a sequence), or where rows cannot be counted
    in advance: of all but a `datasets.Dataset`, which may be slow to read or never end.
    """
    if classes < 2 or not isinstance(dataset, datasets.Dataset):
        return ()
    column = next((name for name in ("labels", "label") if name in dataset.column_names), None)
    if column is None or not _is_class(dataset.features[column]):
        return ()
    counts = np.zeros(classes, int)
    for block in dataset.select_columns([column]).with_format("numpy").iter(_BLOCK):
        labels = np.asarray(block[column])
        counts += np.bincount(labels[labels != IGNORED], minlength=classes)
    return tuple(counts.tolist())


def _is_class(feature: Any) -> bool:
    if isinstance(feature, datasets.ClassLabel):
        return True
    return isinstance(feature, datasets.Value) and feature.dtype.removeprefix("u").startswith("int")
