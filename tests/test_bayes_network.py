"""A network that begins with the mixture of Bayes' rule, and learns where that is wrong."""

import copy

import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows

from amal_hf import (
    AboveAverage,
    AMALTrainer,
    BayesMixture,
    BayesNetwork,
    Convex,
    ConvexOrNone,
    CrossEntropy,
    Distillation,
    GatedConvex,
    MeanOne,
    amal,
    label_posterior,
)
from amal_hf.losses import Task
from amal_hf.policies.bayes_network import SMALLEST_SHARE
from amal_hf.policies.policy import Observation, Signals, Sizes


B, C = 200, 3
RANDOM = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(B, C, generator=RANDOM)
TRUTH = torch.multinomial(LOGITS.softmax(1), 1, generator=RANDOM)[:, 0]
LABELS = torch.where(torch.rand(B, generator=RANDOM) < 0.6, TRUTH, torch.randint(C, (B,), generator=RANDOM))
KNOWN = label_posterior(LOGITS, LABELS)
EQUAL = torch.tensor([0.5, 0.5])


def sizes(teacher=1):
    return Sizes(2, (teacher,), B, C)


def seen(policy, labels=LABELS):
    losses = torch.rand(B, 2, generator=torch.Generator().manual_seed(2))
    logits = torch.randn(B, C, generator=torch.Generator().manual_seed(3))
    features = policy.observe(Signals(losses, logits, (LOGITS,), {"labels": labels}, Task()))
    return Observation(torch.arange(B), features, 0.0)


def begun(policy, teacher=1, initial=EQUAL):
    policy.reset(sizes(teacher), initial)
    return policy


@pytest.mark.parametrize("initial", [[0.5, 0.5], [0.9, 0.1]], ids=["equal", "labels first"])
@pytest.mark.parametrize("teacher", [0, 1])
@pytest.mark.parametrize(
    ("normalisation", "sum_"),
    [(None, 1.0), (Convex(), 1.0), (GatedConvex(), 1.0), (ConvexOrNone(), 0.9)],
    ids=["usual", "convex", "gated", "convex or none"],
)
def test_it_begins_with_the_mixture_of_bayes_rule(normalisation, sum_, teacher, initial):
    """Of every example, whatever the order of the losses and the run's initial mixture; no share below about 0.02."""
    policy = begun(BayesNetwork(KNOWN, normalisation=copy.deepcopy(normalisation)), teacher, torch.tensor(initial))
    mixture = begun(BayesMixture(KNOWN), teacher)
    expected = mixture.weights(seen(mixture))
    found = policy.weights(seen(policy)) / sum_
    torch.testing.assert_close(found, expected.clamp(SMALLEST_SHARE, 1), rtol=0, atol=SMALLEST_SHARE)
    inside = (expected > SMALLEST_SHARE).all(1)
    torch.testing.assert_close(found[inside], expected[inside])
    assert 100 < inside.sum() < B and found.min() > 0.9 * SMALLEST_SHARE


def test_it_learns_where_bayes_rule_is_wrong():
    """Labels that it takes for wrong come back where they help, and those that it follows go where they hurt."""
    policy = begun(BayesNetwork(KNOWN, learning_rate=1e-2, normalisation=Convex()))
    rows = seen(policy)
    before = policy.weights(rows)[:, 0].detach()
    doubted = before < 0.1
    for _ in range(200):
        policy.update(rows, torch.stack([torch.where(doubted, 1.0, -1.0), torch.zeros(B)], 1))
    after = policy.weights(rows)[:, 0].detach()
    assert doubted.sum() > 20
    assert after[doubted].mean() > before[doubted].mean() + 0.3
    assert after[~doubted].mean() < before[~doubted].mean() - 0.1


def test_an_example_without_a_label_follows_its_teacher():
    """As with the mixture, and it may still count for less."""
    policy = begun(BayesNetwork(KNOWN))
    rows = seen(policy, LABELS.masked_fill(torch.arange(B) < 5, -100))
    weights = policy.weights(rows._replace(present=torch.stack([torch.arange(B) >= 5, torch.ones(B).bool()], 1)))
    torch.testing.assert_close(weights[:5].detach(), torch.tensor([[0.0, 1.0]] * 5))


@pytest.mark.parametrize("normalisation", [MeanOne(), AboveAverage()])
def test_weights_without_shares_are_refused(normalisation):
    """They would not begin with the mixture."""
    with pytest.raises(ValueError, match=f"must be Convex.*got {type(normalisation).__name__}"):
        BayesNetwork(KNOWN, normalisation=normalisation)


def test_a_run_learns_from_it(tmp_path):
    """As `amal()` with any other network; the log says how many labels are wrong by Bayes' rule."""
    rows = toy_rows(16)
    known = label_posterior(LOGITS[:16], rows["labels"])
    trainer = AMALTrainer(
        model=tiny_bert(),
        args=toy_arguments(tmp_path, max_steps=8),
        train_dataset=rows,
        losses=[CrossEntropy(), Distillation(lambda batch: LOGITS[batch["example_id"]])],
        method=amal(BayesNetwork(known)),
        meta_dataset=toy_rows(8),
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["wrong_labels"] == pytest.approx(known.wrong)
    assert (
        f"GatedConvex, clean probe, teacher at temperature {known.temperature:g}" in trainer.method.policy.describe()
    )
    assert "meta_loss" in logged


def test_other_losses_are_refused(tmp_path):
    """When the trainer is made, in the words of the mixture."""
    with pytest.raises(ValueError, match="BayesMixture: is for two losses"):
        AMALTrainer(
            model=tiny_bert(),
            args=toy_arguments(tmp_path),
            train_dataset=toy_rows(16),
            method=amal(BayesNetwork(KNOWN)),
            meta_dataset=toy_rows(8),
        )
