"""The splits of learning from rules: few labelled rows, many unlabelled ones with votes, and three clean sets.

labelled     L: few rows with labels, trained on
unlabelled   rows without labels, on which rules vote
train        both of these; -100 stands where there is no label
meta         clean rows from which weights are learned: neither trained on nor used to choose a model
validation   to choose a model by
test
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from amal_hf.columns import find_text_columns, replace_column
from amal_hf.label_column import label_feature, with_unlabelled
from amal_hf.loggers import logger_of
from amal_hf.shapes import ABSTAIN, IGNORED, TRUE_LABEL, VOTES
from amal_hf.splits import overlap, split_dataset, text_keys


logger = logger_of(__name__)


def weak_splits(
    data: DatasetDict,
    labelled: int = 100,
    meta: float = 0.5,
    seed: int = 0,
    meta_is_validation: bool = False,
    drop_overlap: bool = False,
    text_columns: Sequence[str] | None = None,
) -> DatasetDict:
    """Makes the splits, with no text in two of them.

    Args:
        data: `train` with votes and `validation` and `test` with labels, as `read_dataset` reads them: one a row
            (`label`), or one a token (`labels`). If there is a split `labeled`, its rows are L.
        labelled: otherwise, how many rows of `train` become L.
        meta: share of `validation` that becomes the meta set.
        seed: of the draws.
        meta_is_validation: let the validation set be the meta set as well, with a warning: its scores are then those
            of rows that the weights were learned on.
        drop_overlap: take rows of a given L that are in the test set too out of L, with a warning, instead of refusing
            them.
        text_columns: that hold the text. Default: found by name, see `find_text_columns`.

    Returns:
        All six splits. Rows whose text stands in a later one of the list test, validation, meta, labelled are dropped,
        and counted in the log.

    Raises:
        ValueError: a split is missing, no text is found, L shares rows with the test set and they are not to be
            dropped, or nothing is left of a split.
    """
    missing = [name for name in ("train", "validation", "test") if name not in data]
    if missing:
        raise ValueError(f"weak_splits: there is no split {missing}; there are {list(data)}.")
    columns = tuple(text_columns or find_text_columns(data["train"].column_names))
    known = _labelled_rows(data, labelled, seed, columns, drop_overlap)
    validation, clean = _clean_rows(
        _with_labels(data["validation"], "validation"), meta, seed, columns, meta_is_validation
    )
    splits, seen = {"test": data["test"]}, set(text_keys(data["test"], columns))
    for name, rows in (
        ("validation", validation),
        ("meta", clean),
        ("labelled", known),
        ("unlabelled", data["train"]),
    ):
        same = name == "meta" and meta_is_validation
        splits[name] = splits["validation"] if same else _without(rows, seen, columns, name)
        seen |= set(text_keys(splits[name], columns))
    splits["train"] = _training(splits["labelled"], splits["unlabelled"])
    order = ("train", "labelled", "unlabelled", "meta", "validation", "test")
    return DatasetDict({name: splits[name] for name in order})


def _labelled_rows(data: DatasetDict, count: int, seed: int, columns: tuple[str, ...], drop_overlap: bool) -> Dataset:
    """L: as given, or drawn out of the training set."""
    if "labeled" in data:
        _report_overlap(data["labeled"], data["test"], columns, refuse=not drop_overlap)
        return data["labeled"]
    return split_dataset(_with_labels(data["train"], "train"), {"labelled": count}, seed, columns)["labelled"]


def _clean_rows(
    rows: Dataset, meta: float, seed: int, columns: tuple[str, ...], meta_is_validation: bool
) -> tuple[Dataset, Dataset]:
    """Validation and meta set."""
    if meta_is_validation:
        logger.warning(
            "The meta set is the validation set, as asked for: scores on it are those of rows that the weights were "
            "learned on, and choosing a model by them is biased."
        )
        return rows, rows
    drawn = split_dataset(rows, {"meta": meta}, seed, columns)
    return drawn["train"], drawn["meta"]


def _with_labels(rows: Dataset, name: str) -> Dataset:
    """The rows that have a label; tokens are labelled row by row."""
    if "label" not in rows.column_names:
        return rows
    known = [row for row, label in enumerate(rows["label"][:]) if label is not None and label >= 0]
    if not known:
        raise ValueError(
            f"weak_splits: no row of '{name}' has a label. Put those that have one into a split 'labeled'."
        )
    return rows if len(known) == len(rows) else rows.select(known)


def _report_overlap(known: Dataset, test: Dataset, columns: tuple[str, ...], refuse: bool) -> None:
    shared = overlap(known, test, columns)
    if shared and refuse:
        raise ValueError(
            f"weak_splits: {len(shared)} of {len(known)} labelled rows are in the test set too (first: row "
            f"{shared[0]}). Take them out, or let drop_overlap=True do so: a test of what was trained on says nothing."
        )
    if shared:
        logger.warning("%d of %d labelled rows are in the test set too and were dropped.", len(shared), len(known))


def _without(rows: Dataset, seen: set[tuple[str, ...]], columns: tuple[str, ...], name: str) -> Dataset:
    kept = [row for row, text in enumerate(text_keys(rows, columns)) if text not in seen]
    if len(kept) < len(rows):
        logger.info("%d rows of '%s' are in another split as well and were dropped.", len(rows) - len(kept), name)
    if not kept:
        raise ValueError(f"weak_splits: all {len(rows)} rows of '{name}' are in other splits; nothing is left of it.")
    return rows.select(kept)


def _training(labelled: Dataset, unlabelled: Dataset) -> Dataset:
    # A label a token stands in `labels`, as `read_dataset` names them.
    column = "label" if "label" in labelled.column_names else "labels"
    kind = label_feature(labelled if column in labelled.column_names else unlabelled, column)
    if VOTES in unlabelled.column_names and VOTES not in labelled.column_names:
        # Labelled by hand: no rule has looked at these rows.
        feature = unlabelled.features[VOTES]
        labelled = replace_column(labelled, VOTES, _silent(labelled, unlabelled.with_format(None)[0][VOTES]), feature)
    parts = []
    for rows, given in ((labelled, True), (unlabelled, False)):
        truth = [np.array(label, dtype=np.int64) for label in _truth(rows, column)]
        labels = [np.where(label >= 0, label, IGNORED) if given else np.full_like(label, IGNORED) for label in truth]
        known = replace_column(rows, TRUE_LABEL, [label.tolist() for label in truth], kind)
        parts.append(replace_column(known, column, [label.tolist() for label in labels], kind))
    return concatenate_datasets(parts)


def _silent(rows: Dataset, votes: list[Any]) -> list[list[Any]]:
    """What rules that vote as in `votes`, on a row or on each of its tokens, have said of rows that they never saw."""
    if votes and isinstance(votes[0], list):
        return [[[ABSTAIN] * len(votes[0])] * len(tokens) for tokens in rows.with_format(None)["tokens"]]
    return [[ABSTAIN] * len(votes)] * len(rows)


def _truth(rows: Dataset, column: str) -> list[Any]:
    """Labels, and -1 where none is known."""
    given = rows.with_format(None)[column][:] if column in rows.column_names else [None] * len(rows)
    return with_unlabelled(given, rows, column == "labels")
