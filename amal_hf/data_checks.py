"""What is checked of the data before any training: labels, targets, columns, and rows that two sets share."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from amal_hf.clean_probe import FEWEST_ROWS
from amal_hf.collator import is_stream, is_transformed
from amal_hf.generators import class_count, is_causal, is_encoder_decoder
from amal_hf.last_layer import LastLayer
from amal_hf.losses import IGNORED, CrossEntropy
from amal_hf.meta import Method
from amal_hf.shapes import EXAMPLE_ID, Batch


logger = logging.getLogger(__name__)

OVERLAP_LIMIT = 1_000_000
"""Rows of a training set that are compared with the meta set; more would take longer than it is worth."""


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
    if isinstance(method.tangent, LastLayer):
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
    empty = [
        row for row, labels in enumerate(dataset[column]) if not (np.asarray(labels)[int(shifted) :] != IGNORED).any()
    ]
    if empty:
        raise ValueError(
            f"AMALTrainer: {name}['{column}'] has no target token in {len(empty)} of {len(dataset)} rows: "
            f"{', '.join(map(str, empty[:5]))}{' ...' if len(empty) > 5 else ''}. Such a row has no loss "
            f"{'(the first token is never predicted) ' if shifted else ''}and would earn weights from nothing; "
            "remove these rows."
        )


def check_data(train_dataset: Any, meta_dataset: Any, method: Method, losses: list[Any], num_labels: int) -> None:
    """Refuse data that training would fail on.

    Raises:
        ValueError: an empty set, a loss's column of labels that is not there, several sets in one, no meta set where
            one is needed, a stream as meta set, a table of weights over a stream without ids, phases over a stream,
            or labels that are NaN or outside the classes.
    """
    for name, rows in (("train_dataset", train_dataset), ("meta_dataset", meta_dataset)):
        if isinstance(rows, datasets.DatasetDict):
            raise ValueError(f"AMALTrainer: {name} holds several splits, {list(rows)}. Pass one: {name}[...].")
    check_labels(train_dataset, "train_dataset", num_labels)
    for loss in losses:
        if isinstance(loss, CrossEntropy) and loss.columns:
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
                "The meta set is not used, since method '%s' learns nothing. Pass method=amal() to learn from it.",
                method.name,
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


def problem_type(model: Any, *sets: Any) -> str | None:
    """How the student's logits are read: as its configuration says, or as its head will when it is first called.

    Heads of `transformers` look at the first labels they see and write down what these are; losses without labels of
    their own have to know before.

    Args:
        model: the student.
        sets: datasets that may have labels.
    """
    said: str | None = model.config.problem_type
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
        check_labels(dataset, "train_dataset", num_labels, loss.columns)


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
    if not isinstance(dataset, datasets.Dataset) or is_transformed(dataset):
        return
    column = next((c for c in columns if c in dataset.column_names), None)
    if column is None:
        return
    labels = dataset.select_columns([column])
    for start in range(0, len(labels), 10_000):
        _check_label_block(labels[start : start + 10_000][column], start, f"{name}['{column}']", num_labels)


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
    elif num_labels > 1 and np.issubdtype(flat.dtype, np.integer):
        wrong = flat[(flat != IGNORED) & ((flat < 0) | (flat >= num_labels))]
        if len(wrong):
            raise ValueError(
                f"AMALTrainer: {where} holds the label {wrong[0]}; the student has classes 0 to {num_labels - 1} "
                f"({IGNORED} for no label, where `read_dataset` has -1). Set num_labels when loading the student."
            )


def check_meta_batch(batch: Batch, objective: CrossEntropy) -> None:
    """Refuse a meta set without what its objective reads.

    Raises:
        ValueError: the collator makes no labels.
    """
    if objective.column not in batch:
        raise ValueError(
            f"AMALTrainer: the meta set has no '{objective.column}': its batches hold {sorted(batch)}. Weights are "
            f"learned from clean labels; give its rows a column 'label' or 'labels'."
        )


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


def warn_of_shared_sets(meta_dataset: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """Warn of a meta set that shares rows with the training set, or is the evaluation set."""
    if meta_dataset is not None and meta_dataset is eval_dataset:
        logger.warning(
            "The meta set is the evaluation set: its scores are then those of examples that the weights were learned "
            "on, and choosing a model by them is biased. Pass a set of its own as `meta_dataset`."
        )
    if not isinstance(train_dataset, datasets.Dataset) or not isinstance(meta_dataset, datasets.Dataset):
        return
    train_dataset, meta_dataset = (rows.with_format(None) for rows in (train_dataset, meta_dataset))
    shared = set(train_dataset.column_names) & set(meta_dataset.column_names)
    texts = sorted(c for c in shared if train_dataset.features[c] == datasets.Value("string") and c != EXAMPLE_ID)
    by_content = texts or [c for c in ("input_ids",) if c in shared]
    by_id = [EXAMPLE_ID] if EXAMPLE_ID in shared else []
    for columns in (by_content, by_id):
        count = _count_overlap(train_dataset, meta_dataset, columns) if columns else 0
        if count:
            logger.warning(
                "%d of the first %d training rows are also in the meta set (same %s). Clean rows may serve as both in "
                "a short run; a student that has learned them by heart no longer shows which other rows help. Take "
                "them out of one of the two for a long run.",
                count,
                min(len(train_dataset), OVERLAP_LIMIT),
                " and ".join(columns),
            )


def _count_overlap(train_dataset: datasets.Dataset, meta_dataset: datasets.Dataset, columns: list[str]) -> int:
    meta = set(_keys(meta_dataset, columns))
    return sum(key in meta for key in _keys(train_dataset.take(min(len(train_dataset), OVERLAP_LIMIT)), columns))


def _keys(dataset: datasets.Dataset, columns: list[str]) -> list[str]:
    rows = zip(*(dataset[column] for column in columns), strict=True)
    return [repr(row) for row in rows]
