"""One network for all losses: where it starts, what it carries from one to another, and what abstains."""

import pytest
import torch

from amal_hf import Convex, ConvexOrNone, MeanOne, PerLossNetwork
from amal_hf.policies.policy import Observation, Sizes


MIXTURE = torch.tensor([0.2, 0.5, 0.3])
NORMALISATIONS = {"mean one": MeanOne, "convex": Convex, "convex or none": ConvexOrNone}


def begun(normalisation=None, **given):
    policy = PerLossNetwork(normalisation=normalisation, **given)
    policy.reset(Sizes(3, 0, None), MIXTURE)
    return policy


def seen(present=None):
    """Losses of 0.1 and 3 in turns, the student's entropy in the last column."""
    losses = torch.where(torch.arange(24).reshape(8, 3) % 2 == 0, 0.1, 3.0)
    features = torch.cat([losses, torch.full((8, 1), 0.4)], 1)
    return Observation(torch.arange(8), features, 0.5, present)


@pytest.mark.parametrize("kind", NORMALISATIONS.values(), ids=NORMALISATIONS.keys())
def test_it_starts_at_the_initial_mixture(kind):
    """Whatever it sees; "none of them" starts with a tenth."""
    weights = begun(kind()).weights(seen())
    kept = 0.9 if kind is ConvexOrNone else 1.0
    torch.testing.assert_close(weights, (kept * MIXTURE).expand(8, -1), rtol=0, atol=2e-4)


def test_what_one_loss_teaches_holds_for_the_others():
    """Slopes of the first loss alone, good where it is small: the others' small values gain on their large ones."""
    policy, observation = begun(learning_rate=1e-2), seen()
    small = observation.features[:, :3] < 1
    slopes = torch.zeros(8, 3)
    slopes[:, 0] = torch.where(small[:, 0], 1.0, -1.0)
    for _ in range(60):
        policy.update(observation, slopes)
    weights = policy.weights(observation).detach()
    for column in (1, 2):
        assert weights[small[:, column], column].min() > 1.5 * weights[~small[:, column], column].max()


def test_what_abstains_is_not_read():
    """The value that stands in for a missing loss changes neither its own weight, zero, nor that of another."""
    present = torch.ones(8, 3, dtype=torch.bool)
    present[::2, 1] = False
    policy, observation = begun(), seen(present)
    for _ in range(5):
        policy.update(observation, torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * present)
    other = observation._replace(features=observation.features.clone())
    other.features[::2, 1] = 7.0
    weights = policy.weights(observation)
    assert (weights[::2, 1] == 0).all()
    torch.testing.assert_close(policy.weights(other), weights, rtol=0, atol=0)


def test_bad_input():
    """As for every network."""
    with pytest.raises(ValueError, match="PerLossNetwork|LossNetwork"):
        PerLossNetwork(hidden=0)
