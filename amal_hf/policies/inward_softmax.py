"""A softmax that can be learned through however sure it is.

The gradient of a softmax dies with its smallest weight. Where labels were better than the teacher on the whole, a
network gave them everything within 40 updates, wrong ones too, and did not come back (`benchmarks/LOG.md`).
"""

from typing import Any

import torch
from torch import Tensor

from amal_hf.shapes import LossTable


_FLOOR = 0.2  # of an equal share; on dev 0.1 and 0.4 were as good on the whole


def softmax(scores: Tensor, present: Tensor | None) -> LossTable:
    """Over what is present, `(B, K)`, bool; all zero where nothing is."""
    if present is None:
        return scores.softmax(-1)
    return scores.masked_fill(~present, torch.finfo(scores.dtype).min).softmax(-1) * present


def inward_softmax(scores: Tensor, present: Tensor | None) -> LossTable:
    """`softmax`, for an update that descends.

    Weights above a fifth of an equal share have its gradient. A weight below is not pushed down any further, and is
    pulled up as if it were that fifth.
    """
    weights: Tensor = _InwardSoftmax.apply(scores, softmax(scores.detach(), present), present)
    return weights


class _InwardSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, weights: Tensor, present: Tensor | None) -> Tensor:
        ctx.save_for_backward(weights, torch.ones_like(weights) if present is None else present.to(weights))
        return weights.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (weights, present) = gradients, ctx.saved_tensors
        floor = _FLOOR / present.sum(-1, keepdim=True).clamp(min=1)
        lifted = weights.clamp(min=floor) * present
        leaving = (weights < floor) & (gradient > _mean(gradient, lifted))
        free = lifted * ~leaving
        return free * (gradient - _mean(gradient, free)), None, None


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (weights * values).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True).clamp(min=torch.finfo().tiny)
