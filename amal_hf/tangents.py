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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from amal_hf.processes import shard, whole
from amal_hf.shapes import Evaluate, Evaluation, Features, LossTable, Params


class Slopes(NamedTuple):
    """What one measurement gives; all detached."""

    slopes: LossTable
    losses: LossTable
    features: Features


class Tangent(ABC):
    """A way of computing slopes."""

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

    The parameters are moved in place and put back from kept copies, bit for bit.

    Args:
        radius: length of the step `ε‖v‖` in parameter space. `None` chooses by precision: 0.01 in fp32 and 0.1 in
            bf16 or fp16, which on a MiniLM-L6 gave relative errors of 9e-5 and about 1e-2 (too small a radius drowns
            in rounding, too large a one in curvature; `benchmarks/precision.py`); 1e-4 in fp64.

    Raises:
        ValueError: a radius that is not positive and finite.
    """

    def __init__(self, radius: float | None = None) -> None:
        check_radius(self, radius)
        self.radius = radius

    def __call__(self, model: nn.Module, direction: Params, evaluate: Evaluate, dtype: torch.dtype) -> Slopes:
        """Two forward passes; losses and features are those at the middle."""
        radius = radius_for(dtype) if self.radius is None else self.radius
        step = radius / global_norm(direction).clamp(min=torch.finfo(torch.float32).tiny)
        params = dict(model.named_parameters())
        with torch.no_grad(), movable(params, direction) as move:
            move(step)
            plus = evaluate()
            move(-step)
            minus = evaluate()
        return Slopes(
            slopes=(plus.losses - minus.losses) / (2 * step),
            losses=(plus.losses + minus.losses) / 2,
            features=(plus.features + minus.features) / 2,
        )


def check_radius(owner: object, radius: float | None) -> None:
    """Refuse a step that does not move, or not to anywhere.

    Raises:
        ValueError: a radius that is not positive and finite.
    """
    if radius is not None and not 0 < radius < float("inf"):
        raise ValueError(
            f"{type(owner).__name__}: radius must be positive and finite, got {radius}. None chooses by precision."
        )


class ForwardMode(Tangent):
    """Exact slopes by forward-mode differentiation, one pass with dual numbers.

    Fused attention has no forward-mode rule: load the student with `attn_implementation="eager"`.
    """

    def __call__(self, model: nn.Module, direction: Params, evaluate: Evaluate, dtype: torch.dtype) -> Slopes:
        """One forward pass that carries the tangents along."""
        del dtype
        params = dict(model.named_parameters())
        with torch.no_grad(), forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(params[name], v) for name, v in direction.items()}
            result = _evaluate_with(model, duals, evaluate)
            losses, slopes = forward_ad.unpack_dual(result.losses)
            features = forward_ad.unpack_dual(result.features).primal
        return Slopes(torch.zeros_like(losses) if slopes is None else slopes, losses, features)


class DoubleBackward(Tangent):
    """Exact slopes by differentiating a gradient.

    `s_ik = ∂/∂u_ik ⟨v, ∇θ Σ u ℓ⟩`. The graph is kept twice, and fused attention must be off as for `ForwardMode`.
    """

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
        return Slopes(slopes, result.losses.detach(), result.features.detach())


def radius_for(dtype: torch.dtype) -> float:
    """Length of a finite-difference step in parameter space, by the precision of the forward pass."""
    return _RADIUS.get(dtype, 0.1)


def global_norm(vector: Params) -> Tensor:
    """Euclidean norm over all parameters, a scalar in fp32 or wider."""
    norms = [torch.linalg.vector_norm(v, dtype=torch.promote_types(v.dtype, torch.float32)) for v in vector.values()]
    return whole(torch.linalg.vector_norm(torch.stack(norms)))


@contextmanager
def movable(params: Params, direction: Params) -> Iterator[Callable[[Tensor], None]]:
    """Within the block, a function that puts the parameters at `θ + step · v`; afterwards they hold their old bits.

    They are put back from copies, whatever happened in between: subtracting what was added would not give the same
    bits. Parameters in half precision are moved from points between what they can be; see `_dithered`.

    Raises:
        KeyError: a direction for a parameter that is not there.
    """
    kept = {name: shard(params[name].detach()).clone() for name in direction}
    bases = {name: _dithered(old) for name, old in kept.items()}

    @torch.no_grad()
    def move(step: Tensor) -> None:
        for name, v in direction.items():
            target, base, local = shard(params[name]), bases[name], shard(v)
            if base.dtype == local.dtype:
                torch.addcmul(base, local, step, out=target)
            else:
                target.copy_(torch.addcmul(base, local.to(base), step))

    try:
        yield move
    finally:
        with torch.no_grad():
            for name, old in kept.items():
                shard(params[name]).copy_(old)


def _dithered(values: Tensor) -> Tensor:
    """Half-precision numbers as fp32, each moved at random within the range that is rounded to it; others as they are.

    A step shorter than that range would be rounded away, for all numbers alike. From a random point it is rounded up
    for as many numbers as its length says. It is what happens under autocast, where fp32 parameters are rounded.
    """
    if values.dtype not in (torch.bfloat16, torch.float16):
        return values
    wide = values.float()
    spacing = torch.ldexp(torch.full_like(wide, torch.finfo(values.dtype).eps), torch.frexp(wide).exponent - 1)
    generator = torch.Generator(values.device).manual_seed(3250)  # the global one is not to be drawn from
    places = torch.rand(values.shape, generator=generator, device=values.device) - 0.5
    return wide + torch.where(wide == 0, 0.0, places * spacing)  # around zero there is no such range


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


_RADIUS = {torch.float64: 1e-4, torch.float32: 1e-2}
