"""Directions: which way the parameters should move so that the loss on the clean meta set falls.

A direction turns the meta gradient `∇V(θ)` into the vector `v` along which the slopes of the training losses are
measured. It has to be the metric in which the student
really moves: what one step of the student's optimizer does to `V` is `−lr ⟨P ∇V, ∇ℓ⟩` with the optimizer's own
    preconditioner `P`.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.optim import Optimizer

from amal_hf.shapes import Params


class Direction(ABC):
    """Meta gradient in, direction out; both shaped like the parameters."""

    @abstractmethod
    def __call__(self, gradient: Params, params: Params, optimizer: Optimizer) -> Params:
        """The direction `v`.

        Args:
            gradient: `∇V(θ)`, by parameter name.
            params: the parameters themselves, by the same names (they are the keys of the optimizer's state).
            optimizer: the student's optimizer; it is only read.
        """


class SGDDirection(Direction):
    """`v = ∇V`: exact for a student trained by plain gradient descent (Ren et al. 2018, arXiv:1803.09050)."""

    def __call__(self, gradient: Params, params: Params, optimizer: Optimizer) -> Params:
        """The gradient as it is."""
        del params, optimizer
        return gradient


class AdamDirection(Direction):
    """`v = ∇V / (√v̂ + ε)` with the optimizer's own second moment, held fixed.

    One AdamW step moves the student by `−lr (1−β₁)/(1−β₁ᵗ) · g / (√v̂ + ε)` for a gradient `g`, so this is the exact
    derivative of that step for a frozen second moment, up to a factor that all examples share. A fresh Adam step is
    never differentiated: its sensitivity `ε / (|g| + ε)²` would let the noisiest coordinates decide. Before the first
    optimizer step, and with optimizers that keep no second moment for each parameter, it is `SGDDirection`.
    """

    def __call__(self, gradient: Params, params: Params, optimizer: Optimizer) -> Params:
        """The gradient divided by what AdamW would divide it by.

        Zero where the optimizer has never moved a parameter.
        """
        scales = adam_denominators(params, optimizer)
        if not scales:
            return gradient
        return {name: g / scales[name] if name in scales else torch.zeros_like(g) for name, g in gradient.items()}


def adam_denominators(params: Params, optimizer: Optimizer) -> Params:
    """`√v̂ + ε` for every parameter that has a second moment in an Adam-like optimizer, bias corrected.

    Empty if none has.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    denominators: dict[str, Tensor] = {}
    for name, parameter in params.items():
        state = optimizer.state.get(parameter, {})
        if "exp_avg_sq" not in state:
            continue
        group = groups[id(parameter)]
        second = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        correction = 1 - group["betas"][1] ** state["step"]
        denominators[name] = (second / correction).sqrt_().add_(group["eps"])
    return denominators
