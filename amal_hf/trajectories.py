"""The gradient of the meta loss through the student's last B steps, walked back one step at a time.

Backwards from the newest step, with the adjoints `θ̄ = dV/dθ` and one more for each state of the optimizer:

1. Stand where the step began (`Snapshots`, or `Reversal` for SGD with momentum).
2. The adjoint of the optimizer's arithmetic turns `θ̄` into `ḡ = dV/dg`, the adjoint of the gradient of that step.
3. Slopes of the step: `s_ik = −⟨ḡ, ∇ℓ_ik⟩ N / N_t` of N_t examples, N on the mean of the steps, so that
   `dV/dw_ik = −s_ik / N`: positive ones earn weight, as everywhere.
4. `θ̄ ← θ̄ + H ḡ` with the Hessian of the step's weighed loss.

One pair of gradients at `θ ± εḡ` gives 3 and 4 together (`FiniteProduct`): the losses' difference is the slopes, the
gradients' difference the Hessian product. Nothing is differentiated twice, so fused attention stays on.

References:
    Learning to Reweight with Deep Interactions, arXiv:2007.04649, algorithm 1; Teaching with Commentaries,
    arXiv:2011.03037, algorithm 1.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from amal_hf.adjoints import Adjoints, clip_adjoint, step_adjoint
from amal_hf.central_differences import both_sides, check_radius, global_norm
from amal_hf.policies.policy import Observation
from amal_hf.processes import summed_gradients, totals
from amal_hf.rewinds import Rewind, Snapshots
from amal_hf.shapes import LossTable, Params
from amal_hf.steps import Step, clip_share, gradients_of, joined, put, raw, snapshot, trained_parameters


# ---- slopes and Hessian products ----


class Product(ABC):
    """Slopes and Hessian product of one step, along one vector.

    Attributes:
        needs_eager_attention: whether it differentiates attention in a way that fused attention cannot be.
    """

    needs_eager_attention: bool = False

    @abstractmethod
    def __call__(self, step: Step, params: Params, vector: Params, dtype: torch.dtype) -> tuple[LossTable, Params]:
        """`⟨u, ∇ℓ_ik⟩`, `(N, K)`, and `H u`.

        Args:
            step: with its weighed loss, whose Hessian is `H`.
            params: the parameters that move.
            vector: `u`, by their names.
            dtype: the precision in which the student computes.
        """


class FiniteProduct(Product):
    """Central differences: two forward and two backward passes, whatever the student is made of.

    Args:
        radius: length of the step in parameter space, as for `FiniteDifference`.

    Raises:
        ValueError: a radius that is not positive and finite.
    """

    def __init__(self, radius: float | None = None) -> None:
        check_radius(self, radius)
        self.radius = radius

    def __call__(self, step: Step, params: Params, vector: Params, dtype: torch.dtype) -> tuple[LossTable, Params]:
        """Losses and gradients on both sides."""

        def look() -> tuple[LossTable, Params]:
            with torch.enable_grad():
                total, losses = step.total()
                return losses.detach(), summed_gradients(total, params)

        (plus, plus_gradients), (minus, minus_gradients), distance = both_sides(
            params, vector, look, dtype, self.radius
        )
        product = {name: (plus_gradients[name] - minus_gradients[name]) / distance for name in params}
        return (plus - minus) / distance, product


class ExactProduct(Product):
    """By differentiating the gradient: load the student with `attn_implementation="eager"`; another is refused."""

    needs_eager_attention = True

    def __call__(self, step: Step, params: Params, vector: Params, dtype: torch.dtype) -> tuple[LossTable, Params]:
        """One forward and three backward passes."""
        del dtype
        with torch.enable_grad():
            losses = step.evaluate().losses
            probe = torch.zeros_like(losses, requires_grad=True)
            total = ((step.weights.to(losses.dtype) / step.examples + probe) * losses).sum()
            gradients = torch.autograd.grad(total, list(params.values()), create_graph=True, allow_unused=True)
            along = torch.stack(
                [(g * vector[name]).sum() for name, g in zip(params, gradients, strict=True) if g is not None]
            ).sum()
            slopes, *products = torch.autograd.grad(along, [probe, *params.values()], allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(params.values(), products, strict=True)]
        return slopes, dict(zip(params, totals(filled), strict=True))


# ---- the walk ----


@dataclass(frozen=True)
class Trajectory:
    """How far back the weights' gradient goes, and how.

    Attributes:
        steps: B. The policy learns after every B steps, from all of them.
        product: how slopes and Hessian products are computed.
        rewind: how the student gets back to where it was.
        frozen_second_moment: take the second moment of Adam and AdamW as given. The derivative of a fresh Adam
            step lets the noisiest coordinates decide: its sensitivity is `ε / (|g| + ε)²`. Steps of other optimizers
            are differentiated as they are.

    Raises:
        ValueError: fewer than one step.
    """

    steps: int = 5
    product: Product = field(default_factory=FiniteProduct)
    rewind: Rewind = field(default_factory=Snapshots)
    frozen_second_moment: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Trajectory: steps must be a whole number from 1, got {self.steps}.")


def walk_back(
    trajectory: Trajectory,
    optimizer: Optimizer,
    params: Params,
    steps: Sequence[Step],
    gradient: Params,
    dtype: torch.dtype,
    max_grad_norm: float = 0.0,
) -> tuple[Observation, LossTable]:
    """What all examples of all steps looked like, and their slopes; the student is put back bit for bit.

    Args:
        trajectory: how.
        optimizer: that took the steps.
        params: the parameters that `gradient` is of; others count as given.
        steps: oldest first.
        gradient: `∇V` after the last step.
        dtype: the precision in which the student computes.
        max_grad_norm: at which gradients were clipped; 0 for not at all.
    """
    optimizer = raw(optimizer)
    adjoint = dict(gradient)
    states: Adjoints = {}
    found: list[LossTable] = []
    usual = sum(step.examples for step in steps) / len(steps)
    with _put_back(optimizer):
        for position in trajectory.rewind.back(optimizer, steps, max_grad_norm):
            step = steps[position]
            gradients, norm = _gradients_as_taken(step, params, trained_parameters(optimizer), max_grad_norm)
            adjoint, states, of_gradient = step_adjoint(
                optimizer, params, gradients, adjoint, states, step.learning_rates, trajectory.frozen_second_moment
            )
            of_gradient = clip_adjoint(of_gradient, gradients, norm, max_grad_norm)
            slopes, product = trajectory.product(step, params, of_gradient, dtype)
            adjoint = {name: value + product[name] for name, value in adjoint.items()}
            # dV/dw is one over the examples of the step: those of a shorter one, as ends an epoch, count for more.
            found.append(-slopes * (usual / step.examples))
    return joined([step.observation for step in steps]), torch.cat(found[::-1])


@contextmanager
def _put_back(optimizer: Optimizer) -> Iterator[None]:
    """Within the block the student may stand elsewhere; afterwards it, its optimizer and its rates are as before."""
    now, rates = snapshot(optimizer), [group["lr"] for group in optimizer.param_groups]
    try:
        yield
    finally:
        put(optimizer, now)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _gradients_as_taken(
    step: Step, params: Params, trained: Sequence[Tensor], max_grad_norm: float
) -> tuple[dict[str, Tensor], Tensor]:
    """What the optimizer got for `params`, clipped by the norm over all that it trains; and that norm."""
    everything = gradients_of(step, {str(place): p for place, p in enumerate(trained)})
    norm = global_norm(everything)
    own = {id(p): g for p, g in zip(trained, everything.values(), strict=True)}
    return {name: own[id(p)] * clip_share(norm, max_grad_norm) for name, p in params.items()}, norm


def check_optimizer(optimizer: Optimizer, trajectory: Trajectory) -> None:
    """Refuse optimizers whose steps cannot be differentiated.

    Raises:
        ValueError: says which, and which ones work.
    """
    if "differentiable" not in inspect.signature(type(raw(optimizer))).parameters:
        raise ValueError(
            f"Trajectory: a step of {type(raw(optimizer)).__name__} cannot be differentiated. Use an optimizer of "
            f'torch.optim, as optim="adamw_torch" or "sgd", or a method without a trajectory.'
        )
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("Trajectory: the optimizer has maximize=True, which is not walked back. Negate the loss.")
    trajectory.rewind.check(optimizer, trajectory.steps)
