"""Bounds keep weights where they mean something, whatever a step or a network puts out."""

import math

import numpy as np
import pytest
import torch

from amal_hf import AboveAverage, Convex, ConvexOrNone, GatedConvex, LossNetwork, MeanOne, clamp, convex
from amal_hf.policies.bounds import LEAST_MEAN, TwiceSigmoid
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.task import Task


def test_clamp_bounds_every_weight_on_its_own():
    """Both losses of an example may go to 0, which drops it, or to 2; weights within stay as they are."""
    assert clamp(torch.tensor([[-1.0, -3.0], [0.5, 9.0]])).tolist() == [[0.0, 0.0], [0.5, 2.0]]


def projected_by_bisection(row):
    """`max(w − τ, 0)` with the τ that makes the sum one."""
    low, high = row.min() - 1, row.max()
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(row - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(row - high, 0)


@pytest.mark.parametrize("losses", [1, 2, 3, 7])
def test_convex_is_the_euclidean_projection_onto_the_simplex(losses):
    """Equal to a slow search for the threshold in float64, ties and rows already on the simplex among them."""
    rows = torch.randn(50, losses, generator=torch.Generator().manual_seed(losses), dtype=torch.float64) * 3
    rows = torch.cat([rows, rows.round(), rows.softmax(1)])
    expected = np.stack([projected_by_bisection(row) for row in rows.numpy()])
    np.testing.assert_allclose(convex(rows), expected, atol=1e-12)


def test_convex_takes_weights_that_are_far_away():
    """A huge step lands on a corner of the simplex instead of an index error."""
    assert convex(torch.tensor([[1e8, 0.0]])).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("normalisation", "total"),
    [(Convex(), 1.0), (GatedConvex(), 1.0), (ConvexOrNone(0.25), 0.75), (MeanOne(), 1.0), (AboveAverage(), 1.0)],
)
def test_a_normalisation_starts_at_the_shares_of_the_mixture(normalisation, total):
    """A mixture of any sum starts at its shares; a share of zero starts small rather than stuck at -inf."""
    scores = normalisation.start(torch.tensor([6.0, 2.0, 0.0]))
    weights = normalisation(scores[None])
    assert scores.isfinite().all()
    torch.testing.assert_close(weights, total * torch.tensor([[0.75, 0.25, 0.0]]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("normalisation", [Convex(), GatedConvex(), MeanOne(), AboveAverage()])
def test_an_example_that_lacks_losses_starts_with_the_same_sum(normalisation):
    """Of a mixture of 0.5, 0.3 and 0.2 an example with the last two has 0.6 and 0.4, as with a fixed mixture; one with
    none has nothing.
    """
    scores = normalisation.start(torch.tensor([0.5, 0.3, 0.2])).repeat(3, 1)
    present = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])
    expected = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.6, 0.4], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(normalisation(scores, present), expected)


@pytest.mark.parametrize("normalisation", [ConvexOrNone(0.25), TwiceSigmoid()])
def test_what_an_example_lacks_has_no_weight_under_any_bound(normalisation):
    """In a step as in between, and no gradient: a score that nobody has would move."""
    scores = normalisation.start(torch.tensor([0.5, 0.3, 0.2])).repeat(2, 1).requires_grad_()
    present = torch.tensor([[False, True, True], [False, False, False]])
    for weights in (normalisation(scores, present), normalisation.of_step(scores, present)):
        assert (weights[~present] == 0).all() and (weights[0, 1:] > 0).all()
        (gradient,) = torch.autograd.grad(weights.square().sum(), scores, retain_graph=True)
        assert (gradient[:, :3][~present] == 0).all()


@pytest.mark.parametrize(
    ("normalisation", "differ"),
    [(Convex(), False), (ConvexOrNone(), False), (GatedConvex(), True), (MeanOne(), True), (AboveAverage(), True)],
)
def test_what_an_example_counts_for_before_scores(normalisation, differ):
    """Its weights are so much more than they were, in a step as in between, where examples may differ at all; where
    they may not, nothing changes.
    """
    scores = normalisation.start(torch.tensor([0.5, 0.5])).repeat(4, 1)
    counts_for = torch.tensor([[0.5], [0.5], [1.0], [2.0]])
    expected = normalisation(scores) * (counts_for if differ else 1)
    torch.testing.assert_close(normalisation(scores, None, counts_for), expected)
    torch.testing.assert_close(normalisation.of_step(scores, None, counts_for), expected)


def test_a_mean_of_one_is_that_of_what_examples_count_for_as_well():
    """Once a running mean has followed, examples that count for more on average do not raise the mean weight."""
    normalisation, counts_for = MeanOne(), torch.tensor([[0.5], [4.5]])
    scores = normalisation.start(torch.ones(1)).repeat(2, 1)
    for _ in range(100):
        normalisation.note_update(scores, scores, None, counts_for)
    weights = normalisation(scores, None, counts_for)
    torch.testing.assert_close(weights, torch.tensor([[0.2], [1.8]]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("normalisation", [MeanOne(), AboveAverage()], ids=["mean one", "above average"])
def test_what_all_slopes_share_has_no_effect(normalisation):
    """A number added to every slope is a learning rate in disguise, also where examples lack some of the losses or
    count for more than others.
    """
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[True, True], [True, False], [False, True]] * 2)
    counts_for = torch.tensor([[0.5], [1.5], [1.0]] * 2, dtype=torch.float64)
    weights = normalisation.of_step(scores, present, counts_for)
    torch.testing.assert_close(weights.sum(), torch.tensor(6.0, dtype=torch.float64))
    gradient = torch.autograd.grad((weights * present).sum(), scores)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_which_average_a_slope_is_compared_with():
    """The plain one, or the one weighted by the weights, as the closed forms have it: where one example has most of
    the weight, another that is better than average rises or falls.
    """
    scores = torch.tensor([[3.0], [-3.0], [-3.0]], dtype=torch.float64, requires_grad=True)
    slopes = torch.tensor([[3.0], [2.0], [-2.0]], dtype=torch.float64)
    raw = scores.sigmoid().detach()
    weighted, plain = (raw * slopes).sum() / raw.sum(), slopes.mean()
    assert plain < slopes[1] < weighted
    for normalisation, average in ((MeanOne(), weighted), (AboveAverage(), plain)):
        gain = (normalisation.of_step(scores) * slopes).mean()
        expected = raw * (1 - raw) * (slopes - average) / raw.sum()
        torch.testing.assert_close(torch.autograd.grad(gain, scores)[0], expected)


def test_few_examples_never_come_to_have_all_the_weight():
    """Where most of it is gone the bar is the plain mean, which does not rise with what has weight: an example that is
    better than average rises, where under `MeanOne` alone it would go on falling; and weights are scaled no further.
    """
    scores = torch.tensor([[1.0], *[[-6.0]] * 9], dtype=torch.float64, requires_grad=True)
    slopes = torch.tensor([[3.0], *[[1.0]] * 5, *[[-3.0]] * 4], dtype=torch.float64)
    normalisation, raw = MeanOne(), scores.sigmoid().detach()
    assert raw.mean() < LEAST_MEAN and slopes.mean() < slopes[1] < (raw * slopes).sum() / raw.sum()
    weights = normalisation.of_step(scores)
    torch.testing.assert_close(weights, raw / LEAST_MEAN)
    expected = raw * (1 - raw) * (slopes - slopes.mean()) / (10 * LEAST_MEAN)
    torch.testing.assert_close(torch.autograd.grad((weights * slopes).mean(), scores)[0], expected)
    for _ in range(200):
        normalisation.note_update(scores.detach(), scores.detach())
    torch.testing.assert_close(normalisation(scores).detach(), raw / LEAST_MEAN)


def test_examples_of_which_most_have_nothing_left_to_learn_keep_their_weight():
    """The case it is for: 500 updates in which of 20 examples four do harm, one helps much, and 15 next to nothing.
    These had a weight of 0.0002, and the one that of all, where the bar was the mean of what has weight.
    """
    policy = LossNetwork(normalisation=MeanOne())
    policy.reset(Sizes(1, (), None), torch.ones(1))
    kinds = torch.tensor([0] * 4 + [1] * 15 + [2])
    features = torch.zeros(20, 7)
    features[torch.arange(20), kinds], features[:, -1] = 1.0, -1
    rows = Observation(torch.arange(20), features, 0.5)
    noise = torch.Generator().manual_seed(0)
    for _ in range(500):
        slopes = torch.tensor([-1.0, 0.05, 1.0])[kinds] + torch.randn(20, generator=noise)
        policy.update(rows, slopes[:, None])
    harmful, idle, helpful = (policy.weights(rows)[kinds == kind, 0].mean() for kind in range(3))
    assert harmful < 0.1 < 0.8 < idle < helpful < 1.01 / LEAST_MEAN


def test_a_running_mean_moves_with_the_network():
    """Weights of a batch keep their mean when an update moves all of them; what remains is the momentum's pull."""
    normalisation = MeanOne(momentum=0.1)
    normalisation.start(torch.ones(1))
    before, after = torch.zeros(8, 1), torch.full((8, 1), -1.0)
    normalisation.note_update(before, after)
    torch.testing.assert_close(normalisation(after).mean(), torch.tensor(1.0))
    twice = torch.tensor([[-1.0], [0.0]]).repeat(4, 1)
    normalisation.note_update(twice, twice)
    low, mean = after.sigmoid().mean(), twice.sigmoid().mean()
    torch.testing.assert_close(normalisation.mean, 0.9 * low + 0.1 * mean)


@pytest.mark.parametrize("normalisation", [MeanOne, AboveAverage])
@pytest.mark.parametrize("losses", [1, 3])
def test_examples_without_any_loss_are_not_of_the_mean(normalisation, losses):
    """Rules are silent on most rows: the others keep weights that sum to one on average, however few they are, and
    slopes that say nothing teach nothing.
    """
    policy = LossNetwork(normalisation=normalisation(), probe=False)
    policy.reset(Sizes(losses, (), 12), torch.full((losses,), 1 / losses))
    present = (torch.arange(12) < 3)[:, None].expand(12, losses)
    features = policy.observe(Signals(torch.ones(12, losses), torch.zeros(12, 2), (), {}, Task()))
    seen = Observation(torch.arange(12), features, 0.5, present)
    for _ in range(40):
        policy.update(seen, torch.zeros(12, losses))
    weights = policy.weights(seen).sum(1)
    torch.testing.assert_close(weights[:3], torch.ones(3), rtol=1e-4, atol=1e-4)
    assert (weights[3:] == 0).all()


def test_a_batch_without_any_of_the_losses_changes_nothing():
    """Every rule may abstain on a whole batch: neither the running mean nor the network may become NaN."""
    policy = LossNetwork(normalisation=MeanOne())
    policy.reset(Sizes(1, (), None), torch.ones(1))
    before = {name: value.clone() for name, value in policy.named_parameters()}
    seen = Observation(torch.arange(4), torch.ones(4, 7), 0.5, torch.zeros(4, 1, dtype=torch.bool))
    policy.update(seen, torch.zeros(4, 1))
    assert policy.normalisation.mean == 0.5
    assert all(torch.equal(value, before[name]) for name, value in policy.named_parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConvexOrNone(share=0.0),
        lambda: ConvexOrNone(share=1.5),
        lambda: ConvexOrNone(share=math.nan),
        lambda: MeanOne(momentum=1.5),
    ],
)
def test_an_argument_out_of_range_is_refused(make):
    """A share outside (0, 1) would start every weight near zero or at NaN, a momentum above 1 lets the mean swing."""
    with pytest.raises(ValueError, match=r"got .+\."):
        make()
