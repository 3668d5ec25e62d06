"""Rows that the meta set shares with the training set, and a meta set that is the evaluation set."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pandas.util import hash_array

from amal_hf.loggers import logger_of
from amal_hf.shapes import EXAMPLE_ID


logger = logger_of(__name__)

OVERLAP_LIMIT = 1_000_000
"""Rows of a training set that are compared with the meta set; more would take longer than it is worth."""

_BLOCK = 50_000


def warn_of_shared_sets(meta_dataset: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """Warn of a meta set that shares rows with the training set, or is the evaluation set."""
    evaluated = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
    if meta_dataset is not None and any(meta_dataset is rows for rows in evaluated):
        logger.warning(
            "The meta set is the evaluation set: its scores are then those of examples that the weights were learned "
            "on, and choosing a model by them is biased. Pass a set of its own as `meta_dataset`."
        )
    if isinstance(train_dataset, datasets.Dataset) and isinstance(meta_dataset, datasets.Dataset):
        _warn_of_shared_rows(train_dataset, meta_dataset)


def _warn_of_shared_rows(train: datasets.Dataset, meta: datasets.Dataset) -> None:
    first = train.take(min(len(train), OVERLAP_LIMIT))
    for columns in _compared(train, meta):
        count = count_shared(first, meta, columns)
        if count:
            logger.warning(
                "%d of the first %d training rows are also in the meta set (same %s). Clean rows may serve as both in "
                "a short run; a student that has learned them by heart no longer shows which other rows help. Take "
                "them out of one of the two for a long run.",
                count,
                len(first),
                " and ".join(columns),
            )


def _compared(train: datasets.Dataset, meta: datasets.Dataset) -> list[list[str]]:
    """By what rows of two sets may be the same: texts, or else token ids; and ids."""
    shared = sorted(set(train.column_names) & set(meta.column_names))
    texts = [name for name in shared if name != EXAMPLE_ID and _tells_rows_apart(meta, name)]
    by_content = texts or [name for name in ("input_ids",) if name in shared]
    by_id = [name for name in (EXAMPLE_ID,) if name in shared]
    return [columns for columns in (by_content, by_id) if columns]


def _tells_rows_apart(rows: datasets.Dataset, column: str) -> bool:
    """Whether strings are texts, and not names of a few kinds, as a source or a class."""
    is_text = rows.features[column] in (datasets.Value("string"), datasets.Value("large_string"))
    return is_text and 2 * len(rows.unique(column)) > len(rows)


def count_shared(rows: datasets.Dataset, others: datasets.Dataset, columns: Sequence[str]) -> int:
    """How many of `rows` are, in these columns, the same as any of `others`.

    Rows are looked at in full only where their hashes meet.
    """
    rows, others = (part.select_columns(list(columns)) for part in (rows, others))
    like = np.flatnonzero(np.isin(_hashes(rows), _hashes(others)))
    keys = set(_keys(others))
    return sum(key in keys for key in _keys(rows.select(like)))


def _keys(rows: datasets.Dataset) -> list[str]:
    plain = rows.with_format(None)
    return [repr(row) for row in zip(*(plain[column] for column in plain.column_names), strict=True)]


def _hashes(rows: datasets.Dataset) -> NDArray[np.uint64]:
    """One number a row, `(N,)`; equal rows have equal ones."""
    parts = [np.zeros(0, np.uint64)]
    for start in range(0, len(rows), _BLOCK):
        table = rows.with_format("arrow")[start : start + _BLOCK]
        parts.append(np.sum([_hash(column.combine_chunks()) for column in table.columns], 0, dtype=np.uint64))
    return np.concatenate(parts)


def _hash(column: pa.Array) -> NDArray[np.uint64]:
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return hash_array(column.to_numpy(zero_copy_only=False))
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    ends = lengths.cumsum()
    values = _hash(pc.list_flatten(column))
    places = (np.arange(len(values)) - (ends - lengths).repeat(lengths)).astype(np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), ((values + 1) * (2 * places + 1)).cumsum(dtype=np.uint64)])
    return sums[ends] - sums[ends - lengths]
