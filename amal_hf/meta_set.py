"""The clean meta set, as an endless sequence of numbered batches.

Batch n is a function of the seed and n alone, so a run that was interrupted only has to remember n, and no global
random number is drawn.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from amal_hf.collator import rows_of
from amal_hf.random_numbers import own_random_numbers
from amal_hf.shapes import Batch


COMPARED_ROWS = 16
"""By which two meta sets of one size are told apart: drawn anew, they differ in these."""


class MetaSet:
    """Shuffled passes over a small dataset, cut into batches that run on across the end of a pass.

    Args:
        rows: the dataset; `rows[i]` is what the collator takes.
        collate: list of rows to batch.
        batch_size: examples in a batch; a smaller dataset gives all it has.
        seed: of the shuffling.

    Raises:
        ValueError: an empty dataset or a batch size below 1.
    """

    def __init__(self, rows: Sequence[Any], collate: Callable[[list[Any]], Batch], batch_size: int, seed: int) -> None:
        if len(rows) == 0 or batch_size < 1:
            raise ValueError(
                f"The meta set has {len(rows)} rows and meta_batch_size is {batch_size}; both must be at least 1."
            )
        self.rows = rows
        self.collate = collate
        self.batch_size = min(batch_size, len(rows))
        self.seed = seed
        self._order: tuple[int, list[int]] = (-1, [])

    def batch(self, number: int) -> Batch:
        """Batch `number`, counted from 0."""
        with own_random_numbers(self.seed * 1_000_003 + number):
            return self.collate(rows_of(self.rows, self.numbers(number)))

    @cached_property
    def identity(self) -> list[int]:
        """How many rows, and a checksum of what the collator makes of the first: what tells this set from another."""
        with own_random_numbers(0):
            batch = self.collate(rows_of(self.rows, range(min(len(self.rows), COMPARED_ROWS))))
        tensors = [batch[name] for name in sorted(batch) if isinstance(batch[name], Tensor)]
        sums = [zlib.crc32(tensor.detach().cpu().double().numpy().tobytes()) for tensor in tensors]
        return [len(self.rows), *sums]

    def numbers(self, number: int) -> list[int]:
        """Which rows batch `number` has."""
        first = number * self.batch_size
        return [self._row(position) for position in range(first, first + self.batch_size)]

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.rows))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = (epoch, torch.randperm(len(self.rows), generator=generator).tolist())
        return self._order[1][offset]
