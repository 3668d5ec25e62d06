"""Slopes of the output layer alone, in closed form (AMAL, arXiv:2202.03250).

1. The output layer is the last `nn.Linear` of the student, `z = W h + b`; all before it counts as fixed.
2. For a direction `(V_W, V_b)` of that layer the logits move by `V_W h_i + V_b`, so the slope is `s_ik = δ_ik · (V_W
   h_i + V_b)` with `δ_ik = ∂ℓ_ik/∂z_i`.
3. `δ` needs one backward pass from the loss to the logits for each loss. No gradient of a single example is ever
   formed: the official code builds a matrix `(B, C (d + 1))` for each loss, which at 50,000 classes is gigabytes.
4. As the features `h` do not change, a batch passes through the student's body once, however often the step is
   repeated (`frozen_body`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from amal_hf.shapes import Evaluate, LossTable, Params
from amal_hf.student_states import with_logits
from amal_hf.tangents import Slopes, Tangent


class LastLayer(Tangent):
    """The closed form above. Exact for the output layer; blind to everything below it.

    Raises:
        ValueError: at construction of the trainer, no linear layer as wide as the labels, or a frozen one; in a run,
            logits that are not its output.

    References:
        AMAL, arXiv:2202.03250, whose code takes the gradients of the last layer alone.
    """

    head_alone = True

    def scope(self, model: nn.Module) -> nn.Linear:
        """The student's output layer."""
        return output_layer(model)

    def __call__(self, model: nn.Module, direction: Params, evaluate: Evaluate, dtype: torch.dtype) -> Slopes:
        """One forward pass and, for each loss, one backward pass to the logits. `model` is the output layer itself."""
        del dtype
        with torch.enable_grad(), _recorded(model) as calls:
            result = evaluate()
        features, logits = [h for h, _ in calls], [z for _, z in calls]
        moves = [_move(h, direction) for h in features]
        slopes = torch.stack([_slope(column, logits, moves) for column in result.losses.unbind(1)], 1)
        # Rows that do not count have passed through the layer too; they are the last.
        return Slopes(slopes[: len(result.losses)], result.features.detach())


def output_layer(model: nn.Module) -> nn.Linear:
    """The linear layer that gives the student's logits: the last one as wide as the number of labels.

    Raises:
        ValueError: the model has none, as with a head that is not linear, or it is frozen.
    """
    labels = cast(Any, model).config.num_labels
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == labels]
    if not layers:
        raise ValueError(
            f"LastLayer: {type(model).__name__} has no nn.Linear with {labels} outputs, so its output layer cannot be "
            f"found. Use FiniteDifference(), which works with any student."
        )
    if not layers[-1].weight.requires_grad:
        raise ValueError(
            f"LastLayer: the output layer of {type(model).__name__} is frozen, so no weight could be learned from it. "
            f"Train it, or use FiniteDifference()."
        )
    return layers[-1]


def frozen_body(model: nn.Module, head: nn.Module, inputs: dict[str, Tensor]) -> Callable[[], Any]:
    """Run the student once, without a graph, and return what recomputes its outputs from the output layer alone.

    Raises:
        ValueError: the logits are not what `head` gives.
        TypeError: there are none, as in a dictionary.
    """
    calls: list[tuple[Tensor, Tensor]] = []
    handle = head.register_forward_hook(lambda _, args, output: calls.append((args[0].detach(), output)))
    try:
        with torch.no_grad():
            outputs = with_logits(model(**inputs))
    finally:
        handle.remove()
    if len(calls) != 1 or not torch.equal(calls[0][1].float(), outputs.logits.float()):
        raise ValueError(
            f"LastLayer: the logits of {type(model).__name__} are not the output of its last linear layer. Use "
            f"FiniteDifference(), which works with any student."
        )
    # The output layer is called outside the student's autocast, so its input comes in the layer's own precision.
    hidden = calls[0][0].to(next(head.parameters()).dtype)
    return lambda: type(outputs)(**{**outputs, "logits": head(hidden)})


@contextmanager
def _recorded(head: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect (input, output) of every call of `head`; the output is a leaf that losses can be differentiated by."""
    calls: list[tuple[Tensor, Tensor]] = []

    def cut(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        calls.append((args[0].detach(), output.detach().requires_grad_()))
        return calls[-1][1]

    handle = head.register_forward_hook(cut)
    try:
        yield calls
    finally:
        handle.remove()


def _move(hidden: Tensor, direction: Params) -> Tensor:
    """How the logits move: `V_W h + V_b`."""
    moved = hidden.to(direction["weight"].dtype) @ direction["weight"].T
    return moved + direction["bias"] if "bias" in direction else moved


def _slope(column: Tensor, logits: list[Tensor], moves: list[Tensor]) -> LossTable:
    """`δ · move` for one loss, `(B,)`."""
    deltas = torch.autograd.grad(column.sum(), logits, retain_graph=True, allow_unused=True)
    parts = [
        torch.zeros(len(move), dtype=move.dtype, device=move.device)
        if delta is None
        else (delta * move).flatten(1).sum(1)
        for delta, move in zip(deltas, moves, strict=True)
    ]
    return torch.cat(parts)
