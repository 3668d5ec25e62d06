"""Training rows drawn as often as their weights say, in the place of each once a pass."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from amal_hf.shapes import PerExample


class DrawnRows(Sampler[int]):
    """Another sampler's rows; where rates are given, as many that are drawn by these.

    Args:
        order: each row once, in a new order at every pass.
        rates: asked as a pass begins, for rates `(N,)` and random numbers; `None` leaves the order as it is.
    """

    def __init__(self, order: Sampler[int], rates: Callable[[], tuple[PerExample, torch.Generator] | None]) -> None:
        self.order = order
        self.rates = rates

    def __len__(self) -> int:
        return len(self.order)  # type: ignore[arg-type]  # samplers of rows that are known have a length

    def __iter__(self) -> Iterator[int]:
        given = self.rates()
        order = list(self.order)
        if given is not None:
            rates, generator = given
            rows = torch.tensor(order)
            order = rows[drawn(rates[rows], generator)].tolist()
        yield from order

    def set_epoch(self, epoch: int) -> None:
        """Passed on, where the sampler wants to know."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)


def drawn(rates: PerExample, generator: torch.Generator) -> Tensor:
    """Numbers of rows, `(N,)`, in random order, each as often as its rate in units of the mean rate says.

    Systematic sampling: one random number rounds all rows, so each turns up by less than one more or less often.

    Args:
        rates: `(N,)`, none negative, on the CPU; all alike if they are all zero.
        generator: of random numbers.
    """
    wanted = rates.double()
    wanted = wanted if wanted.sum() > 0 else torch.ones_like(wanted)
    ends = (wanted.cumsum(0) * (len(wanted) / wanted.sum()) + torch.rand((), generator=generator)).floor().long()
    ends[-1] = len(wanted)  # whatever rounding says
    copies = ends.diff(prepend=ends.new_zeros(1))
    return torch.arange(len(wanted)).repeat_interleave(copies)[torch.randperm(len(wanted), generator=generator)]


def replace_order(loader: Any, by: Callable[[Any], Any]) -> None:
    """Have a loader of Accelerate's take its rows in the order of another sampler, made of its own."""
    batches = loader.batch_sampler
    while hasattr(batches, "batch_sampler"):  # the shares of several processes
        batches = batches.batch_sampler
    batches.sampler = by(batches.sampler)
