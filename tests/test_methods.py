"""Methods are what their papers, or the measurements quoted beside them, say."""

import pytest
import torch

from amal_hf import (
    AdamDirection,
    CommentaryNetwork,
    CrossEntropy,
    FiniteDifference,
    GeneralizedCrossEntropy,
    LabelBlend,
    LastLayer,
    LossNetwork,
    MetaWeightNet,
    NeumannDirection,
    RectifiedSlopes,
    SGDDirection,
    StateNetwork,
    amal,
    amal_as_published,
    commentaries,
    deep_interactions,
    learning_to_reweight,
    meta_weight_net,
    random_weights,
)
from amal_hf.policies.policy import Observation, Sizes


def test_amal_as_published():
    """Phases of the last layer along SGD, five updates from each batch, one step ahead; labels first."""
    method = amal_as_published(teachers=2)
    assert isinstance(method.tangent, LastLayer) and isinstance(method.direction, SGDDirection)
    assert (method.lookahead, method.repeats, method.phase_epochs) == (True, 5, 10)
    assert method.policy.initial == pytest.approx([0.1, 0.9, 0.9])


def test_amal():
    """All layers along Adam, towards fewer wrong answers rather than the loss of few rows; 2 of 8 steps."""
    method = amal()
    assert isinstance(method.policy, LossNetwork) and isinstance(method.direction, AdamDirection)
    assert isinstance(method.tangent, FiniteDifference) and isinstance(method.objective, GeneralizedCrossEntropy)
    assert (method.objective.exponent, method.window, method.usual_interval) == (0.5, 2, 8)
    cheapest = amal(tangent=LastLayer())
    assert (cheapest.window, cheapest.usual_interval) == (1, 16)


@pytest.mark.parametrize(
    ("make", "policy"),
    [
        (learning_to_reweight, RectifiedSlopes),
        (meta_weight_net, MetaWeightNet),
        (deep_interactions, StateNetwork),
    ],
)
def test_other_papers_lower_the_task_loss(make, policy):
    """Each with a policy of its own."""
    method = make()
    assert type(method.policy) is policy and type(method.objective) is CrossEntropy
    assert (method.trajectory is not None) == (make is deep_interactions)


def test_commentaries_look_further_than_one_step():
    """By terms of the Neumann series, or through whole short runs."""
    direction = commentaries(LabelBlend(3)).direction
    assert isinstance(direction, NeumannDirection) and direction.terms >= 1
    whole = commentaries(CommentaryNetwork(torch.randn(4, 3), 2), short_runs=7)
    assert whole.trajectory.steps == whole.restart_every == 7
    with pytest.raises(ValueError, match="LabelBlend"):
        commentaries(LabelBlend(3), short_runs=5)


def test_random_weights_are_drawn_by_their_seed():
    """Another seed is another control."""
    weights = []
    for seed in (7, 7, 8):
        policy = random_weights(seed).policy
        policy.reset(Sizes(2, (), None), torch.tensor([0.5, 0.5]))
        weights.append(policy.weights(Observation(torch.arange(4), torch.zeros(4, 0), 0.0)))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
