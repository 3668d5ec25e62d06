"""Running the student for a look, so that training does not notice."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from amal_hf.sharded import cut_again


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within the block the student runs without dropout; afterwards modes and random generators are as before."""
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(), differentiable_checkpointing(model):
        cut_again(model)
        model.eval()
        for module, training in modes:
            # Activation checkpointing only acts on a layer in training mode. The flag of the layer itself switches no
            # dropout; its parts hold those.
            if getattr(module, "gradient_checkpointing", False):
                module.training = training
        try:
            yield
        finally:
            cut_again(model)
            for module, training in modes:
                module.training = training


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Within the block the student may run in training mode; running statistics are as before afterwards."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


@contextmanager
def differentiable_checkpointing(model: nn.Module) -> Iterator[None]:
    """Within the block no layer uses reentrant activation checkpointing, which refuses `torch.autograd.grad`.

    The other kind recomputes the same numbers.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "_gradient_checkpointing_func")]
    given = [layer._gradient_checkpointing_func for layer in layers]
    for layer, function in zip(layers, given, strict=True):
        layer._gradient_checkpointing_func = _not_reentrant(function)
    try:
        yield
    finally:
        for layer, function in zip(layers, given, strict=True):
            layer._gradient_checkpointing_func = function


@cache
def _not_reentrant(function: Any) -> Any:
    """One and the same for one function: compiled layers would be compiled anew for another."""
    return partial(function, use_reentrant=False)
