"""What is checked of the data before any training: labels, targets, columns, the first batch; and once after it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from amal_hf.clean_probe import FEWEST_ROWS
from amal_hf.collator import is_stream, is_transformed, rows_of
from amal_hf.cross_entropy import CrossEntropy
from amal_hf.distillation import Distillation
from amal_hf.generators import is_causal, is_encoder_decoder
from amal_hf.loggers import logger_of
from amal_hf.losses import Loss
from amal_hf.method import Method
from amal_hf.model_labels import class_count
from amal_hf.policies.bayes_share import MOST_CLASSES
from amal_hf.policies.policy import Policy
from amal_hf.random_numbers import own_random_numbers
from amal_hf.shapes import EXAMPLE_ID, IGNORED, Batch
from amal_hf.task import Task


logger = logger_of(__name__)

MANY_WRONG, FAR_FEWER = 0.1, 0.5
"""Of eight sets of wrong labels these tell five in which a teacher had been trained on them, and suspect no teacher
that had not (`benchmarks/LOG.md`)."""


def check_generator(model: Any, losses: list[Any], method: Method, sets: dict[str, Any]) -> None:
    """Refuse what cannot be trained on a student that generates text; and `top_k` on one that does not.

    Args:
        model: the student.
        losses: as given to the trainer.
        method: how their weights are learned.
        sets: training and meta set by name.

    Raises:
        ValueError: a row without a single target token, a method that reads the output layer, or `top_k` on a
            classifier.
    """
    cut = [loss.name for loss in losses if getattr(loss, "top", None) is not None]
    if cut and method.per_token:
        raise ValueError(f"Distillation '{cut[0]}': top_k does not go with per_token=True. Leave one of them out.")
    if not is_causal(model) and not is_encoder_decoder(model):
        if cut:
            raise ValueError(
                f"Distillation '{cut[0]}': top_k is for students that generate text; {type(model).__name__} has few "
                "classes. Leave it out."
            )
        return
    if method.tangent.head_alone:
        raise ValueError(
            f"LastLayer: the output layer of {type(model).__name__} is as wide as its vocabulary, and often tied to "
            "the embeddings. Use FiniteDifference(), which works with any student."
        )
    for name, dataset in sets.items():
        _check_targets(dataset, name, is_causal(model))


def _check_targets(dataset: Any, name: str, shifted: bool) -> None:
    if not isinstance(dataset, datasets.Dataset) or is_transformed(dataset):
        return
    wanted = ("labels", "input_ids") if shifted else ("labels",)
    column = next((c for c in wanted if c in dataset.column_names), None)
    if column is None:
        return
    # The first token of a causal language model has nothing before it that could predict it.
    empty = _without_target(dataset.select_columns([column]).with_format("arrow"), int(shifted))
    if empty:
        raise ValueError(
            f"AMALTrainer: {name}['{column}'] has no target token in {len(empty)} of {len(dataset)} rows: "
            f"{', '.join(map(str, empty[:5]))}{' ...' if len(empty) > 5 else ''}. Such a row has no loss "
            f"{'(the first token is never predicted) ' if shifted else ''}and would earn weights from nothing; "
            "remove these rows."
        )


def _without_target(rows: datasets.Dataset, left_out: int) -> list[int]:
    """The rows, lists of labels, that have no label but among the first `left_out`."""
    empty: list[int] = []
    for start in range(0, len(rows), 10_000):
        (column,) = rows[start : start + 10_000].columns
        lengths = pc.list_value_length(column).to_numpy()
        places = np.arange(lengths.sum()) - (lengths.cumsum() - lengths).repeat(lengths)
        known = (pc.list_flatten(column).to_numpy() != IGNORED) & (places >= left_out)
        counts = np.bincount(np.arange(len(lengths)).repeat(lengths)[known], minlength=len(lengths))
        empty += (start + np.flatnonzero(counts == 0)).tolist()
    return empty


def check_data(train_dataset: Any, meta_dataset: Any, method: Method, losses: list[Any], num_labels: int) -> None:
    """Refuse data that training would fail on.

    Raises:
        ValueError: an empty set, a loss's column of labels that is not there, several sets in one, no meta set where
            one is needed, a stream as meta set, a table of weights over a stream without ids, phases over a stream,
            or labels that are NaN or outside the classes.
    """
    for name, rows in (("train_dataset", train_dataset), ("meta_dataset", meta_dataset)):
        if isinstance(rows, dict):
            raise ValueError(f"AMALTrainer: {name} holds several splits, {list(rows)}. Pass one: {name}[...].")
    check_labels(train_dataset, "train_dataset", num_labels)
    for loss in losses:
        if isinstance(loss, CrossEntropy) and loss.column != "labels":
            _check_column(train_dataset, loss, num_labels)
    columns = getattr(train_dataset, "column_names", None)
    if method.policy.needs_ids and is_stream(train_dataset) and columns is not None and EXAMPLE_ID not in columns:
        raise ValueError(
            f"AMALTrainer: method '{method.name}' keeps weights by example, and the training set is a stream without "
            f"column '{EXAMPLE_ID}' (it has {columns}). "
            "Add a column of unique whole numbers under this name, or use a policy that reads the examples: "
            "amal(LossNetwork())."
        )
    if method.phase_epochs and is_stream(train_dataset):
        raise ValueError(
            f"AMALTrainer: method '{method.name}' learns in passes over the whole training set, and a stream has "
            f"to be read in its own order. Use amal(), which learns from the batches that are trained on."
        )
    if not method.learns:
        if meta_dataset is not None:
            logger.warning(
                "The meta set is not used, since method '%s' learns nothing with %s. Pass method=amal() to learn from "
                "it.",
                method.name,
                type(method.policy).__name__,
            )
        return
    if meta_dataset is None:
        raise ValueError(
            f"AMALTrainer: method '{method.name}' learns weights on clean held-out examples; pass them as "
            f"`meta_dataset`. "
            "A few hundred rows that are in neither train nor eval set are usual."
        )
    if is_stream(meta_dataset):
        raise ValueError(
            "AMALTrainer: meta_dataset must have a length and rows by number; it is a stream. Collect it first: "
            "Dataset.from_list(list(stream))."
        )
    check_labels(meta_dataset, "meta_dataset", num_labels)
    _check_some_label(meta_dataset)


def _check_some_label(meta_dataset: Any) -> None:
    column = _label_column(meta_dataset, ("labels", "label"))
    if column and all(np.all(np.asarray(labels) == IGNORED) for labels in meta_dataset[column]):
        raise ValueError(
            f"AMALTrainer: no row of meta_dataset['{column}'] has a label, all are {IGNORED}, so there is nothing to "
            f"learn weights from. Pass clean rows with their labels."
        )


def problem_type(model: Any, *sets: Any) -> str | None:
    """How the student's logits are read: as its configuration says, or as its head will when it is first called.

    Heads of `transformers` look at the first labels they see and write down what these are; losses without labels of
    their own have to know before.

    Args:
        model: the student.
        sets: datasets that may have labels.
    """
    said: str | None = getattr(model.config, "problem_type", None)
    if said is not None:
        return said
    if class_count(model) == 1:
        return "regression"
    return "multi_label_classification" if any(_has_yes_no_labels(rows) for rows in sets) else None


def _has_yes_no_labels(dataset: Any) -> bool:
    row = {} if dataset is None or is_stream(dataset) else dataset[0]
    if not isinstance(row, Mapping):
        return False
    label = np.asarray(row.get("labels", row.get("label")))
    return label.ndim == 1 and np.issubdtype(label.dtype, np.floating)


def _check_column(dataset: Any, loss: CrossEntropy, num_labels: int) -> None:
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
    column = _label_column(dataset, columns)
    if column is None:
        return
    labels = dataset.select_columns([column])
    for start in range(0, len(labels), 10_000):
        _check_label_block(labels[start : start + 10_000][column], start, f"{name}['{column}']", num_labels)


def _label_column(dataset: Any, columns: Sequence[str]) -> str | None:
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
        if np.isnan(flat).any():
            rows = [start + i for i, value in enumerate(block) if np.isnan(np.asarray(value)).any()]
            raise ValueError(
                f"AMALTrainer: {where} is NaN in {len(rows)} of {len(block)} rows from {start}, first in row "
                f"{rows[0]}. Remove or fix these rows."
            )
        if num_labels > 1 and np.ndim(block[0]) == 0:
            raise ValueError(
                f"AMALTrainer: {where} holds {block[0]!r}, a number with a fraction, and the student has {num_labels} "
                f"classes. Cast the column to whole numbers; for numbers to be hit load the student with num_labels=1."
            )
    elif num_labels > 1 and np.issubdtype(flat.dtype, np.integer):
        wrong = flat[(flat != IGNORED) & ((flat < 0) | (flat >= num_labels))]
        if len(wrong):
            raise ValueError(
                f"AMALTrainer: {where} holds the label {wrong[0]}; the student has classes 0 to {num_labels - 1} "
                f"({IGNORED} for no label, where `read_dataset` has -1). Set num_labels when loading the student."
            )


def check_first_rows(
    dataset: Any,
    collate: Callable[[list[Any]], Batch],
    name: str,
    losses: Sequence[Loss],
    task: Task,
    by_token: bool,
) -> None:
    """Make a batch of the first two rows, and refuse one that losses cannot read.

    Args:
        dataset: has rows by number.
        collate: makes its batches.
        name: for messages.
        losses: that are to be taken of it.
        task: how the student's logits are read.
        by_token: whether the student answers for every token.

    Raises:
        ValueError: no batch can be made, or it lacks what a loss reads, or its labels are of another kind.
    """
    batch, rows = _first_batch(dataset, collate, name)
    for loss in losses:
        _check_read(loss, batch, name)
    labels = batch.get("labels")
    if isinstance(labels, Tensor):
        _check_kind(labels, rows, name, task, by_token)


def _first_batch(dataset: Any, collate: Callable[[list[Any]], Batch], name: str) -> tuple[Batch, int]:
    """A batch of the first two rows, or of the one there is, and how many they are."""
    with own_random_numbers(0):
        rows = rows_of(dataset, range(min(2, len(dataset))))
        try:
            return collate(rows), len(rows)
        except Exception as error:
            raise ValueError(
                f"AMALTrainer: the data collator makes no batch of the first rows of {name}, which hold "
                f"{sorted(rows[0]) if isinstance(rows[0], Mapping) else type(rows[0]).__name__}: {error} "
                f"{_collator_advice(rows[0])}"
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


def _collator_advice(row: Any) -> str:
    """What to do about a row that no batch can be made of."""
    held = row if isinstance(row, Mapping) else {}
    labels, texts = held.get("labels", held.get("label")), [n for n, value in held.items() if isinstance(value, str)]
    if isinstance(labels, Sequence) and not isinstance(labels, str) and not texts:
        return (
            "Labels of tokens need a collator that fills them up: DataCollatorForTokenClassification, or "
            "DataCollatorForSeq2Seq where the student writes."
        )
    shown = f" (texts stand in {texts})" if texts else ""
    return f"Tokenise the rows, and make labels numbers (dataset.class_encode_column){shown}."


def warn_of_large_meta_batch(rows: int, batch_size: int) -> None:
    """Warn where what clean rows say of an example cannot be asked, as too few are outside the present meta batch."""
    if rows - batch_size < FEWEST_ROWS <= rows:
        logger.warning(
            "A meta batch of %d of the %d clean rows leaves less than %d to say what labels these would have: weights "
            "go without. Lower meta_batch_size.",
            batch_size,
            rows,
            FEWEST_ROWS,
        )


def warn_of_unread_teacher(policy: Policy, teachers: Sequence[Distillation]) -> None:
    """Say so where it makes no difference to the weights that a teacher has not seen the labels.

    Args:
        policy: once it was told of labels.
        teachers: of the losses.
    """
    names = [teacher.name for teacher in teachers if not teacher.has_seen_labels]
    if names and "wrong_labels_by_teacher" not in policy.figures():
        logger.warning(
            "Distillation %s: has_seen_labels=False makes no difference to weights of %s here. LossNetwork(), which "
            "is in amal(), reads it of one such teacher beside CrossEntropy(), for weights that are a mixture, where "
            "labels are one class each, of at most %d, and training rows can be drawn by number. Train so, or leave "
            "it out.",
            names,
            type(policy).__name__,
            MOST_CLASSES,
        )


def warn_of_seen_labels(figures: Mapping[str, float]) -> None:
    """Say so where a teacher takes far fewer labels for wrong than clean rows do: it was trained on them.

    Args:
        figures: of a policy at the end of training.
    """
    by_rows, by_teacher = (figures.get(name, math.nan) for name in ("wrong_labels", "wrong_labels_by_teacher"))
    if by_rows > MANY_WRONG and by_teacher < FAR_FEWER * by_rows:
        logger.warning(
            "By clean rows %.0f %% of the training labels are wrong, by the teacher of which it is said that it has "
            "not seen them %.0f %%: it may have been trained on them after all, and then takes them for right. Leave "
            "out has_seen_labels=False, or take a teacher of the clean rows alone.",
            100 * by_rows,
            100 * by_teacher,
        )
