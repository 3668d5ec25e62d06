"""A softmax of weights: exact where it is not sure of anything, and never stuck where it is."""

import pytest
import torch

from amal_hf import Convex, ConvexOrNone, GatedConvex, LossNetwork
from amal_hf.policies.inward_softmax import inward_softmax, softmax
from amal_hf.policies.policy import Observation, Sizes


def gradient(function, scores, slopes, present=None):
    scores = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    weights = function(scores, present)
    return weights, torch.autograd.grad(-(weights * torch.tensor(slopes)).sum(), scores)[0]


@pytest.mark.parametrize("present", [None, torch.tensor([[True, True, False], [False, False, False]])])
def test_weights_above_the_floor_have_the_gradient_of_a_softmax(present):
    """The closed form agrees with autograd's, also where an example lacks losses or has none."""
    scores, slopes = [[0.3, -0.2, 0.9], [1.0, 0.0, 0.5]], [[1.0, -2.0, 0.5], [0.2, 0.3, -1.0]]
    for ours, exact in zip(
        gradient(inward_softmax, scores, slopes, present), gradient(softmax, scores, slopes, present), strict=True
    ):
        torch.testing.assert_close(ours, exact)


def test_a_weight_below_the_floor_only_moves_inward():
    """Of 0.5, 0.499 and 0.001 the last stays where it is while it is worse than the others, which then share as if
    there were two; when it is better it rises as a weight at the floor, a fifteenth, would.
    """
    scores = [[0.0, 0.0, -6.2]]
    _, worse = gradient(inward_softmax, scores, [[1.0, 0.5, 0.0]])
    weights = softmax(torch.tensor(scores, dtype=torch.float64), None)[0, :2]
    between = weights * (torch.tensor([1.0, 0.5]) - (weights @ torch.tensor([1.0, 0.5]).double()) / weights.sum())
    torch.testing.assert_close(worse, torch.tensor([[*(-between).tolist(), 0.0]], dtype=torch.float64))
    _, better = gradient(inward_softmax, scores, [[0.0, 0.0, 1.0]])
    lifted = torch.tensor([*weights.tolist(), 1 / 15], dtype=torch.float64)
    expected = -lifted * (torch.tensor([0.0, 0.0, 1.0]) - lifted[2] / lifted.sum())
    torch.testing.assert_close(better[0], expected)


def test_sure_of_the_better_voice_it_stays():
    """With nothing left that could fall there is no gradient at all, so scores do not run away."""
    _, none = gradient(inward_softmax, [[9.0, -9.0]], [[1.0, -1.0]])
    assert not none.any()


@pytest.mark.parametrize(
    "normalisation", [Convex(), GatedConvex(), ConvexOrNone()], ids=["convex", "gated", "or none"]
)
def test_a_network_that_was_sure_of_all_labels_comes_back_for_the_wrong_ones(normalisation):
    """80 updates in which every label is better than the teacher, then as many in which every other one is worse: a
    plain softmax leaves all weight with the labels.
    """
    sizes = Sizes(losses=2, teachers=(1,), examples=8)
    policy = LossNetwork(normalisation=normalisation)
    policy.reset(sizes, torch.full((2,), 0.5))
    features = torch.zeros(8, policy.width(sizes))
    features[::2, 0] = 1
    seen = Observation(torch.arange(8), features, 0.5, None)
    slopes = torch.tensor([[1.0, -1.0]]).repeat(8, 1)
    for _ in range(80):
        policy.update(seen, slopes)
    assert (policy.weights(seen)[:, 0] > 0.9).all()
    slopes[::2] *= -1
    for _ in range(80):
        policy.update(seen, slopes)
    labels = policy.weights(seen)[:, 0]
    assert (labels[::2] < 0.1).all()
    assert (labels[1::2] > 0.9).all()
