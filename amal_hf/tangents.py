"""Slopes: how fast every example's losses change when the parameters move along a direction.

    s_ik = ⟨v, ∇θ ℓ_ik(θ)⟩        (B, K), for a direction v shaped like the parameters

Three ways of computing the same numbers, cross-checked against one another. They differ in what they ask of the
student:

    FiniteDifference   two forward passes without a graph; fused attention, torch.compile, checkpointing all stay on
    ForwardMode        one forward pass with dual numbers; needs eager attention
    DoubleBackward     one forward and two backward passes, the second through the first; needs eager attention

A fourth, `last_layer.LastLayer`, is the closed form for the student's output layer alone.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call

from amal_hf.central_differences import both_sides, check_radius
from amal_hf.shapes import Evaluate, Evaluation, Features, LossTable, Params


class Slopes(NamedTuple):
    """What one measurement gives; all detached."""

    slopes: LossTable
    features: Features


class Tangent(ABC):
    """A way of computing slopes.

    Attributes:
        forward_only: whether all it asks of the student are forward passes without a graph, which may be compiled and
            whose parameters may be cut over processes.
        needs_eager_attention: whether it differentiates attention in a way that fused attention cannot be.
        head_alone: whether nothing below the student's output layer moves.
    """

    forward_only: bool = False
    needs_eager_attention: bool = False
    head_alone: bool = False

    def scope(self, model: nn.Module) -> nn.Module:
        """The part of the student whose parameters move; the rest counts as fixed."""
        return model

    @abstractmethod
    def __call__(self, model: nn.Module, direction: Params, evaluate: Evaluate, dtype: torch.dtype) -> Slopes:
        """Slopes of every example and loss along `direction`.

        Args:
            model: the module that `direction` names the parameters of.
            direction: `v`, by parameter name; parameters without an entry stay where they are.
            evaluate: runs the student over the batch at whatever values the parameters have when it is called.
            dtype: the precision in which the student computes (the autocast type under mixed precision).
        """


class FiniteDifference(Tangent):
    """Central differences: `[ℓ(θ + εv) − ℓ(θ − εv)] / 2ε` with `ε‖v‖` = the radius.

    Args:
        radius: length of the step `ε‖v‖` in parameter space. `None` chooses by precision: 0.01 in fp32, 0.1 in bf16 or
            fp16 and 1e-4 in fp64 (`central_differences.radius_for`).

    Raises:
        ValueError: a radius that is not positive and finite.
    """

    forward_only = True

    def __init__(self, radius: float | None = None) -> None:
        check_radius(self, radius)
        self.radius = radius

    def __call__(self, model: nn.Module, direction: Params, evaluate: Evaluate, dtype: torch.dtype) -> Slopes:
        """Two forward passes; features are those at the middle."""
        with torch.no_grad():
            plus, minus, distance = both_sides(dict(model.named_parameters()), direction, evaluate, dtype, self.radius)
        return Slopes(
            slopes=(plus.losses - minus.losses) / distance,
            features=(plus.features + minus.features) / 2,
        )


class ForwardMode(Tangent):
    """Exact slopes by forward-mode differentiation, one pass with dual numbers.

    Fused attention has no forward-mode rule: load the student with `attn_implementation="eager"`; another is
    refused.
    """

    needs_eager_attention = True

    def __call__(self, model: nn.Module, direction: Params, evaluate: Evaluate, dtype: torch.dtype) -> Slopes:
        """One forward pass that carries the tangents along."""
        del dtype
        params = dict(model.named_parameters())
        with torch.no_grad(), forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(params[name], v) for name, v in direction.items()}
            result = _evaluate_with(model, duals, evaluate)
            _, slopes = forward_ad.unpack_dual(result.losses)
            features = forward_ad.unpack_dual(result.features).primal
        return Slopes(torch.zeros_like(result.losses) if slopes is None else slopes, features)


class DoubleBackward(Tangent):
    """Exact slopes by differentiating a gradient.

    `s_ik = ∂/∂u_ik ⟨v, ∇θ Σ u ℓ⟩`. The graph is kept twice, and fused attention must be off as for `ForwardMode`.
    """

    needs_eager_attention = True

    def __call__(self, model: nn.Module, direction: Params, evaluate: Evaluate, dtype: torch.dtype) -> Slopes:
        """One forward and two backward passes."""
        del dtype
        params = {name: p for name, p in model.named_parameters() if name in direction}
        with torch.enable_grad():
            result = evaluate()
            probe = torch.zeros_like(result.losses, requires_grad=True)
            total = (probe * result.losses).sum()
            gradient = torch.autograd.grad(total, list(params.values()), create_graph=True, allow_unused=True)
            products = [(g * direction[name]).sum() for name, g in zip(params, gradient, strict=True) if g is not None]
            along = torch.stack(products).sum()
            (slopes,) = torch.autograd.grad(along, probe)
        return Slopes(slopes, result.features.detach())


def movable_parameters(module: nn.Module) -> Params:
    """What a meta step moves: the trainable parameters of a module without its embedding tables, by name.

    A table is often the largest tensor of a small student, and moving it costs as much as a forward pass, while two
    examples are related through it only by the words they share. Where nothing else is trainable, tables move too.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    tables = {id(p) for part in module.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    return {name: p for name, p in trainable.items() if id(p) not in tables} or trainable


class _Swapped(nn.Module):
    """Lets `functional_call` swap a module's parameters while a closure, not the module's forward, runs."""

    def __init__(self, model: nn.Module, evaluate: Evaluate) -> None:
        super().__init__()
        self.model = model
        self.evaluate = evaluate

    def forward(self) -> Evaluation:
        return self.evaluate()


def _evaluate_with(model: nn.Module, params: Params, evaluate: Evaluate) -> Evaluation:
    swapped = {f"model.{name}": p for name, p in params.items()}
    result: Evaluation = functional_call(_Swapped(model, evaluate), swapped, ())
    return result
