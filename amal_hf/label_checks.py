"""Labels that are no classes of the student: missing, NaN, out of range, of another type."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from amal_hf.collator import is_stream
from amal_hf.columns import is_transformed
from amal_hf.cross_entropy import CrossEntropy
from amal_hf.shapes import IGNORED


def check_column(dataset: Any, loss: CrossEntropy, num_labels: int) -> None:
    """Refuse labels in a column of their own that are not there, or not right."""
    if isinstance(dataset, datasets.Dataset) and not is_transformed(dataset):
        if loss.column not in dataset.column_names:
            raise ValueError(
                f"Loss '{loss.name}': the training set has no column '{loss.column}' (it has {dataset.column_names}). "
                f"Set column= to one of these."
            )
        check_labels(dataset, "train_dataset", num_labels, (loss.column,))


def check_labels(dataset: Any, name: str, num_labels: int, columns: Sequence[str] = ("labels", "label")) -> None:
    """Refuse an empty dataset, and labels that are NaN or not a class.

    Only a `datasets.Dataset` is looked through; other datasets may be slow to read or differ at every pass.

    Args:
        dataset: rows; `None` and streams are left alone.
        name: for messages.
        num_labels: classes of the student.
        columns: where labels may be; the first that is there is looked at.

    Raises:
        ValueError: says which rows.
    """
    if dataset is None or is_stream(dataset):
        return
    if len(dataset) == 0:
        raise ValueError(f"AMALTrainer: {name} is empty; it needs at least one row.")
    column = stored_label_column(dataset, columns)
    if column is None:
        return
    labels = dataset.select_columns([column])
    for start in range(0, len(labels), 10_000):
        _check_label_block(labels[start : start + 10_000][column], start, f"{name}['{column}']", num_labels)


def stored_label_column(dataset: Any, columns: Sequence[str]) -> str | None:
    """The first of these that a `datasets.Dataset` has; rows that a function makes need not have its columns."""
    if not isinstance(dataset, datasets.Dataset) or is_transformed(dataset):
        return None
    return next((column for column in columns if column in dataset.column_names), None)


def _check_label_block(block: list[Any], start: int, where: str, num_labels: int) -> None:
    if any(value is None for value in block):
        raise ValueError(
            f"AMALTrainer: {where} has no label in row {start + block.index(None)}. Use {IGNORED} for a row without a "
            f"label."
        )
    flat = np.concatenate([np.atleast_1d(np.asarray(value)).ravel() for value in block])
    if np.issubdtype(flat.dtype, np.floating):
        _check_fractions(flat, block, start, where, num_labels)
    elif num_labels > 1 and np.issubdtype(flat.dtype, np.integer):
        _check_classes(flat, where, num_labels)


def _check_fractions(labels: NDArray[Any], block: list[Any], start: int, where: str, num_labels: int) -> None:
    if np.isnan(labels).any():
        rows = [start + i for i, value in enumerate(block) if np.isnan(np.asarray(value)).any()]
        raise ValueError(
            f"AMALTrainer: {where} is NaN in {len(rows)} of {len(block)} rows from {start}, first in row {rows[0]}. "
            f"Remove or fix these rows."
        )
    if num_labels > 1 and np.ndim(block[0]) == 0:
        raise ValueError(
            f"AMALTrainer: {where} holds {block[0]!r}, a number with a fraction, and the student has {num_labels} "
            f"classes. Cast the column to whole numbers; for numbers to be hit load the student with num_labels=1."
        )


def _check_classes(labels: NDArray[Any], where: str, num_labels: int) -> None:
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= num_labels))]
    if len(wrong):
        raise ValueError(
            f"AMALTrainer: {where} holds the label {wrong[0]}; the student has classes 0 to {num_labels - 1} "
            f"({IGNORED} for no label, where `read_dataset` has -1). Set num_labels when loading the student."
        )
