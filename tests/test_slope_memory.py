"""What slopes an example has had."""

import pytest
import torch

from amal_hf import AboveAverage, CrossEntropy, GeneralizedCrossEntropy, StateNetwork
from amal_hf.mixture import Mixture
from amal_hf.policies.policy import Observation, Sizes
from amal_hf.policies.slope_memory import SlopeMemory, of_likelihoods
from amal_hf.task import Task


ALIKE = Observation(torch.arange(40), torch.ones(40, 5), 0.5)


def test_it_holds_the_mean_of_an_examples_slopes():
    """Drawn towards zero by one slope that is zero; an example that stands twice in a batch has two."""
    memory = SlopeMemory(4, 2)
    memory.note(torch.tensor([2, 0, 2]), torch.tensor([[1.0, -1.0], [5.0, 0.0], [3.0, 1.0]]))
    memory.note(torch.tensor([2]), torch.tensor([[2.0, 3.0]]))
    expected = torch.tensor([[2.5, 0.0], [0.0, 0.0], [1.5, 0.75], [0.0, 0.0]])
    torch.testing.assert_close(memory.read(torch.arange(4)), expected)


def test_slopes_of_likelihoods_are_derivatives_of_likelihoods():
    """Equal to what autograd gives for the likelihoods along a direction, up to their common scale, whether the losses
    are cross-entropy, generalised or absolute error; zeros stay zero.
    """
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(6, 3, 3, generator=generator, dtype=torch.float64)
    place = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(3, generator=generator, dtype=torch.float64)

    def likelihoods(at):
        return (inner @ at + inner.abs().sum(-1)).square().neg().exp()

    def losses(at):
        p = likelihoods(at)
        return torch.stack([-p[:, 0].log(), (1 - p[:, 1] ** 0.3) / 0.3, 1 - p[:, 2]], 1)

    slopes = torch.func.jvp(losses, (place,), (direction,))[1].detach()
    exact = torch.func.jvp(lambda at: -likelihoods(at), (place,), (direction,))[1].detach()
    exponents = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    found = of_likelihoods(slopes, losses(place).detach(), exponents)
    torch.testing.assert_close(found, exact / exact.abs().mean(), rtol=1e-6, atol=1e-9)
    assert of_likelihoods(torch.zeros(3, 3), torch.ones(3, 3), exponents).abs().sum() == 0


def test_a_network_knows_how_losses_come_from_likelihoods():
    """By the exponents of the losses that it is to weigh."""
    policies = {}
    for loss in (CrossEntropy(), GeneralizedCrossEntropy(0.3)):
        policy = StateNetwork((), likelihoods=True)
        Mixture([loss], policy, Task()).reset(40, torch.ones(1), classes=3)
        policies[loss.exponent] = policy.exponents.tolist()
    assert policies == {0.0: [0.0], 0.3: pytest.approx([0.3])}


def test_slopes_of_likelihoods_turn_from_what_is_hard_to_what_is_right():
    """Of two examples the first has a slope half as long, but it is of a probability of 0.9 and not of 0.05."""
    observation = Observation(torch.arange(2), torch.tensor([[0.9, 0.05]]).log().neg().log1p().T.expand(2, 5), 0.5)
    risen = {}
    for likelihoods in (False, True):
        policy = StateNetwork((), learning_rate=0.05, normalisation=AboveAverage(), likelihoods=likelihoods)
        policy.reset(Sizes(1, (), 2), torch.ones(1))
        for _ in range(20):
            policy.update(observation, torch.tensor([[1.0], [2.0]]))
        first, second = policy.weights(observation).flatten().tolist()
        risen[likelihoods] = "first" if first > second + 0.1 else "second" if second > first + 0.1 else "none"
    assert risen == {False: "second", True: "first"}


def test_a_stream_may_bring_any_ids():
    """Rows are made as ids turn up, and come back from a checkpoint."""
    memory = SlopeMemory(None, 1)
    memory.note(torch.tensor([10**9, 7]), torch.tensor([[4.0], [2.0]]))
    again = SlopeMemory(None, 1)
    again.load_state_dict(memory.state_dict())
    assert again.read(torch.tensor([7, 10**9, 8])).flatten().tolist() == [1.0, 2.0, 0.0]


def test_it_finds_single_examples_that_look_alike():
    """Half of all examples mislead, and nothing but their own slopes, mostly noise, tells which."""
    generator = torch.Generator().manual_seed(0)
    good = torch.arange(40) % 2 == 0
    found = {}
    for memory in (False, True):
        policy = StateNetwork((), learning_rate=1e-2, normalisation=AboveAverage(), memory=memory)
        policy.reset(Sizes(1, (), 40), torch.ones(1))
        for _ in range(60):
            noise = 3 * torch.randn(40, 1, generator=generator)
            policy.update(ALIKE, noise + torch.where(good, 1.0, -1.0)[:, None])
        weights = policy.weights(ALIKE).detach()[:, 0]
        found[memory] = (weights[good].mean() - weights[~good].mean()).item()
    assert found[False] == 0 and found[True] > 1
