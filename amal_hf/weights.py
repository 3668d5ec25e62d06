"""The weights of all examples as a `datasets.Dataset`."""

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import pyarrow
from torch import Tensor

from amal_hf.policies.store import RowStore
from amal_hf.shapes import EXAMPLE_ID


def weights_dataset(
    store: RowStore, names: Sequence[str], given: Sequence[Any] | None, folder: str | None
) -> datasets.Dataset:
    """One row an example: its id, and one column for each loss.

    Args:
        store: holds the weights. Those of a store that is a file are written to another, in parts, which the dataset
            is then mapped from; it stays there.
        names: of the losses.
        given: the ids that the examples have, in the order of the store; their numbers by default.
        folder: where that file goes; the system's folder for temporary files by default.
    """
    tables = _tables(store, names, given)
    if store.in_memory:
        return datasets.Dataset(next(tables))
    with tempfile.NamedTemporaryFile(prefix="example_weights-", suffix=".arrow", dir=folder, delete=False) as file:
        first = next(tables)
        with pyarrow.ipc.new_stream(file, first.schema) as stream:
            for table in (first, *tables):
                stream.write_table(table)
    return datasets.Dataset.from_file(file.name)


def _tables(store: RowStore, names: Sequence[str], given: Sequence[Any] | None) -> Iterator[pyarrow.Table]:
    start = 0
    for ids, rows in store.blocks():
        own = ids.numpy() if given is None else list(given[start : start + len(ids)])
        yield pyarrow.table({EXAMPLE_ID: own, **_columns(rows, names)})
        start += len(ids)


def _columns(rows: Tensor, names: Sequence[str]) -> dict[str, Any]:
    return dict(zip(names, rows.cpu().T.numpy(), strict=True))
