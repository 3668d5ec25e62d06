"""Slow, exact mathematics that the package is compared with: plain autograd, no tricks."""

from collections.abc import Callable

import datasets
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


def learning_to_reweight_by_unrolling(
    model: nn.Module, rows: datasets.Dataset, clean: datasets.Dataset, batch: int, steps: int, learning_rate: float
) -> None:
    """Ren et al. 2018, algorithm 1, as it stands: train `model` in place by SGD over the rows in their order.

    Two forward and two backward passes for the weights (a step with weights ε = 0, then the clean loss), a third for
    the student.
    """

    def losses(params: Params, part: datasets.Dataset) -> Tensor:
        inputs = {name: torch.tensor(part[name][:]) for name in part.column_names}
        labels = inputs.pop("labels")
        logits = functional_call(model, dict(params), (), inputs).logits
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    model.eval()
    # The package leaves embedding tables where they are in a meta step; so does this.
    tables = {id(p) for part in model.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    params = dict(model.named_parameters())
    moving = {name: p for name, p in params.items() if id(p) not in tables}
    for step in range(steps):
        part = rows.select(range(step * batch, (step + 1) * batch))
        table = losses(params, part)
        epsilon = torch.zeros_like(table, requires_grad=True)
        gradient = torch.autograd.grad((epsilon * table).sum(), list(moving.values()), create_graph=True)
        stepped = {name: p - g for (name, p), g in zip(moving.items(), gradient, strict=True)}
        (derivative,) = torch.autograd.grad(losses({**params, **stepped}, clean).mean(), epsilon)
        weights = (-derivative).clamp(min=0)
        total = weights.sum()
        weights = weights / (total if total > 0 else 1)
        gradient = torch.autograd.grad((weights * losses(params, part)).sum(), list(params.values()))
        with torch.no_grad():
            for p, g in zip(params.values(), gradient, strict=True):
                p -= learning_rate * g


def trajectory_slopes_by_unrolling(
    params: Params,
    losses: Callable[[Params, int], LossTable],
    meta_loss: Callable[[Params], Tensor],
    weights: list[LossTable],
    step: Callable[[Params, Params, dict[str, Tensor], int], tuple[Params, dict[str, Tensor]]],
    max_grad_norm: float = 0.0,
) -> LossTable:
    """`−N dV/dw` for the weights of all steps, by one backward pass through the whole training.

    Args:
        params: where the student starts.
        losses: given parameters and the number of a step, `(N, K)`.
        meta_loss: given the final parameters, `V`.
        weights: `(N, K)` for every step.
        step: one optimizer step: parameters, gradients, state and number in, parameters and state out.
        max_grad_norm: clips gradients if positive.
    """
    state: dict[str, Tensor] = {}
    leaves = [w.clone().requires_grad_() for w in weights]
    params = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    for number, w in enumerate(leaves):
        table = losses(params, number)
        total = (w * table).sum() / len(table)
        gradient = torch.autograd.grad(total, list(params.values()), create_graph=True)
        if max_grad_norm:
            norm = torch.cat([g.flatten() for g in gradient]).norm()
            gradient = [g * (max_grad_norm / (norm + 1e-6)).clamp(max=1) for g in gradient]
        params, state = step(params, dict(zip(params, gradient, strict=True)), state, number)
    derivatives = torch.autograd.grad(meta_loss(params), leaves)
    return torch.cat([-d * len(d) for d in derivatives])
