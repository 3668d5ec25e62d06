"""A batch of the first rows of a set, made before any training: whether the losses can read it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from amal_hf.class_counts import one_class_labels
from amal_hf.collator import is_several, rows_of
from amal_hf.cross_entropy import CrossEntropy
from amal_hf.losses import Loss
from amal_hf.random_numbers import own_random_numbers
from amal_hf.shapes import IGNORED, Batch
from amal_hf.task import Task


def check_first_rows(
    dataset: Any,
    collate: Callable[[list[Any]], Batch],
    name: str,
    losses: Sequence[Loss],
    task: Task,
    by_token: bool,
    one_class_readers: Sequence[str] = (),
) -> None:
    """Make a batch of the first two rows, and refuse one that losses or policies cannot read.

    Args:
        dataset: has rows by number.
        collate: makes its batches.
        name: for messages.
        losses: that are to be taken of it.
        task: how the student's logits are read.
        by_token: whether the student answers for every token.
        one_class_readers: names of policies that are for examples of one class each.

    Raises:
        ValueError: no batch can be made, or it lacks what a loss reads, or its labels are of another kind.
    """
    batch, rows = _first_batch(dataset, collate, name)
    for loss in losses:
        _check_read(loss, batch, name)
    labels = batch.get("labels")
    if isinstance(labels, Tensor):
        _check_kind(labels, rows, name, task, by_token)
        for reader in one_class_readers:
            one_class_labels(batch, rows, reader)


def _first_batch(dataset: Any, collate: Callable[[list[Any]], Batch], name: str) -> tuple[Batch, int]:
    """A batch of the first two rows, or of the one there is, and how many they are."""
    with own_random_numbers(0):
        rows = rows_of(dataset, range(min(2, len(dataset))))
        try:
            return collate(rows), len(rows)
        except Exception as error:
            raise ValueError(
                f"AMALTrainer: the data collator makes no batch of the first rows of {name}, which hold "
                f"{sorted(rows[0]) if isinstance(rows[0], Mapping) else type(rows[0]).__name__}: "
                f"{str(error).rstrip('.')}. {_collator_advice(rows)}"
            ) from error


def _check_read(loss: Loss, batch: Batch, name: str) -> None:
    """Refuse a batch that lacks what a loss reads."""
    read = (loss.column, *loss.columns) if isinstance(loss, CrossEntropy) else loss.columns
    missing = [column for column in read if column not in batch]
    if missing:
        raise ValueError(
            f"AMALTrainer: loss '{loss.name}' reads '{missing[0]}', and batches of {name} hold {sorted(batch)}. "
            f"Give its rows this column, in numbers (labels may be called 'label' or 'labels', {IGNORED} is none, "
            f"and dataset.class_encode_column makes numbers of names), or leave the loss out."
        )


def _check_kind(labels: Tensor, rows: int, name: str, task: Task, by_token: bool) -> None:
    """Refuse labels of another kind than the student's."""
    if labels.dtype == torch.bool:
        raise ValueError(f"AMALTrainer: {name} has True and False as labels. Cast the column to whole numbers.")
    if task.problem_type is None and not by_token and _are_several_classes(labels, rows):
        raise ValueError(
            f"AMALTrainer: {name} has several whole numbers as the labels of a row, and the student gives one answer "
            f"for it. Where each says yes or no to a class cast the column to float, and load the student with "
            f"problem_type='multi_label_classification'."
        )
    if task.problem_type == "multi_label_classification" and not labels.is_floating_point():
        raise ValueError(
            f"AMALTrainer: {name} has whole numbers as labels, and a student with several yes/no labels wants 0.0 and "
            f"1.0: cast the column to float."
        )


def _are_several_classes(labels: Tensor, rows: int) -> bool:
    return labels.ndim > 1 and len(labels) == rows and not labels.is_floating_point()


def _collator_advice(rows: Sequence[Any]) -> str:
    """What to do about rows that no batch can be made of."""
    held = [row for row in rows if isinstance(row, Mapping)]
    texts = [name for name, value in (held[0].items() if held else ()) if isinstance(value, str)]
    if not texts and _differ_in_length([row.get("labels", row.get("label")) for row in held]):
        return (
            "Labels of tokens need a collator that fills them up: DataCollatorForTokenClassification, or "
            "DataCollatorForSeq2Seq where the student writes."
        )
    if not texts and _differ_in_length([row.get("input_ids") for row in held]):
        return "Rows of several lengths have to be filled up: pass their tokenizer as processing_class."
    shown = f" (texts stand in {texts})" if texts else ""
    return f"Tokenise the rows, and make labels numbers (dataset.class_encode_column){shown}."


def _differ_in_length(values: Sequence[Any]) -> bool:
    return len({len(value) for value in values if is_several(value)}) > 1
