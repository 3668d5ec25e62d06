"""A table with one row for every training example, found by example id."""

import torch
from torch import Tensor, nn

from amal_hf.shapes import ExampleIds, LossTable


class RowStore(nn.Module):
    """`(N, K)` numbers by example id.

    With a training set of known length the id is the row. For a stream, rows are made as ids turn up, and the table grows by doubling.

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

    def read(self, ids: ExampleIds) -> LossTable:
        """The rows of `ids`, `(B, K)`."""
        return self.table[self._rows(ids)]

    def write(self, ids: ExampleIds, values: LossTable) -> None:
        """Replace the rows of `ids`. An id that stands there twice keeps one of its values."""
        self.table[self._rows(ids)] = values.to(self.table)

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
        self._grow()

    def _rows(self, ids: ExampleIds) -> Tensor:
        if self.table.device != ids.device:
            self.to(ids.device)
        if self.fixed:
            return ids
        rows = [self.rows_of.setdefault(example, len(self.rows_of)) for example in ids.tolist()]
        self._grow()
        return torch.tensor(rows, device=ids.device)

    def _grow(self) -> None:
        missing = len(self.rows_of) - len(self.table)
        if missing > 0:
            more = self.fill.repeat(max(missing, len(self.table)), 1)
            self.table = torch.cat([self.table, more])
