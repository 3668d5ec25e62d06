"""Logits that are too many to work on at once: those of tokens.

A loss of tokens needs a few temporary copies of the logits, and over a vocabulary these are the largest tensors of a
training step. So tokens are taken in chunks:

1. Only tokens that count are looked at.
2. Nothing of a chunk is kept for the backward pass: it computes the chunk anew, and writes the gradient of the logits
   straight into its place. All losses of a batch write into one gradient (`with_one_gradient`).
3. Without a graph (evaluation, finite differences, dual numbers) chunks are simply computed one after another.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import torch
from torch import Tensor

from amal_hf.shapes import Logits, PerExample


OfRows: TypeAlias = Callable[[Tensor, Tensor | slice], Tensor]
"""`(logits (n, V) of some tokens, their places (n,) among all) -> (n,)`."""

CHUNK = 2**20
"""Logits in a chunk: 4 MiB in fp32, 32 tokens of a vocabulary of 32,000. A divergence makes about ten such tensors."""

ON_A_GPU = 8
"""Times as many there: 8192 tokens of 128,000 words are 1024 chunks otherwise, and each waits for what starts it."""


def with_one_gradient(outputs: Any) -> Any:
    """A student's outputs, of whose logits all losses that are taken in chunks make one gradient.

    Autograd would have one of each loss at a time, and add them up.
    """
    if not (torch.is_grad_enabled() and outputs.logits.requires_grad):
        return outputs
    shown = copy.copy(outputs)
    with suppress(AttributeError):  # of a kind that cannot be changed
        shown.logits = _OneGradient.apply(outputs.logits)
    return shown


def token_means(of_rows: OfRows, logits: Logits, mask: Tensor) -> PerExample:
    """For every example the mean of `of_rows` over its tokens where `mask` is true; 0 for a row without any.

    Differentiable in the logits, twice and forward as well; whatever else `of_rows` reads counts as fixed.

    Args:
        of_rows: a value for every token, of that token's logits alone.
        logits: `(B, T, V)`.
        mask: `(B, T)`, bool.

    Raises:
        ValueError: logits and mask are of different lengths.
    """
    if logits.shape[:2] != mask.shape:
        raise ValueError(
            f"The student's logits are for {tuple(logits.shape[:2])} (examples, tokens) and the labels for "
            f"{tuple(mask.shape)}. Prompt tuning puts tokens of its own before a text: use LoRA or prefix tuning."
        )
    places = mask.flatten().nonzero().squeeze(1)
    size = _chunk_size(logits)
    values = (
        of_rows(logits.flatten(0, 1)[places], places) if len(places) <= size else _by_chunk(of_rows, logits, places)
    )
    table = values.new_zeros(mask.numel()).index_put((places,), values)
    return table.view(mask.shape).sum(1) / mask.sum(1).clamp(min=1)


def row_values(of_rows: OfRows, logits: Tensor) -> Tensor:
    """`of_rows` of logits `(n, V)`, all at once or, where they are too many, in chunks."""
    if len(logits) <= _chunk_size(logits):
        return of_rows(logits, slice(None))
    return _by_chunk(of_rows, logits, torch.arange(len(logits), device=logits.device))


def chunks_of(rows: Tensor) -> Sequence[Tensor]:
    """Logits `(n, V)`, a chunk at a time."""
    return rows.split(_chunk_size(rows))


def _chunk_size(logits: Tensor) -> int:
    return max(1, CHUNK * (1 if logits.device.type == "cpu" else ON_A_GPU) // logits.shape[-1])


def _by_chunk(of_rows: OfRows, logits: Tensor, places: Tensor) -> Tensor:
    rows, size = logits.flatten(0, -2), _chunk_size(logits)
    if torch.is_grad_enabled() and logits.requires_grad:
        shared = logits.grad_fn if hasattr(logits.grad_fn, "gathered") else None
        values: Tensor = _Recomputed.apply(of_rows, size, rows, places, shared)
        return values
    return torch.cat([of_rows(rows[part], part) for part in places.split(size)])


class _OneGradient(torch.autograd.Function):
    """Logits as they are. On the way back chunks add to `gathered`, where each loss would hand over a gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.gathered, ctx.shape = None, logits.shape
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Tensor | None:
        gathered, ctx.gathered = ctx.gathered, None
        (others,) = gradients  # of losses that are not taken in chunks
        if gathered is None:
            return others
        return gathered.view(ctx.shape) if others is None else others + gathered.view(ctx.shape)


class _Recomputed(torch.autograd.Function):
    """`of_rows` chunk by chunk, each computed once more on the way back."""

    @staticmethod
    def forward(ctx: Any, of_rows: OfRows, size: int, rows: Tensor, places: Tensor, shared: Any) -> Tensor:
        ctx.of_rows, ctx.size, ctx.shared = of_rows, size, shared
        ctx.save_for_backward(rows, places)
        return torch.cat([of_rows(rows[part], part) for part in places.split(size)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor | None, None, None]:
        rows, places = ctx.saved_tensors
        parts, slopes = places.split(ctx.size), gradients[0].split(ctx.size)
        if torch.is_grad_enabled():  # the gradient itself will be differentiated: keep its graph
            picked = rows[places].split(ctx.size)
            found = [_pulled(ctx.of_rows, *chunk, again=True) for chunk in zip(picked, parts, slopes, strict=True)]
            return None, None, torch.zeros_like(rows).index_put((places,), torch.cat(found)), None, None
        gathered = None if ctx.shared is None else ctx.shared.gathered
        result = torch.zeros_like(rows) if gathered is None else gathered
        for part, slope in zip(parts, slopes, strict=True):
            more = _pulled(ctx.of_rows, rows.detach()[part].requires_grad_(), part, slope)
            result.index_copy_(0, part, more if gathered is None else more + result[part])
        if ctx.shared is None:
            return None, None, result, None, None
        ctx.shared.gathered = result
        return None, None, None, None, None


def _pulled(of_rows: OfRows, picked: Tensor, part: Tensor, slope: Tensor, again: bool = False) -> Tensor:
    """The gradient of a chunk's logits, from that of its values."""
    with torch.enable_grad():
        return torch.autograd.grad(of_rows(picked, part), picked, slope, create_graph=again)[0]
