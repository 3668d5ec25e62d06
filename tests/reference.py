"""Slow, exact mathematics that the package is compared with: plain autograd, no tricks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from amal_hf.shapes import LossTable, Params


def slopes_by_unrolling(
    model: nn.Module,
    losses: Callable[[Callable[..., object]], LossTable],
    meta_loss: Callable[[Callable[..., object]], Tensor],
    scales: Params,
) -> LossTable:
    """`−B/lr · dV/dε` through one unrolled student step `θ − lr · P ∇ Σ ε ℓ / B` at ε = 0, which is what a slope
       claims to be.

    Args:
        model: the student, in a mode without randomness.
        losses: given a callable student, the losses `(B, K)`.
        meta_loss: given a callable student, `V`.
        scales: the diagonal of `P` by parameter name; parameters that are not named stay fixed.
    """
    params = {name: p for name, p in model.named_parameters() if name in scales}
    table = losses(model)
    epsilon = torch.zeros_like(table, requires_grad=True)
    learning_rate, examples = 0.1, len(table)
    gradient = torch.autograd.grad((epsilon * table).sum() / examples, list(params.values()), create_graph=True)
    stepped = {
        name: p - learning_rate * scales[name] * g for (name, p), g in zip(params.items(), gradient, strict=True)
    }
    value = meta_loss(lambda **inputs: functional_call(model, stepped, (), inputs))
    (derivative,) = torch.autograd.grad(value, epsilon)
    return -derivative * examples / learning_rate
