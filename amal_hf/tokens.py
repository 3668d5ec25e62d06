"""Means over tokens whose logits are too many to work on at once.

A loss of tokens needs a few temporary copies of the logits, and over a vocabulary these are the largest tensors of a
training step. So tokens are taken in chunks:

1. Only tokens that count are looked at.
2. Nothing of a chunk is kept for the backward pass: it computes the chunk anew, and writes the gradient of the logits
   straight into its place.
3. Without a graph (evaluation, finite differences, dual numbers) chunks are simply computed one after another.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from amal_hf.shapes import Logits, PerExample


OfRows: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`(logits (n, V) of some tokens, their places (n,) among all B·T) -> (n,)`."""

CHUNK = 2**20
"""Logits in a chunk: 4 MiB in fp32, 32 tokens of a vocabulary of 32,000. A divergence makes about ten such tensors."""


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
    rows, places = logits.flatten(0, 1), mask.flatten().nonzero().squeeze(1)
    values = _by_row(of_rows, rows, places)
    table = values.new_zeros(mask.numel()).index_put((places,), values)
    return table.view(mask.shape).sum(1) / mask.sum(1).clamp(min=1)


def _by_row(of_rows: OfRows, rows: Tensor, places: Tensor) -> Tensor:
    size = max(1, CHUNK // rows.shape[1])
    if len(places) <= size:
        return of_rows(rows[places], places)
    if torch.is_grad_enabled() and rows.requires_grad:
        values: Tensor = _Recomputed.apply(of_rows, size, rows, places)
        return values
    return torch.cat([of_rows(rows[part], part) for part in places.split(size)])


class _Recomputed(torch.autograd.Function):
    """`of_rows` chunk by chunk, each computed once more on the way back."""

    @staticmethod
    def forward(ctx: Any, of_rows: OfRows, size: int, rows: Tensor, places: Tensor) -> Tensor:
        ctx.of_rows, ctx.size = of_rows, size
        ctx.save_for_backward(rows, places)
        return torch.cat([of_rows(rows[part], part) for part in places.split(size)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, None]:
        rows, places = ctx.saved_tensors
        again = torch.is_grad_enabled()  # the gradient itself will be differentiated: keep its graph
        source = rows if again else rows.detach()
        result = torch.zeros_like(source)
        for part, gradient in zip(places.split(ctx.size), gradients[0].split(ctx.size), strict=True):
            with torch.enable_grad():
                picked = source[part] if again else source[part].requires_grad_()
                values = ctx.of_rows(picked, part)
                (slope,) = torch.autograd.grad(values, picked, gradient, create_graph=again)
            result = result.index_put((part,), slope) if again else result.index_copy_(0, part, slope)
        return None, None, result, None
