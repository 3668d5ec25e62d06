"""One recorded step of the student: its loss again, the step again, and the student back where it stood."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from amal_hf.central_differences import global_norm
from amal_hf.policies.policy import Observation
from amal_hf.processes import summed_gradients
from amal_hf.shapes import Evaluate, LossTable, Params


class Step(NamedTuple):
    """An optimizer step that the student has taken.

    Attributes:
        evaluate: runs the student over the step's examples at the present parameters, with the step's own dropout.
        weights: `(rows, K)`, as they were.
        observation: what the weights were computed from.
        learning_rates: of the optimizer's parameter groups.
        examples: N, over all processes; fewer than rows where the rows are tokens.
    """

    evaluate: Evaluate
    weights: LossTable
    observation: Observation
    learning_rates: list[float]
    examples: Tensor | int

    def total(self) -> tuple[Tensor, LossTable]:
        """This process's part of the step's training loss with its graph, and all losses."""
        losses = self.evaluate().losses
        return (self.weights.to(losses.dtype) * losses).sum() / self.examples, losses


class Snapshot(NamedTuple):
    """Parameters and states of an optimizer, copied, in its own order."""

    params: list[Tensor]
    states: list[dict[str, Any]]


def gradients_of(step: Step, params: Params) -> dict[str, Tensor]:
    """`∇` of the step's training loss at the present parameters."""
    with torch.enable_grad():
        total, _ = step.total()
        return summed_gradients(total, params)


def clipped(gradients: Params, max_grad_norm: float) -> dict[str, Tensor]:
    """As `torch.nn.utils.clip_grad_norm_` does it."""
    share = clip_share(global_norm(gradients), max_grad_norm)
    return {name: g * share for name, g in gradients.items()}


def clip_share(norm: Tensor, max_grad_norm: float) -> Tensor:
    """By what clipping multiplies gradients of a norm; 1 where `max_grad_norm` is 0."""
    return (max_grad_norm / (norm + 1e-6)).clamp(max=1) if max_grad_norm > 0 else torch.ones_like(norm)


def repeat(optimizer: Optimizer, step: Step, max_grad_norm: float) -> None:
    """Take a step again, with no trace in `.grad`."""
    params = {str(i): p for i, p in enumerate(trained_parameters(optimizer))}
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
    params = trained_parameters(optimizer)
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
    for p, value, state in zip(trained_parameters(optimizer), kept.params, kept.states, strict=True):
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


def trained_parameters(optimizer: Optimizer) -> list[Tensor]:
    """What an optimizer moves, in its own order."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def joined(observations: Sequence[Observation]) -> Observation:
    """Several observations as one, each with its own progress."""
    progress = [o.progress_of(o.ids.new_empty(0, dtype=torch.float32))[:, 0] for o in observations]
    masks = [o.present for o in observations if o.present is not None]
    return Observation(
        torch.cat([o.ids for o in observations]),
        torch.cat([o.features for o in observations]),
        torch.cat(progress),
        torch.cat(masks) if masks else None,
    )
