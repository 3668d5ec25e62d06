"""Datasets divided by the content of their rows. No tensors here."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Value

from amal_hf.columns import find_text_columns, require_columns


def normalise_text(text: Any) -> str:
    """The text with case folded and runs of white space made one blank; tokens are joined by blanks.

    A file may have numbers for texts, or nothing.
    """
    joined = " ".join(map(str, text)) if isinstance(text, (list, tuple)) else str("" if text is None else text)
    return " ".join(joined.casefold().split())


def split_dataset(
    dataset: Dataset, sizes: Mapping[str, int | float], seed: int, text_columns: Sequence[str] | None = None
) -> DatasetDict:
    """Carves splits out of a dataset: seeded, stratified by `label`, with no text in two splits.

    Args:
        dataset: the rows to divide; texts are compared by `normalise_text`.
        sizes: name of the split to its rows (an int), or its share of all rows (a float below 1). Without `"train"`
            among them the rest becomes `train`, less the rows whose text went to another split; with it, the rest is
            left out. Of a text that occurs more than once only the first row can be drawn.
        seed: the same seed draws the same rows.
        text_columns: that hold the text. Default: found by name, see `find_text_columns`.

    Returns:
        The splits, `train` first. Drawn splits are shuffled so that every run of rows has about the classes' shares of
        the whole (where `label` is a `ClassLabel`; otherwise they are simply shuffled); a rest keeps its order.

    Raises:
        ValueError: if a size is neither a positive int nor a share, if there are too few different texts, or if no
            text is found.
    """
    keys = text_keys(dataset, text_columns or find_text_columns(dataset.column_names))
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    order = _stratified_order(dataset, np.array(sorted(first.values()), dtype=np.int64), seed)
    counts = _row_counts(sizes, len(dataset))
    if sum(counts.values()) > len(order):
        raise ValueError(
            f"The splits {counts} need {sum(counts.values())} rows, but the dataset has only {len(order)} different "
            f"texts in {len(dataset)} rows. Ask for smaller splits."
        )
    ends = np.cumsum(list(counts.values()))
    drawn = dict(zip(counts, np.split(order, ends)[:-1], strict=True))
    if "train" not in drawn:
        taken = {keys[row] for rows in drawn.values() for row in rows}
        drawn["train"] = np.array([row for row, key in enumerate(keys) if key not in taken], dtype=np.int64)
    names = sorted(drawn, key=lambda name: name != "train")
    return DatasetDict({name: dataset.select(drawn[name]) for name in names})


def complete_splits(data: DatasetDict, meta_rows: int, seed: int) -> DatasetDict:
    """Train, meta, validation and test, of labelled rows alone; what is missing is taken out of the training set.

    Test sets without labels are no use: the validation set takes their place, and a tenth of the training set its own.

    Args:
        data: with `train`, and a column `label` that is -1 where there is none.
        meta_rows: of the meta set.
        seed: of the draws.

    Raises:
        ValueError: as `split_dataset`; or there is no training set with one label a row, or its labels are floats.
    """
    if "train" not in data or "label" not in data["train"].column_names:
        held = {name: split.column_names for name, split in data.items()}
        raise ValueError(
            f"complete_splits: takes a split 'train' with one label a row, in a column 'label'; the data has {held}."
        )
    label = data["train"].features["label"]
    if isinstance(label, Value) and label.dtype.startswith("float"):
        raise ValueError(
            f"complete_splits: takes labels that are classes, and column 'label' is {label}. Numbers to predict are "
            f"split by split_dataset, and their student is loaded with num_labels=1."
        )
    labelled = {name: split.filter(lambda row: row["label"] >= 0) for name, split in data.items()}
    given = {name: split for name, split in labelled.items() if len(split) and name in ("validation", "test")}
    if "test" not in given and "validation" in given:
        given = {"test": given["validation"]}
    missing = {name: 0.1 for name in ("validation", "test") if name not in given}
    return DatasetDict({**split_dataset(labelled["train"], {"meta": meta_rows, **missing}, seed), **given})


def overlap(a: Dataset, b: Dataset, columns: Sequence[str]) -> list[int]:
    """The rows of `a` whose text in `columns`, after `normalise_text`, also stands in `b`."""
    known = set(text_keys(b, columns))
    return [row for row, key in enumerate(text_keys(a, columns)) if key in known]


def text_keys(dataset: Dataset, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """By what texts of rows are compared: after `normalise_text`, a part for each column.

    Raises:
        ValueError: a column that is not there.
    """
    require_columns(dataset.column_names, columns)
    plain = dataset.with_format(None)
    texts = ([normalise_text(text) for text in plain[column]] for column in columns)
    return list(zip(*texts, strict=True))


def _stratified_order(dataset: Dataset, rows: np.ndarray, seed: int) -> np.ndarray:
    """The rows shuffled so that each stretch of them has about the classes' shares of the whole.

    The n rows of a class get one random place in each n-th of the unit interval; sorting by place mixes the classes.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(rows)
    if not isinstance(dataset.features.get("label"), ClassLabel):
        return rows
    labels = np.asarray(dataset.with_format(None)["label"][:], dtype=np.int64)[rows]
    places = np.empty(len(rows))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        places[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return rows[np.argsort(places, kind="stable")]


def _row_counts(sizes: Mapping[str, int | float], total: int) -> dict[str, int]:
    """Rows of every split. Shares are rounded where one ends and the next begins: those of a whole add up to it."""
    counts, end = {}, 0.0
    for name, size in sizes.items():
        whole = isinstance(size, Integral)
        counts[name] = int(size) if whole else round((end + size) * total) - round(end * total)
        end += 0.0 if whole else size
        if counts[name] < 1 or not (whole or size < 1):
            raise ValueError(
                f"Split {name!r} should be a positive number of rows or a share below 1, but came as {size} of "
                f"{total} rows."
            )
    return counts
