"""One network for all losses: where it starts, what one teaches of others, what abstains, what teachers say."""

from types import SimpleNamespace

import pytest
import torch

from amal_hf import (
    Convex,
    ConvexOrNone,
    CrossEntropy,
    Distillation,
    GatedConvex,
    MeanOne,
    PerLossNetwork,
    RuleLosses,
)
from amal_hf.mixture import Mixture
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.task import Task
from amal_hf.top_logits import TopLogits


MIXTURE = torch.tensor([0.2, 0.5, 0.3])
NORMALISATIONS = {"mean one": MeanOne, "convex": Convex, "convex or none": ConvexOrNone}


def begun(normalisation=None, **given):
    policy = PerLossNetwork(normalisation=normalisation, **given)
    policy.reset(Sizes(3, (), None), MIXTURE)
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


def test_what_a_teacher_says_of_one_loss_is_believed_of_the_others():
    """Slopes of the first loss alone, good where its teacher agrees: the others gain where theirs does.

    The student finds all losses alike.
    """
    policy = PerLossNetwork(learning_rate=1e-2, normalisation=MeanOne())
    policy.reset(Sizes(3, (1,), None), MIXTURE)
    asked = seen().features[:, :3]
    features = torch.cat([torch.ones(8, 3), asked, torch.full((8, 1), 0.4)], 1)
    observation, agrees = Observation(torch.arange(8), features, 0.5), asked < 1
    torch.testing.assert_close(policy.weights(observation), MIXTURE.expand(8, -1), rtol=0, atol=2e-4)
    slopes = torch.zeros(8, 3)
    slopes[:, 0] = torch.where(agrees[:, 0], 1.0, -1.0)
    for _ in range(60):
        policy.update(observation, slopes)
    weights = policy.weights(observation).detach()
    for column in (1, 2):
        assert weights[agrees[:, column], column].min() > 1.5 * weights[~agrees[:, column], column].max()


def test_a_teacher_is_asked_about_labels_and_votes():
    """Every loss as if the teacher were the student, in float64; not its own loss, nor a function of somebody's.

    Nor is a teacher asked of whom the largest logits alone are known.
    """
    logits, teacher = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = {"labels": torch.tensor([1, -100, 3, 0]), "weak_labels": torch.tensor([[1, -1], [2, 2], [-1, 0], [4, 1]])}
    losses = [CrossEntropy(), RuleLosses(2), Distillation(lambda batch: teacher), lambda outputs, batch: logits[:, 0]]
    losses[3].__name__ = "own"
    mixture = Mixture(losses, PerLossNetwork(), Task())
    mixture.reset(4, mixture.initial(None))
    losses[2].teacher = lambda batch: teacher
    batch = mixture.prepare(batch)
    asked = mixture.ask(batch[losses[2].logits_key], batch)
    as_student = mixture.evaluate(SimpleNamespace(logits=teacher), batch).losses
    torch.testing.assert_close(asked[:, :3], as_student[:, :3].to(asked), rtol=1e-6, atol=1e-6)
    assert (asked[:, :3] > 0).tolist() == [[True, True, False], [False, True, True], [True, False, True], [True] * 3]
    assert (asked[:, 3:] == 0).all()
    features = mixture.evaluate(SimpleNamespace(logits=logits), batch).features
    torch.testing.assert_close(features[:, 5:10], asked.to(features))
    largest = TopLogits(teacher, torch.arange(5).expand(4, -1))
    assert (mixture.ask(largest, batch) == 0).all()


def test_signals_without_losses_cannot_be_asked():
    """Rather than answered with nothing."""
    signals = Signals(torch.ones(2, 1), torch.zeros(2, 2), (torch.zeros(2, 2),), {}, Task())
    with pytest.raises(RuntimeError, match="Pass `ask`"):
        signals.ask(signals.logits)


def test_bad_input():
    """As for every network."""
    with pytest.raises(ValueError, match="PerLossNetwork:"):
        PerLossNetwork(hidden=0)


def test_a_gate_for_the_whole_example_is_refused():
    """A reader of one loss at a time has no score for it; the gate would be one number for all examples."""
    with pytest.raises(ValueError, match="PerLossNetwork: GatedConvex .* LossNetwork"):
        PerLossNetwork(normalisation=GatedConvex())
