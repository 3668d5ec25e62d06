"""Rows grouped by length, in an order that a run finds again when it goes on within a pass."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler


class GroupedRows(Sampler[int]):
    """A length-grouped sampler with random numbers of its own.

    `Trainer` has it draw from the global ones, which are others when a run goes on in the middle of a pass: some rows
    would then come twice, others not at all.

    Args:
        order: the sampler.
        generator: asked as a pass begins.
    """

    def __init__(self, order: LengthGroupedSampler, generator: Callable[[], torch.Generator]) -> None:
        self.order = order
        self.generator = generator

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        self.order.generator = self.generator()
        yield from self.order


def group_alike(order: Any, generator: Callable[[], torch.Generator]) -> Any:
    """A sampler as it is, but for one that groups by length."""
    return GroupedRows(order, generator) if isinstance(order, LengthGroupedSampler) else order
