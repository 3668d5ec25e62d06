"""Running the student for a look, so that training does not notice."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from amal_hf.random_numbers import put_back_on
from amal_hf.sharded import cut_again


_CACHES = ("cache", "past_key_values", "past_key_value", "layer_past", "cache_params")
"""Arguments of layers by which they remember other tokens."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within the block the student runs without dropout; afterwards modes and random generators are as before."""
    modes = [(module, module.training) for module in model.modules()]
    with put_back_on(next(model.parameters()).device), _checkpointed_in_evaluation(model):
        cut_again(model)
        model.eval()
        try:
            yield
        finally:
            cut_again(model)
            for module, training in modes:
                module.training = training


@contextmanager
def _checkpointed_in_evaluation(model: nn.Module) -> Iterator[None]:
    """Within the block the layers that are checkpointed in training mode are so in evaluation mode.

    They cannot stay in training mode, on which their own checkpointing insists: many drop out by their own mode (BART,
    T5). A layer whose forward someone has replaced is only put into evaluation mode, which costs memory.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer)
        and module.gradient_checkpointing
        and module.training
        and "forward" not in vars(module)
    ]
    for layer in layers:
        layer.forward = MethodType(
            _run_again_for_gradients, layer
        )  # of one function: compiled layers are compiled once
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _run_again_for_gradients(layer: Any, *args: Any, **kwargs: Any) -> Any:
    forward = type(layer).forward
    if not torch.is_grad_enabled():
        return forward(layer, *args, **kwargs)
    if kwargs.get("use_cache"):
        kwargs["use_cache"] = False
    if not getattr(layer, "_can_checkpoint_with_cache", False):  # or it would be written a second time
        kwargs |= {name: None for name in _CACHES if name in kwargs}
    return checkpoint(forward, layer, *args, use_reentrant=False, **kwargs)


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
