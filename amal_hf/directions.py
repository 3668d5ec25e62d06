"""Directions: which way the parameters should move so that the loss on the clean meta set falls.

A direction turns the meta gradient `∇V(θ)` into the vector `v` along which the slopes of the training losses are
measured. It has to be the metric in which the student really moves: what one step of the student's optimizer does to
`V` is `−lr ⟨P ∇V, ∇ℓ⟩` with the optimizer's own preconditioner `P`, which holds what the learning rates of its groups
are to one another.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from amal_hf.loggers import logger_of
from amal_hf.shapes import Params


logger = logger_of(__name__)

HessianProduct: TypeAlias = Callable[[Params], Params]
"""`u -> H u` for the Hessian `H` of the weighed training loss of the present optimizer step."""


class Direction(ABC):
    """Meta gradient in, direction out; both shaped like the parameters.

    Attributes:
        needs_product: whether it asks for Hessian products of the weighed loss, for which weights must be known before
            there are any slopes.
    """

    needs_product: bool = False

    @abstractmethod
    def __call__(self, gradient: Params, params: Params, optimizer: Optimizer, product: HessianProduct) -> Params:
        """The direction `v`.

        Args:
            gradient: `∇V(θ)`, by parameter name.
            params: the parameters themselves, by the same names (they are the keys of the optimizer's state).
            optimizer: the student's optimizer; it is only read.
            product: Hessian-vector products, for directions with `needs_product`; two backward passes a call, nothing
                if it is not called.
        """


class SGDDirection(Direction):
    """`v = ∇V`: exact for a student trained by plain gradient descent (Ren et al. 2018, arXiv:1803.09050)."""

    def __call__(self, gradient: Params, params: Params, optimizer: Optimizer, product: HessianProduct) -> Params:
        """The gradient as it is, at the learning rates of the optimizer's groups."""
        del product
        return at_their_rates(gradient, params, optimizer)


class AdamDirection(Direction):
    """`v = ∇V / (√v̂ + ε)` with the optimizer's own second moment, held fixed.

    One AdamW step moves the student by `−lr (1−β₁)/(1−β₁ᵗ) · g / (√v̂ + ε)` for a gradient `g`, so this is the exact
    derivative of that step for a frozen second moment, up to a factor that all examples share. A fresh Adam step is
    never differentiated: its sensitivity `ε / (|g| + ε)²` would let the noisiest coordinates decide. Before the first
    optimizer step, and with optimizers that keep no second moment for each parameter (8-bit, factored), it is
    `SGDDirection`; that is said once in the log, but of SGD.
    """

    def __call__(self, gradient: Params, params: Params, optimizer: Optimizer, product: HessianProduct) -> Params:
        """The gradient divided by what AdamW would divide it by.

        Zero where the optimizer has never moved a parameter.
        """
        del product
        scales = dict(adam_denominators(params, optimizer))
        if not scales:
            return at_their_rates(gradient, params, optimizer)
        # All are as large as the student together: each goes as it is used.
        divided = {n: g / scales.pop(n) if n in scales else torch.zeros_like(g) for n, g in gradient.items()}
        return at_their_rates(divided, params, optimizer)


class NeumannDirection(Direction):
    """`v = α Σ_{j=0..J} (I − αH)^j ∇V`: the first terms of `H⁻¹ ∇V`, which implicit differentiation asks for.

    The weights are then judged by where training would *end* with them rather than by its next step. The series
    converges for a scale below 2 over the largest eigenvalue of `H`; with few terms it stays close to the gradient.
    Begin after some training: `AMALArguments.meta_warmup_steps`.

    Where groups of the optimizer have learning rates of their own, α is one for each parameter, in their proportion,
    `(I − αH)^j α ∇V`; it tends to `H⁻¹ ∇V` of what the optimizer was given, the rest stays where it is.

    Args:
        terms: J, each costing one Hessian-vector product. 1 in the official code, two terms of the series with the
            one for j = 0.
        scale: α, the largest; `None` takes the student's learning rates of the moment, as the official code does.

    Raises:
        ValueError: a negative number of terms, or a scale that is not positive and finite.

    References:
        Teaching with Commentaries, arXiv:2011.03037, algorithm 2; the series is that of Lorraine et al. 2020,
        arXiv:1911.02590.
    """

    needs_product = True

    def __init__(self, terms: int = 1, scale: float | None = None) -> None:
        if terms < 0:
            raise ValueError(f"NeumannDirection: terms must be a whole number from 0, got {terms}.")
        if scale is not None and not 0 < scale < float("inf"):
            raise ValueError(
                f"NeumannDirection: scale must be positive and finite, got {scale}. None takes the learning rate."
            )
        self.terms = terms
        self.scale = scale

    def __call__(self, gradient: Params, params: Params, optimizer: Optimizer, product: HessianProduct) -> Params:
        """The truncated series; the gradient itself where the learning rate is zero, as in a warm-up's first step."""
        moved = functools.partial(at_their_rates, params=params, optimizer=optimizer)
        scale = max(group["lr"] for group in optimizer.param_groups) if self.scale is None else self.scale
        term = total = moved(gradient)
        for _ in range(self.terms if scale else 0):
            curved = moved(product(term))
            term = {name: t - scale * curved[name] for name, t in term.items()}
            total = {name: sum_ + term[name] for name, sum_ in total.items()}
        return {name: scale * t for name, t in total.items()} if scale else total


def at_their_rates(vector: Params, params: Params, optimizer: Optimizer) -> Params:
    """Each parameter's part times the learning rate of its group over the largest, as a step of the student has it.

    Zero for a parameter that the optimizer was not given. As it is where it was given all and its groups have one
    rate, or none, as in a warm-up's first step; and where it was given none of them, as one that moves copies.
    """
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    own = {name: rates[id(params[name])] for name in vector if id(params[name]) in rates}
    if not own or (len(own) == len(vector) and len(set(rates.values())) == 1):
        return vector
    largest = max(rates.values())
    shares = {name: rate / largest if largest else 1.0 for name, rate in own.items()}
    return {name: part * shares.get(name, 0.0) for name, part in vector.items()}


def adam_denominators(params: Params, optimizer: Optimizer) -> Params:
    """`√v̂ + ε` for every parameter that has a second moment in an Adam-like optimizer, bias corrected.

    Empty if any that has been trained keeps none that can be read: one direction in two metrics would be neither.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in params.items() if optimizer.state.get(p)}
    if not all(_keeps_second_moment(p, optimizer.state[p], groups[id(p)]) for p in trained.values()):
        _say_plain_gradient(type(getattr(optimizer, "optimizer", optimizer)).__name__)
        return {}
    return {name: _denominator(optimizer.state[p], groups[id(p)]) for name, p in trained.items()}


def _keeps_second_moment(parameter: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> bool:
    moment = state.get("exp_avg_sq")
    readable = isinstance(moment, Tensor) and moment.is_floating_point() and moment.shape == parameter.shape
    return readable and _steps(state, group) is not None and {"betas", "eps"} <= group.keys()


def _steps(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """Optimizer steps taken; schedule-free optimizers count them in the group."""
    return state.get("step", group.get("k"))


def _denominator(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    second = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    # The gradient scaler of fp16 may have skipped the only step so far, which leaves zeros.
    steps = torch.as_tensor(_steps(state, group)).clamp(min=1)
    corrected: Tensor = second / (1 - group["betas"][1] ** steps)
    return corrected.sqrt_().add_(group["eps"])


@functools.cache
def _say_plain_gradient(optimizer: str) -> None:
    """Once for each kind of optimizer, and not of SGD, which moves along the gradient as it is."""
    if "sgd" not in optimizer.lower():
        logger.warning(
            "%s keeps no second moment that can be read, one number for each parameter, so the meta gradient is used "
            "as it is (SGDDirection). Weights may learn more slowly; torch's AdamW keeps one.",
            optimizer,
        )
