"""A table with one row for every training example, found by example id."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amal_hf.policies.row_file import BLOCK, RowFile
from amal_hf.policies.row_log import RowLog
from amal_hf.shapes import ExampleIds, LossTable


IN_MEMORY = 2**24
"""Numbers of a table (64 MB) from which on it is a file; until there, what a checkpoint costs is little."""


class RowStore(nn.Module):
    """`(N, K)` numbers by example id.

    With a training set of known length the id is the row. For a stream, rows are made as ids turn up, and the table
    grows by doubling.

    Args:
        examples: N, or `None` for a stream.
        fill: `(K,)` what a row holds before it is first written.
        folder: keeps the table there, in a file rather than in memory. Without, only a large table of known length
            is a file, in the system's folder for temporary files.
        in_memory: how many numbers a table without a folder may have before it is a file.
    """

    table: Tensor | RowFile
    fill: Tensor

    def __init__(
        self, examples: int | None, fill: Tensor, folder: str | None = None, in_memory: float = IN_MEMORY
    ) -> None:
        super().__init__()
        self.fixed = examples is not None
        self.rows_of: dict[int, int] = {}
        self.register_buffer("fill", fill.clone(), persistent=False)
        if examples is not None and (folder is not None or examples * len(fill) > in_memory):
            self.table = RowFile(examples, fill, folder)
            self.log = RowLog(self.table)
        else:
            self.register_buffer("table", fill.repeat(16 if examples is None else examples, 1))
        if not self.fixed:
            self.register_load_state_dict_pre_hook(_make_room)

    @property
    def in_memory(self) -> bool:
        """Whether the table is no file."""
        return isinstance(self.table, Tensor)

    def read(self, ids: ExampleIds) -> LossTable:
        """The rows of `ids`, `(B, K)`."""
        rows = self._rows(ids)  # first, as it may replace the table by a larger one
        return self.table[rows]

    def write(self, ids: ExampleIds, values: LossTable) -> None:
        """Replace the rows of `ids`. An id that stands there twice keeps one of its values."""
        rows = self._rows(ids)
        self.table[rows] = values.to(self.fill)
        if not self.in_memory:
            self.log.note(rows)

    @property
    def size(self) -> int | None:
        """N; `None` for a stream."""
        return len(self.table) if self.fixed else None

    def contents(self) -> tuple[Tensor, Tensor]:
        """All ids seen, `(n,)`, and their rows `(n, K)`: a copy."""
        ids, rows = zip(*self.blocks(), strict=True)
        return torch.cat(ids), torch.cat(rows)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same in parts, so that not all of a file need be in memory at once."""
        if isinstance(self.table, RowFile):
            for start in range(0, len(self.table), BLOCK):
                rows = self.table.block(start)
                yield torch.arange(start, start + len(rows)), rows
        elif self.fixed:
            yield torch.arange(len(self.table)), self.table
        else:
            yield torch.tensor(list(self.rows_of), dtype=torch.int64), self.table[: len(self.rows_of)]

    def save_files(self, folder: str | Path) -> None:
        """Keep a table that is a file in the folder of a checkpoint; others are in `state_dict`."""
        if not self.in_memory:
            self.log.save(folder)

    def load_files(self, folder: str | Path) -> None:
        """Restore `save_files`, after `load_state_dict`."""
        if not self.in_memory:
            self.log.load(folder, self._names)

    def get_extra_state(self) -> Tensor | list[str]:
        """The ids of a stream in row order, or the names of a table's files, saved with the table."""
        return torch.tensor(list(self.rows_of), dtype=torch.int64) if self.in_memory else self.log.names

    def set_extra_state(self, state: Tensor | list[str]) -> None:
        """Restore `get_extra_state`."""
        if isinstance(state, Tensor):
            self.rows_of = {example: row for row, example in enumerate(state.tolist())}
        else:
            self._names = state

    def _rows(self, ids: ExampleIds) -> Tensor:
        if self.fill.device != ids.device:
            self.to(ids.device)
        if self.fixed:
            return ids
        rows = [self.rows_of.setdefault(example, len(self.rows_of)) for example in ids.tolist()]
        self._grow()
        return torch.tensor(rows, dtype=torch.int64, device=ids.device)

    def _grow(self) -> None:
        missing = len(self.rows_of) - len(self.table)
        if missing > 0 and isinstance(self.table, Tensor):
            more = self.fill.repeat(max(missing, len(self.table)), 1)
            self.table = torch.cat([self.table, more])


def _make_room(store: RowStore, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A stream's saved table has grown; `load_state_dict` only copies into one of the same size."""
    store.table = store.fill.repeat(len(state[f"{prefix}table"]), 1)
