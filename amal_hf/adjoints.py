"""The adjoint of an optimizer's arithmetic, clipping included."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from amal_hf.shapes import Params
from amal_hf.steps import clip_share


Adjoints: TypeAlias = dict[str, dict[str, Tensor]]
"""For every parameter by name, the adjoint of each of its optimizer states."""

_ADAM_STATES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


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
    known = _with_counters_here(optimizer, params)
    before, before_states, of_gradient = {}, {}, {}
    for name, p in params.items():
        group, rate = places[id(p)]
        options = {**group, "lr": rate}
        rule = _frozen_adam if frozen_second_moment and isinstance(optimizer, (Adam, AdamW)) else _replayed
        before[name], before_states[name], of_gradient[name] = rule(
            optimizer, p, gradients[name], known[name], options, adjoint[name], states.get(name, {})
        )
    return before, before_states, of_gradient


def _with_counters_here(optimizer: Optimizer, params: Params) -> dict[str, dict[str, Any]]:
    """The states of parameters, by name, with counters of steps on the CPU.

    A fused optimizer has them on its GPU, which is waited for once and not for each; and Apple's have no float64.
    """
    states = {name: optimizer.state.get(p, {}) for name, p in params.items()}
    counters = {name: state["step"] for name, state in states.items() if isinstance(state.get("step"), Tensor)}
    far = [name for name, counter in counters.items() if counter.device.type != "cpu"]
    if far:
        here = torch.stack([counters[name] for name in far]).cpu()
        states |= {name: {**states[name], "step": counter} for name, counter in zip(far, here, strict=True)}
    return states


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
    state, group = _as_if_begun(optimizer, p, state, group)
    with torch.enable_grad():
        start, gradient = _leaf(p), _leaf(g)
        inputs = {key: _leaf(value) for key, value in state.items() if _is_like(value, p)}
        copies = {
            key: value.clone() if isinstance(value, Tensor) else value for key, value in {**state, **inputs}.items()
        }
        moved, after = _stepped(optimizer, start, gradient, copies, group)
        after = {key: value for key, value in after.items() if isinstance(value, Tensor) and key in states}
        results = torch.autograd.grad(
            [moved, *after.values()],
            [start, gradient, *inputs.values()],
            [adjoint, *(states[key] for key in after)],
            allow_unused=True,
        )
    # Where nothing has ever come, as in rows of words that no text has, a root of zero has no derivative. Nor does any
    # loss move them, whatever its weight.
    still = g == 0
    before, of_gradient, *rest = (
        torch.zeros_like(p) if value is None else value.masked_fill(still & ~value.isfinite(), 0) for value in results
    )
    # A state that the step itself made (a first momentum) has no adjoint before it.
    return before, dict(zip(inputs, rest, strict=True)), of_gradient


def _as_if_begun(
    optimizer: Optimizer, p: Tensor, state: dict[str, Any], group: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and options with which a first step is taken as any other."""
    if isinstance(optimizer, SGD) and group["momentum"] and state.get("momentum_buffer") is None:
        # The first buffer is a detached copy of the gradient; from a buffer of zeros it is the gradient itself.
        return {"momentum_buffer": torch.zeros_like(p)}, {**group, "dampening": 0}
    if isinstance(optimizer, Adam):
        fresh = {"step": torch.zeros(()), **{key: torch.zeros_like(p) for key in _ADAM_STATES}}
        state = {**fresh, **state}
        # A counter in fp32 would round the bias corrections, which a fresh step subtracts from one another.
        state["step"] = state["step"].double()
    return state, group


def _stepped(
    optimizer: Optimizer, start: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Parameter and state after a step of a new optimizer of this kind, with a graph to what they were before."""
    moved = start.clone()
    moved.grad = gradient
    own = {**group, "params": [moved], "differentiable": True, "foreach": False, "fused": None, "capturable": False}
    replica = type(optimizer)([own], lr=group["lr"], differentiable=True)  # type: ignore[call-arg]
    replica.state[moved] = state
    replica.step()
    return moved, replica.state[moved]


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def _is_like(value: Any, p: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == p.shape


def clip_adjoint(of_clipped: Params, gradients: Params, norm: Tensor, max_grad_norm: float) -> dict[str, Tensor]:
    """From the adjoint of clipped gradients to that of the gradients themselves."""
    share = clip_share(norm, max_grad_norm)
    if max_grad_norm <= 0 or share >= 1:
        return dict(of_clipped)
    along = torch.stack([(of_clipped[name] * g).sum() for name, g in gradients.items()]).sum()
    # d(share · g) with share = c / (‖g‖ + 1e-6); `gradients` are clipped already, so g = gradients / share.
    turn = along / (share * norm * (norm + 1e-6))
    return {name: share * value - turn * gradients[name] for name, value in of_clipped.items()}
