"""What slopes an example has had: a single one is mostly noise, their mean is not."""

import math

import torch
from torch import Tensor, nn

from amal_hf.policies.policy import of_unit_magnitude
from amal_hf.policies.store import RowStore
from amal_hf.processes import rows_of_all
from amal_hf.shapes import ExampleIds, LossTable


def of_likelihoods(slopes: LossTable, losses: LossTable, exponents: Tensor) -> LossTable:
    """Slopes of likelihoods from those of the losses, `(B, K)`, again of mean magnitude one over all processes.

    Args:
        slopes, losses: `(B, K)`.
        exponents: `(K,)`, `Loss.exponent`: a loss `(1 − p^q) / q` falls by `1 / p^(1 − q)` where the likelihood p
            rises by one, and `−log p` by `1 / p`.
    """
    q = exponents.to(losses)
    smallest = torch.finfo(losses.dtype).tiny  # of a power of p: the loss is never above 1/q but for rounding
    powers = (1 - q * losses).clamp(min=smallest)
    inverse = torch.where(q > 0, powers.pow((1 - q) / torch.where(q > 0, q, 1)), losses.neg().exp())
    return of_unit_magnitude(slopes * inverse.to(slopes))


class SlopeMemory(nn.Module):
    """The mean of all slopes of each example, drawn towards zero as if there had been one more that was zero.

    Always in memory: K + 1 numbers an example.

    Args:
        examples: N, or `None` for a stream.
        losses: K.
    """

    def __init__(self, examples: int | None, losses: int) -> None:
        super().__init__()
        self.store = RowStore(examples, torch.zeros(losses + 1), in_memory=math.inf)

    def read(self, ids: ExampleIds) -> Tensor:
        """`(B, K)`; zero for examples without any."""
        rows = self.store.read(ids)
        return rows[:, :-1] / (1 + rows[:, -1:])

    @torch.no_grad()
    def note(self, ids: ExampleIds, slopes: LossTable) -> None:
        """Add the slopes of all processes' examples; one that stands there twice has two."""
        slopes = rows_of_all(slopes)
        slopes = torch.cat([slopes, slopes.new_ones(len(slopes), 1)], 1)
        ids, places = rows_of_all(ids).unique(return_inverse=True)
        found = slopes.new_zeros(len(ids), slopes.shape[1]).index_add(0, places, slopes)
        self.store.write(ids, self.store.read(ids) + found)
