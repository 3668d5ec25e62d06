"""All that several processes tell one another; on one process every function gives back what it was given.

Every process calls these at the same places, in the same order: a meta step is due on all of them or on none.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from amal_hf.shapes import Params


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """The place of this process among them, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def total(value: Tensor) -> Tensor:
    """The sum over all processes, of the same shape; a graph goes through it, to the addends of all."""
    summed: Tensor = _Sum.apply(value) if process_count() > 1 else value
    return summed


class _Sum(torch.autograd.Function):
    """A sum over processes; its derivative by every addend is one, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        result = value.clone()
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)


def total_count(number: int, device: torch.device) -> Tensor | int:
    """The same for a whole number: a scalar on the device, so that nobody has to wait for it."""
    return total(torch.full((), number, device=device)) if process_count() > 1 else number


def totals(values: Sequence[Tensor]) -> list[Tensor]:
    """The sums over all processes of several tensors, in one message. No graph."""
    if process_count() == 1:
        return list(values)
    flat = torch.cat([value.detach().flatten() for value in values])
    dist.all_reduce(flat)
    parts = flat.split([value.numel() for value in values])
    return [part.view_as(value).to(value.dtype) for part, value in zip(parts, values, strict=True)]


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Make `.grad` the mean over all processes, for a module that `Trainer` does not know of."""
    trained = [p for p in parameters if p.grad is not None]
    for p, gradient in zip(trained, totals([p.grad for p in trained if p.grad is not None]), strict=True):
        p.grad = gradient / process_count()


def rows_of_all(rows: Tensor) -> Tensor:
    """The rows of all processes, `(b, ...) -> (Σ b, ...)`, in the order of processes; they may have different b."""
    if process_count() == 1:
        return rows
    counts = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(process_count())]
    dist.all_gather(counts, torch.tensor(len(rows), device=rows.device))
    sizes = torch.stack(counts).tolist()
    padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def values_of_all(value: Any) -> list[Any]:
    """Anything that can be pickled, from all processes: for a checkpoint, not for every step."""
    values = [value] * process_count()
    if process_count() > 1:
        dist.all_gather_object(values, value)
    return values


def summed_gradients(value: Tensor, params: Params) -> dict[str, Tensor]:
    """`∇` of the sum over all processes of `value`; zero for parameters that it does not depend on.

    No `.grad` changes.
    """
    gradients = torch.autograd.grad(value, list(params.values()), allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(params.values(), gradients, strict=True)]
    return dict(zip(params, totals(filled), strict=True))


def shard(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that is cut over processes, in the same memory; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is cut over processes; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
