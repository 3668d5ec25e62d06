"""A table with one row for every training example, found by example id."""

from typing import Any

import torch
from torch import Tensor, nn

from amal_hf.shapes import ExampleIds, LossTable


class RowStore(nn.Module):
    """`(N, K)` numbers by example id.

    With a training set of known length the id is the row. For a stream, rows are made as ids turn up, and the table
    grows by doubling.

    Args:
        examples: N, or `None` for a stream.
        fill: `(K,)` what a row holds before it is first written.
    """

    table: Tensor
    fill: Tensor

    def __init__(self, examples: int | None, fill: Tensor) -> None:
        super().__init__()
        self.fixed = examples is not None
        self.rows_of: dict[int, int] = {}
        self.register_buffer("fill", fill.clone(), persistent=False)
        self.register_buffer("table", fill.repeat(16 if examples is None else examples, 1))
        if not self.fixed:
            self.register_load_state_dict_pre_hook(_make_room)

    def read(self, ids: ExampleIds) -> LossTable:
        """The rows of `ids`, `(B, K)`."""
        rows = self._rows(ids)  # first, as it may replace the table by a larger one
        return self.table[rows]

    def write(self, ids: ExampleIds, values: LossTable) -> None:
        """Replace the rows of `ids`. An id that stands there twice keeps one of its values."""
        rows = self._rows(ids)
        self.table[rows] = values.to(self.table)

    @property
    def size(self) -> int | None:
        """N; `None` for a stream."""
        return len(self.table) if self.fixed else None

    def contents(self) -> tuple[Tensor, Tensor]:
        """All ids seen, `(n,)`, and their rows `(n, K)`."""
        if self.fixed:
            return torch.arange(len(self.table)), self.table
        return torch.tensor(list(self.rows_of), dtype=torch.int64), self.table[: len(self.rows_of)]

    def get_extra_state(self) -> Tensor:
        """The ids of a stream in row order, saved with the table."""
        return torch.tensor(list(self.rows_of), dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore `get_extra_state`."""
        self.rows_of = {example: row for row, example in enumerate(state.tolist())}

    def _rows(self, ids: ExampleIds) -> Tensor:
        if self.table.device != ids.device:
            self.to(ids.device)
        if self.fixed:
            return ids
        rows = [self.rows_of.setdefault(example, len(self.rows_of)) for example in ids.tolist()]
        self._grow()
        return torch.tensor(rows, dtype=torch.int64, device=ids.device)

    def _grow(self) -> None:
        missing = len(self.rows_of) - len(self.table)
        if missing > 0:
            more = self.fill.repeat(max(missing, len(self.table)), 1)
            self.table = torch.cat([self.table, more])


def _make_room(store: RowStore, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A stream's saved table has grown; `load_state_dict` only copies into one of the same size."""
    store.table = store.fill.repeat(len(state[f"{prefix}table"]), 1)
