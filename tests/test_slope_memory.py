"""What slopes an example has had."""

import torch

from amal_hf import AboveAverage, StateNetwork
from amal_hf.policies.policy import Observation, Sizes
from amal_hf.policies.slope_memory import SlopeMemory, of_likelihoods


ALIKE = Observation(torch.arange(40), torch.ones(40, 5), 0.5)


def test_it_holds_the_mean_of_an_examples_slopes():
    """Drawn towards zero by one slope that is zero; an example that stands twice in a batch has two."""
    memory = SlopeMemory(4, 2)
    memory.note(torch.tensor([2, 0, 2]), torch.tensor([[1.0, -1.0], [5.0, 0.0], [3.0, 1.0]]))
    memory.note(torch.tensor([2]), torch.tensor([[2.0, 3.0]]))
    expected = torch.tensor([[2.5, 0.0], [0.0, 0.0], [1.5, 0.75], [0.0, 0.0]])
    torch.testing.assert_close(memory.read(torch.arange(4)), expected)


def test_slopes_of_likelihoods_are_derivatives_of_exponentials():
    """Equal to what autograd gives for `−exp(−loss)` along a direction, up to their common scale; zeros stay zero."""
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(6, 2, 3, generator=generator, dtype=torch.float64)
    place = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(3, generator=generator, dtype=torch.float64)

    def losses(at):
        return (inner @ at + inner.abs().sum(-1)).square()

    slopes = torch.func.jvp(losses, (place,), (direction,))[1].detach()
    exact = torch.func.jvp(lambda at: -losses(at).neg().exp(), (place,), (direction,))[1].detach()
    found = of_likelihoods(slopes, losses(place).detach())
    torch.testing.assert_close(found, exact / exact.abs().mean())
    assert of_likelihoods(torch.zeros(3, 2), torch.ones(3, 2)).abs().sum() == 0


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
