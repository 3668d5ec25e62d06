"""Models whose parameters are cut over processes (FSDP2).

Three things differ from other models:

1. A gradient exists for a moment only, in the hooks that gather and cut parameters; `torch.autograd.grad` never sees
   it. It is taken from `.grad`, which then gets back what it held.
2. Parameters that stay gathered after a forward pass would hide that their shards have been moved. They are cut again
   before every pass.
3. A teacher is cut as the student is, layer by layer.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from amal_hf.processes import process_count, summed_gradients
from amal_hf.shapes import Params


Differentiate: TypeAlias = Callable[[Tensor, Params], dict[str, Tensor]]
"""A scalar and parameters to the gradient of the scalar's sum over all processes; no `.grad` changes."""


def cut_again(model: nn.Module) -> None:
    """Forget gathered copies of the parameters, so that the next pass sees their shards. Other models have none."""
    if isinstance(model, FSDPModule):
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def differentiation(model: nn.Module) -> Differentiate:
    """How gradients of this model are taken. To be called before the forward pass."""
    if not isinstance(model, FSDPModule):
        return summed_gradients
    trained = [p for p in model.parameters() if p.requires_grad]

    def differentiate(value: Tensor, params: Params) -> dict[str, Tensor]:
        kept = [p.grad for p in trained]
        try:
            for p in trained:
                p.grad = None
            value.backward()
            # FSDP averages over processes.
            return {
                name: torch.zeros_like(p) if p.grad is None else p.grad * process_count() for name, p in params.items()
            }
        finally:
            for p, gradient in zip(trained, kept, strict=True):
                p.grad = gradient

    return differentiate


def placed(vector: Params, params: Params) -> Params:
    """A vector that was read from a file whole, on the devices of the parameters and cut as they are.

    Parameters that have been frozen since no longer move.
    """
    return {name: _placed_as(params[name], value) for name, value in vector.items() if name in params}


def _placed_as(parameter: Tensor, value: Tensor) -> Tensor:
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)


def cut(model: nn.Module) -> None:
    """Cut a model that is not trained over all processes, in place: the layers that must stay together, then the rest.

    `_no_split_modules` is where transformers notes these layers.
    """
    if isinstance(model, FSDPModule):
        return
    together = set(getattr(model, "_no_split_modules", None) or ())
    for part in [part for part in model.modules() if type(part).__name__ in together]:
        fully_shard(part)
    fully_shard(model, reshard_after_forward=True)
