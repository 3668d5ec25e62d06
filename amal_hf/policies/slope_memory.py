"""What slopes an example has had: a single one is mostly noise, their mean is not."""

import math

import torch
from torch import Tensor, nn

from amal_hf.policies.policy import of_unit_magnitude
from amal_hf.policies.store import RowStore
from amal_hf.processes import rows_of_all
from amal_hf.shapes import ExampleIds, LossTable


def of_likelihoods(slopes: LossTable, losses: LossTable) -> LossTable:
    """Slopes of `−exp(−loss)` from those of the losses, `(B, K)`, again of mean magnitude one over all processes."""
    return of_unit_magnitude(slopes * losses.neg().exp().to(slopes))


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
