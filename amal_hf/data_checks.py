"""What is checked of the data before any training: sets that are not there, or of another kind."""

from typing import Any

import numpy as np

from amal_hf.collator import is_stream
from amal_hf.cross_entropy import CrossEntropy
from amal_hf.label_checks import check_column, check_labels, stored_label_column
from amal_hf.loggers import logger_of
from amal_hf.method import Method
from amal_hf.model_labels import class_names, label_column, tell_nothing
from amal_hf.shapes import EXAMPLE_ID, IGNORED


logger = logger_of(__name__)


def check_data(train_dataset: Any, meta_dataset: Any, method: Method, losses: list[Any], num_labels: int) -> None:
    """Refuse data that training would fail on.

    Raises:
        ValueError: an empty set, a loss's column of labels that is not there, several sets in one, no meta set where
            one is needed, a stream as meta set, a table of weights over a stream without ids, phases over a stream,
            labels that are NaN or outside the classes, or classes of other names in the meta set.
    """
    for name, rows in (("train_dataset", train_dataset), ("meta_dataset", meta_dataset)):
        if isinstance(rows, dict):
            raise ValueError(f"AMALTrainer: {name} holds several splits, {list(rows)}. Pass one: {name}[...].")
    _check_train_set(train_dataset, method, losses, num_labels)
    if method.learns:
        _check_meta_set(train_dataset, meta_dataset, method, num_labels)
    elif meta_dataset is not None:
        logger.warning(
            "The meta set is not used, since method '%s' learns nothing with %s. Pass method=amal() to learn from it.",
            method.name,
            type(method.policy).__name__,
        )


def _check_train_set(rows: Any, method: Method, losses: list[Any], num_labels: int) -> None:
    check_labels(rows, "train_dataset", num_labels)
    for loss in losses:
        if isinstance(loss, CrossEntropy) and loss.column != "labels":
            check_column(rows, loss, num_labels)
    if not is_stream(rows):
        return
    columns = getattr(rows, "column_names", None)
    if method.policy.needs_ids and columns is not None and EXAMPLE_ID not in columns:
        raise ValueError(
            f"AMALTrainer: method '{method.name}' keeps weights by example, and the training set is a stream without "
            f"column '{EXAMPLE_ID}' (it has {columns}). Add a column of unique whole numbers under this name, or use "
            f"a policy that reads the examples: amal(LossNetwork())."
        )
    if method.phase_epochs:
        raise ValueError(
            f"AMALTrainer: method '{method.name}' learns in passes over the whole training set, and a stream has "
            f"to be read in its own order. Use amal(), which learns from the batches that are trained on."
        )


def _check_meta_set(train_dataset: Any, meta_dataset: Any, method: Method, num_labels: int) -> None:
    if meta_dataset is None:
        raise ValueError(
            f"AMALTrainer: method '{method.name}' learns weights on clean held-out examples; pass them as "
            f"`meta_dataset`. A few hundred rows that are in neither train nor eval set are usual."
        )
    if is_stream(meta_dataset):
        raise ValueError(
            "AMALTrainer: meta_dataset must have a length and rows by number; it is a stream. Collect it first: "
            "Dataset.from_list(list(stream))."
        )
    check_labels(meta_dataset, "meta_dataset", num_labels)
    check_names(train_dataset, meta_dataset)
    _check_some_label(meta_dataset)


def check_names(
    train: Any, meta: Any, reader: str = "AMALTrainer", names: tuple[str, str] = ("train_dataset", "meta_dataset")
) -> None:
    """A number means the same class in both sets, as far as they say.

    Args:
        train: rows.
        meta: clean ones.
        reader: who reads them, for messages.
        names: what it calls them.

    Raises:
        ValueError: it means another.
    """
    ours, clean = class_names(train), class_names(meta)
    if tell_nothing(ours) or tell_nothing(clean):
        return
    if ours[: len(clean)] != clean[: len(ours)]:
        raise ValueError(
            f"{reader}: the classes of {names[0]} are {ours[:10]}, and those of {names[1]} are {clean[:10]}, "
            f"so that one number would mean two of them. Read the two together, and they are numbered alike. If they "
            f"are so already, and only the names differ: "
            f'{names[1]}.cast_column("{label_column(meta)}", {names[0]}.features["{label_column(train)}"]).'
        )


def _check_some_label(meta_dataset: Any) -> None:
    column = stored_label_column(meta_dataset, ("labels", "label"))
    if column and all(np.all(np.asarray(labels) == IGNORED) for labels in meta_dataset[column]):
        raise ValueError(
            f"AMALTrainer: no row of meta_dataset['{column}'] has a label, all are {IGNORED}, so there is nothing to "
            f"learn weights from. Pass clean rows with their labels."
        )
