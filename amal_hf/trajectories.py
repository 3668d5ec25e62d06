"""The gradient of the meta loss through the student's last B steps, walked back one step at a time.

Backwards from the newest step, with the adjoints `θ̄ = dV/dθ` and one more for each state of the optimizer:

1. Stand where the step began (`Snapshots`, or `Reversal` for SGD with momentum).
2. The adjoint of the optimizer's arithmetic turns `θ̄` into `ḡ = dV/dg`, the adjoint of the gradient of that step.
3. Slopes of the step: `s_ik = −⟨ḡ, ∇ℓ_ik⟩`, so that `dV/dw_ik = −s_ik / N`: positive ones earn weight, as everywhere.
4. `θ̄ ← θ̄ + H ḡ` with the Hessian of the step's weighed loss.

One pair of gradients at `θ ± εḡ` gives 3 and 4 together (`FiniteProduct`): the losses' difference is the slopes, the
gradients' difference the Hessian product. Nothing is differentiated twice, so fused attention stays on.

References:
    Learning to Reweight with Deep Interactions, arXiv:2007.04649, algorithm 1; Teaching with Commentaries,
    arXiv:2011.03037, algorithm 1.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from amal_hf.policies.policy import Observation
from amal_hf.shapes import Evaluate, LossTable, Params
from amal_hf.tangents import global_norm, movable


Adjoints: TypeAlias = dict[str, dict[str, Tensor]]
"""For every parameter by name, the adjoint of each of its optimizer states."""

LONGEST_REVERSAL = 50
"""Rounding is divided by the momentum at every step back: errors of 7e-6 after 100 steps, 6e-3 after 200, 59 after 400
were measured on a toy problem in fp32."""


class Step(NamedTuple):
    """An optimizer step that the student has taken.

    Attributes:
        evaluate: runs the student over the step's examples at the present parameters, with the step's own dropout.
        weights: `(N, K)`, as they were.
        observation: what the weights were computed from.
        learning_rates: of the optimizer's parameter groups.
    """

    evaluate: Evaluate
    weights: LossTable
    observation: Observation
    learning_rates: list[float]

    def total(self) -> tuple[Tensor, LossTable]:
        """The step's training loss with its graph, and all losses."""
        losses = self.evaluate().losses
        return (self.weights.to(losses.dtype) * losses).sum() / len(losses), losses


class Snapshot(NamedTuple):
    """Parameters and states of an optimizer, copied, in its own order."""

    params: list[Tensor]
    states: list[dict[str, Any]]


# ---- where the student stood ----


class Rewind(ABC):
    """A way back to where earlier steps began."""

    def check(self, optimizer: Optimizer, steps: int) -> None:
        """Refuse what there is no way back from.

        Raises:
            ValueError: says why, and what to use.
        """
        del optimizer, steps

    def record(self, optimizer: Optimizer, position: int, steps: int) -> None:
        """Take note before step `position` of a trajectory of `steps`."""
        del optimizer, position, steps

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """All that has been noted, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[int, dict[str, Any]]) -> None:
        """Restore `state_dict`."""
        del state

    @abstractmethod
    def back(self, optimizer: Optimizer, steps: Sequence[Step], max_grad_norm: float) -> Iterator[int]:
        """Put parameters and optimizer at the beginning of each step, newest first; gives its position."""


class Snapshots(Rewind):
    """Copies at every ⌈√B⌉-th step; steps in between are taken again. For any optimizer.

    Args:
        every: steps from one copy to the next; `None` balances copies against repetitions.
    """

    def __init__(self, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"Snapshots: every must be a whole number from 1, got {every}.")
        self.every = every
        self.kept: dict[int, Snapshot] = {}

    def spacing(self, steps: int) -> int:
        """Steps from one copy to the next in a trajectory of `steps`."""
        return self.every or math.ceil(math.sqrt(steps))

    def record(self, optimizer: Optimizer, position: int, steps: int) -> None:
        """A copy, where one is due."""
        if position == 0:
            self.kept.clear()
        if position % self.spacing(steps) == 0:
            self.kept[position] = snapshot(optimizer)

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """The copies."""
        return {position: kept._asdict() for position, kept in self.kept.items()}

    def load_state_dict(self, state: dict[int, dict[str, Any]]) -> None:
        """Restore the copies."""
        self.kept = {position: Snapshot(**kept) for position, kept in state.items()}

    def back(self, optimizer: Optimizer, steps: Sequence[Step], max_grad_norm: float) -> Iterator[int]:
        """Segment by segment: from its copy forwards once, then backwards through what that gave."""
        for start in sorted(self.kept, reverse=True):
            segment = [self.kept[start]]
            for position in range(start, min(start + self.spacing(len(steps)), len(steps)) - 1):
                put(optimizer, segment[-1])
                repeat(optimizer, steps[position], max_grad_norm)
                segment.append(snapshot(optimizer))
            for offset in reversed(range(len(segment))):
                put(optimizer, segment[offset])
                yield start + offset


class Reversal(Rewind):
    """SGD with momentum run backwards exactly: no copies at all, but at most 50 steps, in fp32 or wider."""

    def check(self, optimizer: Optimizer, steps: int) -> None:
        """SGD with plain momentum, few steps, full precision."""
        groups = optimizer.param_groups
        reversible = isinstance(raw(optimizer), SGD) and all(
            group["momentum"] > 0 and not group["nesterov"] and not group["dampening"] for group in groups
        )
        if not reversible:
            raise ValueError(
                f"Reversal: only torch.optim.SGD with momentum (not Nesterov, no dampening) can be run backwards; "
                f"this is {type(raw(optimizer)).__name__}. Use Snapshots(), which works with any optimizer."
            )
        if steps > LONGEST_REVERSAL:
            raise ValueError(
                f"Reversal: {steps} steps are more than {LONGEST_REVERSAL}. Every step back divides rounding errors "
                f"by the momentum: in fp32 they grew from 7e-6 after 100 steps to 6e-3 after 200. Use Snapshots()."
            )
        kinds = {p.dtype for group in groups for p in group["params"]} - {torch.float32, torch.float64}
        if kinds:
            raise ValueError(f"Reversal: parameters must be fp32 or fp64 to be run backwards, got {kinds}.")

    def back(self, optimizer: Optimizer, steps: Sequence[Step], max_grad_norm: float) -> Iterator[int]:
        """`θ ← θ + lr·m`, then `m ← (m − g)/μ` with the gradient there."""
        for position in reversed(range(len(steps))):
            step = steps[position]
            moved = [
                (p, group, rate)
                for group, rate in zip(optimizer.param_groups, step.learning_rates, strict=True)
                for p in group["params"]
                if p.requires_grad and "momentum_buffer" in optimizer.state.get(p, {})
            ]
            with torch.no_grad():
                for p, _, rate in moved:
                    p.add_(optimizer.state[p]["momentum_buffer"], alpha=rate)
            gradients = clipped(gradients_of(step, {str(i): p for i, (p, _, _) in enumerate(moved)}), max_grad_norm)
            for (p, group, _), g in zip(moved, gradients.values(), strict=True):
                decayed = g + group["weight_decay"] * p.detach()
                optimizer.state[p]["momentum_buffer"].sub_(decayed).div_(group["momentum"])
            yield position


# ---- slopes and Hessian products ----


class Product(ABC):
    """Slopes and Hessian product of one step, along one vector."""

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
    """

    def __init__(self, radius: float | None = None) -> None:
        self.radius = radius

    def __call__(self, step: Step, params: Params, vector: Params, dtype: torch.dtype) -> tuple[LossTable, Params]:
        """Losses and gradients on both sides."""
        radius = _RADIUS.get(dtype, 0.05) if self.radius is None else self.radius
        size = radius / global_norm(vector).clamp(min=torch.finfo(torch.float32).tiny)
        sides = []
        with movable(params, vector) as move:
            for side in (size, -size):
                move(side)
                with torch.enable_grad():
                    total, losses = step.total()
                    gradients = torch.autograd.grad(total, list(params.values()), allow_unused=True)
                sides.append((losses.detach(), gradients))
        (plus, plus_gradients), (minus, minus_gradients) = sides
        product = {
            name: torch.zeros_like(p) if a is None or b is None else (a - b) / (2 * size)
            for (name, p), a, b in zip(params.items(), plus_gradients, minus_gradients, strict=True)
        }
        return (plus - minus) / (2 * size), product


class ExactProduct(Product):
    """By differentiating the gradient; needs eager attention."""

    def __call__(self, step: Step, params: Params, vector: Params, dtype: torch.dtype) -> tuple[LossTable, Params]:
        """One forward and three backward passes."""
        del dtype
        with torch.enable_grad():
            losses = step.evaluate().losses
            probe = torch.zeros_like(losses, requires_grad=True)
            total = ((step.weights.to(losses.dtype) / len(losses) + probe) * losses).sum()
            gradients = torch.autograd.grad(total, list(params.values()), create_graph=True, allow_unused=True)
            along = torch.stack(
                [(g * vector[name]).sum() for name, g in zip(params, gradients, strict=True) if g is not None]
            ).sum()
            slopes, *products = torch.autograd.grad(along, [probe, *params.values()], allow_unused=True)
        pairs = zip(params.items(), products, strict=True)
        return slopes, {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


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
    now, rates = snapshot(optimizer), [group["lr"] for group in optimizer.param_groups]
    adjoint = dict(gradient)
    states: Adjoints = {}
    found: list[LossTable] = []
    trainable = {str(i): p for i, p in enumerate(_parameters(optimizer))}
    try:
        for position in trajectory.rewind.back(optimizer, steps, max_grad_norm):
            step = steps[position]
            everything = gradients_of(step, trainable)
            norm = global_norm(everything)
            own = {id(p): everything[name] for name, p in trainable.items()}
            gradients = {name: own[id(p)] * _clip_share(norm, max_grad_norm) for name, p in params.items()}
            adjoint, states, of_gradient = step_adjoint(
                optimizer, params, gradients, adjoint, states, step.learning_rates, trajectory.frozen_second_moment
            )
            of_gradient = _clip_adjoint(of_gradient, gradients, norm, max_grad_norm)
            slopes, product = trajectory.product(step, params, of_gradient, dtype)
            adjoint = {name: value + product[name] for name, value in adjoint.items()}
            found.append(-slopes)
    finally:
        put(optimizer, now)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    return joined([step.observation for step in steps]), torch.cat(found[::-1])


def step_adjoint(
    optimizer: Optimizer,
    params: Params,
    gradients: Params,
    adjoint: Params,
    states: Adjoints,
    rates: Sequence[float],
    frozen_second_moment: bool,
) -> tuple[dict[str, Tensor], Adjoints, dict[str, Tensor]]:
    """The adjoint of an optimizer's arithmetic: from (θ̄, states) after a step to those before it, and to `ḡ`.

    Args:
        optimizer: as it stood before the step.
        params: where they stood.
        gradients: of the step, as the optimizer got them.
        adjoint: θ̄ after the step.
        states: adjoints of the optimizer's states after it; those that are missing are zero.
        rates: learning rates of the groups.
        frozen_second_moment: see `Trajectory`.
    """
    places = {
        id(p): (group, rate)
        for group, rate in zip(optimizer.param_groups, rates, strict=True)
        for p in group["params"]
    }
    before, before_states, of_gradient = {}, {}, {}
    for name, p in params.items():
        group, rate = places[id(p)]
        options = {**group, "lr": rate}
        rule = _frozen_adam if frozen_second_moment and isinstance(optimizer, (Adam, AdamW)) else _replayed
        state = optimizer.state.get(p, {})
        before[name], before_states[name], of_gradient[name] = rule(
            optimizer, p, gradients[name], state, options, adjoint[name], states.get(name, {})
        )
    return before, before_states, of_gradient


def _frozen_adam(
    optimizer: Optimizer,
    p: Tensor,
    g: Tensor,
    state: dict[str, Any],
    group: dict[str, Any],
    adjoint: Tensor,
    states: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Adam and AdamW, linear in gradient and first moment once the second moment is given."""
    beta1, beta2 = group["betas"]
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, AdamW))
    decay = group["weight_decay"]
    count = float(state.get("step", 0)) + 1
    seen = g if decoupled else g + decay * p.detach()
    second = (1 - beta2) * seen.square() + (beta2 * state["exp_avg_sq"] if state else 0)
    if group.get("amsgrad") and state:
        second = torch.maximum(second, state["max_exp_avg_sq"])
    scale = (second / (1 - beta2**count)).sqrt() + group["eps"]
    first = states.get("exp_avg", torch.zeros_like(p)) - group["lr"] / (1 - beta1**count) * adjoint / scale
    of_gradient = (1 - beta1) * first
    kept = (1 - group["lr"] * decay) * adjoint if decoupled else adjoint + decay * of_gradient
    return kept, {"exp_avg": beta1 * first}, of_gradient


def _replayed(
    optimizer: Optimizer,
    p: Tensor,
    g: Tensor,
    state: dict[str, Any],
    group: dict[str, Any],
    adjoint: Tensor,
    states: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Any optimizer of torch that can be differentiated: the step taken again on copies, and autograd."""
    if isinstance(optimizer, SGD) and group["momentum"] and state.get("momentum_buffer") is None:
        # The first buffer is a detached copy of the gradient; from a buffer of zeros it is the gradient itself.
        state, group = {"momentum_buffer": torch.zeros_like(p)}, {**group, "dampening": 0}
    if isinstance(optimizer, Adam):
        # A counter in fp32 would round the bias corrections, which a fresh step subtracts from one another.
        fresh = {"step": torch.zeros(()), **{key: torch.zeros_like(p) for key in _ADAM_STATES}}
        state = {**fresh, **state}
        state["step"] = state["step"].double()
    with torch.enable_grad():
        start, gradient = (value.detach().clone().requires_grad_() for value in (p, g))
        inputs = {
            key: value.detach().clone().requires_grad_()
            for key, value in state.items()
            if isinstance(value, Tensor) and value.shape == p.shape
        }
        moved = start.clone()
        moved.grad = gradient
        own = {**group, "params": [moved], "differentiable": True, "foreach": False, "fused": None}
        replica = type(optimizer)([own], lr=group["lr"], differentiable=True)  # type: ignore[call-arg]
        replica.state[moved] = {
            key: inputs[key].clone() if key in inputs else value.clone() if isinstance(value, Tensor) else value
            for key, value in state.items()
        }
        replica.step()
        after = {
            key: value for key, value in replica.state[moved].items() if isinstance(value, Tensor) and key in states
        }
        results = torch.autograd.grad(
            [moved, *after.values()],
            [start, gradient, *inputs.values()],
            [adjoint, *(states[key] for key in after)],
            allow_unused=True,
        )
    before, of_gradient, *rest = (torch.zeros_like(p) if value is None else value for value in results)
    # A state that the step itself made (a first momentum) has no adjoint before it.
    return before, dict(zip(inputs, rest, strict=True)), of_gradient


def gradients_of(step: Step, params: Params) -> dict[str, Tensor]:
    """`∇` of the step's training loss at the present parameters."""
    with torch.enable_grad():
        total, _ = step.total()
        gradients = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    pairs = zip(params.items(), gradients, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


def clipped(gradients: Params, max_grad_norm: float) -> dict[str, Tensor]:
    """As `torch.nn.utils.clip_grad_norm_` does it."""
    share = _clip_share(global_norm(gradients), max_grad_norm)
    return {name: g * share for name, g in gradients.items()}


def _clip_share(norm: Tensor, max_grad_norm: float) -> Tensor:
    return (max_grad_norm / (norm + 1e-6)).clamp(max=1) if max_grad_norm > 0 else torch.ones_like(norm)


def _clip_adjoint(of_clipped: Params, gradients: Params, norm: Tensor, max_grad_norm: float) -> dict[str, Tensor]:
    """From the adjoint of clipped gradients to that of the gradients themselves."""
    share = _clip_share(norm, max_grad_norm)
    if max_grad_norm <= 0 or share >= 1:
        return dict(of_clipped)
    along = torch.stack([(of_clipped[name] * g).sum() for name, g in gradients.items()]).sum()
    # d(share · g) with share = c / (‖g‖ + 1e-6); `gradients` are clipped already, so g = gradients / share.
    turn = along / (share * norm * (norm + 1e-6))
    return {name: share * value - turn * gradients[name] for name, value in of_clipped.items()}


def repeat(optimizer: Optimizer, step: Step, max_grad_norm: float) -> None:
    """Take a step again, with no trace in `.grad`."""
    params = {str(i): p for i, p in enumerate(_parameters(optimizer))}
    gradients = clipped(gradients_of(step, params), max_grad_norm)
    kept = {name: p.grad for name, p in params.items()}
    for group, rate in zip(optimizer.param_groups, step.learning_rates, strict=True):
        group["lr"] = rate
    try:
        for name, p in params.items():
            p.grad = gradients[name]
        optimizer.step()
    finally:
        for name, p in params.items():
            p.grad = kept[name]


def snapshot(optimizer: Optimizer) -> Snapshot:
    """Copies of all that the optimizer moves, and of its states."""
    params = _parameters(optimizer)
    states = [
        {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in optimizer.state.get(p, {}).items()
        }
        for p in params
    ]
    return Snapshot([p.detach().clone() for p in params], states)


@torch.no_grad()
def put(optimizer: Optimizer, kept: Snapshot) -> None:
    """Put parameters and states where they were, bit for bit; the copies stay good."""
    for p, value, state in zip(_parameters(optimizer), kept.params, kept.states, strict=True):
        p.copy_(value)
        if state:
            optimizer.state[p] = {k: _copied(v, p) for k, v in state.items()}
        else:
            optimizer.state.pop(p, None)


def _copied(value: Any, p: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    # A counter may live on the CPU, whatever the device of the parameter.
    return value.to(p.device, copy=True) if value.shape == p.shape else value.clone()


def raw(optimizer: Any) -> Optimizer:
    """The optimizer itself, without the wrapper of Accelerate."""
    inner: Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


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
    trajectory.rewind.check(optimizer, trajectory.steps)


def joined(observations: Sequence[Observation]) -> Observation:
    """Several observations as one, each with its own progress."""
    progress = [
        torch.as_tensor(o.progress, device=o.ids.device, dtype=torch.float32).expand(len(o.ids)) for o in observations
    ]
    return Observation(
        torch.cat([o.ids for o in observations]), torch.cat([o.features for o in observations]), torch.cat(progress)
    )


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


_ADAM_STATES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

_RADIUS = {torch.float64: 1e-4, torch.float32: 1e-2}
