"""How a meta step runs a student whose training is compiled (`torch_compile`)."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin, is_compiled_module
from torch import nn

from amal_hf.tangents import Tangent


def meta_forward(model: nn.Module, tangent: Tangent, plugin: TorchDynamoPlugin) -> Callable[..., Any]:
    """The student, compiled as for training; as it is where training is not compiled.

    Dual numbers and second derivatives do not go through compiled code.

    Args:
        model: the student without wrappers, so that no other process is waited for.
        tangent: how slopes are measured.
        plugin: Accelerate's, with the settings of the run.
    """
    if plugin.backend == DynamoBackend.NO or is_compiled_module(model) or not tangent.forward_only:
        return model
    return torch.compile(model, **plugin.to_kwargs())
