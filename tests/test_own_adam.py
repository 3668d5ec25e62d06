"""The Adam of a small model that learns beside the student."""

import math

import pytest
import torch
from torch import nn

from amal_hf.own_adam import check_learning_rate, follow_to


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_at_which_nothing_sensible_moves(rate):
    """Refused in the name of whose it is."""
    with pytest.raises(ValueError, match=f"Linear: learning_rate must be positive and finite, got {rate}"):
        check_learning_rate(nn.Linear(1, 1), rate)


@pytest.fixture
def parameters_stay_themselves():
    """As on the way to a GPU; without it a module on its way to `meta` gets new ones."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("parameters_stay_themselves")
def test_moments_follow_their_parameters():
    """To another device, where the next step is taken; on the same device nothing is touched."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    before = optimizer.state[model.weight]["exp_avg"]
    follow_to(torch.device("cpu"), model, optimizer)
    assert optimizer.state[model.weight]["exp_avg"] is before
    follow_to(torch.device("meta"), model, optimizer)
    assert model.weight.device.type == optimizer.state[model.weight]["exp_avg"].device.type == "meta"
