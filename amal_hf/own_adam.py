"""What learns beside the student: its rate, and the way of a small model and its Adam to another device."""

import torch
from torch import nn


def check_learning_rate(owner: object, learning_rate: float) -> None:
    """Refuse a rate at which nothing moves, or not to anywhere.

    Raises:
        ValueError: a learning rate that is not positive and finite.
    """
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"{type(owner).__name__}: learning_rate must be positive and finite, got {learning_rate}.")


def follow_to(device: torch.device, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Move a model to where the examples are, if need be, and with it what its optimizer remembers."""
    if any(parameter.device != device for parameter in module.parameters()):
        module.to(device)
        # Moments follow their parameters when the state is loaded again.
        optimizer.load_state_dict(optimizer.state_dict())
