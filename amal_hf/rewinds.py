"""Ways back to where earlier steps of the student began."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.optim import SGD, Optimizer

from amal_hf.steps import Snapshot, Step, clipped, gradients_of, put, raw, repeat, snapshot


LONGEST_REVERSAL = 50
"""Rounding is divided by the momentum at every step back: errors of 7e-6 after 100 steps, 6e-3 after 200, 59 after 400
were measured on a toy problem in fp32."""


class Rewind(ABC):
    """A way back to where earlier steps began."""

    def check(self, optimizer: Optimizer, steps: int) -> None:
        """Refuse what there is no way back from.

        Raises:
            ValueError: says why, and what to use.
        """
        del optimizer, steps

    def record(self, optimizer: Optimizer, position: int, steps: int) -> None:
        """Take note before step `position` of a trajectory of `steps`."""
        del optimizer, position, steps

    def clear(self) -> None:
        """Forget the trajectory."""
        self.load_state_dict({})

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """All that has been noted, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[int, dict[str, Any]]) -> None:
        """Restore `state_dict`."""
        del state

    @abstractmethod
    def back(self, optimizer: Optimizer, steps: Sequence[Step], max_grad_norm: float) -> Iterator[int]:
        """Put parameters and optimizer at the beginning of each step, newest first; gives its position."""


class Snapshots(Rewind):
    """Copies at every ⌈√B⌉-th step; steps in between are taken again. For any optimizer.

    Args:
        every: steps from one copy to the next; `None` balances copies against repetitions.

    Raises:
        ValueError: fewer than one step from copy to copy.
    """

    def __init__(self, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"Snapshots: every must be a whole number from 1, got {every}.")
        self.every = every
        self.kept: dict[int, Snapshot] = {}

    def spacing(self, steps: int) -> int:
        """Steps from one copy to the next in a trajectory of `steps`."""
        return self.every or math.ceil(math.sqrt(steps))

    def record(self, optimizer: Optimizer, position: int, steps: int) -> None:
        """A copy, where one is due."""
        if position % self.spacing(steps) == 0:
            self.kept[position] = snapshot(optimizer)

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """The copies."""
        return {position: kept._asdict() for position, kept in self.kept.items()}

    def load_state_dict(self, state: dict[int, dict[str, Any]]) -> None:
        """Restore the copies."""
        self.kept = {position: Snapshot(**kept) for position, kept in state.items()}

    def back(self, optimizer: Optimizer, steps: Sequence[Step], max_grad_norm: float) -> Iterator[int]:
        """Segment by segment: from its copy forwards once, then backwards through what that gave."""
        for start in sorted(self.kept, reverse=True):
            segment = [self.kept[start]]
            for position in range(start, min(start + self.spacing(len(steps)), len(steps)) - 1):
                put(optimizer, segment[-1])
                repeat(optimizer, steps[position], max_grad_norm)
                segment.append(snapshot(optimizer))
            for offset in reversed(range(len(segment))):
                put(optimizer, segment[offset])
                yield start + offset


class Reversal(Rewind):
    """SGD with momentum run backwards exactly: no copies at all, but at most 50 steps, in fp32 or wider.

    Raises:
        ValueError: before the first step of a run, another optimizer, more steps, or parameters in half precision.

    References:
        Learning to Reweight with Deep Interactions, arXiv:2007.04649, algorithm 1.
    """

    def check(self, optimizer: Optimizer, steps: int) -> None:
        """SGD with plain momentum, few steps, full precision."""
        groups = optimizer.param_groups
        reversible = isinstance(raw(optimizer), SGD) and all(
            group["momentum"] > 0 and not group["nesterov"] and not group["dampening"] for group in groups
        )
        if not reversible:
            raise ValueError(
                f"Reversal: only torch.optim.SGD with momentum (not Nesterov, no dampening) can be run backwards; "
                f"this is {type(raw(optimizer)).__name__}. Use Snapshots(), which works with others."
            )
        if steps > LONGEST_REVERSAL:
            raise ValueError(
                f"Reversal: {steps} steps are more than {LONGEST_REVERSAL}. Every step back divides rounding errors "
                f"by the momentum: in fp32 they grew from 7e-6 after 100 steps to 6e-3 after 200. Use Snapshots()."
            )
        kinds = {p.dtype for group in groups for p in group["params"]} - {torch.float32, torch.float64}
        if kinds:
            raise ValueError(f"Reversal: parameters must be fp32 or fp64 to be run backwards, got {kinds}.")

    def back(self, optimizer: Optimizer, steps: Sequence[Step], max_grad_norm: float) -> Iterator[int]:
        """`θ ← θ + lr·m`, then `m ← (m − g)/μ` with the gradient there."""
        for position in reversed(range(len(steps))):
            step = steps[position]
            moved = [
                (p, group, rate)
                for group, rate in zip(optimizer.param_groups, step.learning_rates, strict=True)
                for p in group["params"]
                if p.requires_grad and "momentum_buffer" in optimizer.state.get(p, {})
            ]
            with torch.no_grad():
                for p, _, rate in moved:
                    p.add_(optimizer.state[p]["momentum_buffer"], alpha=rate)
            gradients = clipped(gradients_of(step, {str(i): p for i, (p, _, _) in enumerate(moved)}), max_grad_norm)
            for (p, group, _), g in zip(moved, gradients.values(), strict=True):
                decayed = g + group["weight_decay"] * p.detach()
                optimizer.state[p]["momentum_buffer"].sub_(decayed).div_(group["momentum"])
            yield position
