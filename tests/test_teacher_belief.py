"""Votes as far as a teacher believes them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, tiny_bert, toy_arguments, toy_rows

from amal_hf import AMALTrainer, CrossEntropy, Distillation, Method, RuleLosses, TeacherBelief, teacher_belief
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.task import Task
from amal_hf.top_logits import TopK


SIZES = Sizes(4, (3,), 6, names=("labels", "a", "b", "teacher"))
COSTS = torch.tensor([[2.0, 0.1, 3.0, 0.0], [0.0, 0.7, 0.7, 0.0], [5.0, 0.0, 9.0, 0.0]])
PRESENT = torch.tensor([[True, True, True, True], [False, True, True, True], [True, False, False, True]])


def weights(policy, mixture, present=None):
    policy.reset(SIZES, torch.tensor(mixture))
    return policy.weights(Observation(torch.arange(3), COSTS, 0.5, present))


@pytest.mark.parametrize("trusted", [("labels",), (), ("labels", "b")])
@pytest.mark.parametrize("mixture", [[0.25, 0.25, 0.25, 0.25], [0.4, 0.1, 0.2, 0.8]])
@pytest.mark.parametrize("present", [None, PRESENT])
def test_weights_are_the_mixture_times_the_teachers_probabilities(trusted, mixture, present):
    """One by one: what is trusted, and the teacher's own loss, as they are; a row sums to what the mixture does."""
    found = weights(TeacherBelief(trusted), mixture, present)
    for row in range(3):
        shares = []
        for column, name in enumerate(SIZES.names):
            held = present is None or bool(present[row, column])
            belief = 1.0 if name in trusted else float(torch.exp(-COSTS[row, column]))
            shares.append(mixture[column] * belief * held)
        expected = torch.tensor(shares) * sum(mixture) / sum(shares)
        torch.testing.assert_close(found[row], expected)


def test_what_the_teacher_rules_out_weighs_nothing():
    """A vote to which it gives next to no probability, and a row without any loss, which gives no NaN."""
    assert weights(TeacherBelief(), [0.25] * 4)[2, 2] < 1e-4
    assert (weights(TeacherBelief(), [0.25] * 4, torch.zeros_like(PRESENT)) == 0).all()


def test_a_teacher_that_finds_all_votes_next_to_impossible_still_compares_them():
    """Where its own loss has no share: exp(-95) is as good as nothing in fp32, and one over it is infinite."""
    policy = TeacherBelief()
    policy.reset(SIZES, torch.tensor([0.0, 0.5, 0.5, 0.0]))
    costs = torch.tensor([[0.0, 95.0, 96.0, 0.0], [0.0, 300.0, 300.0, 0.0], [0.0, 1.0, 2.0, 0.0]])
    found = policy.weights(Observation(torch.arange(3), costs, 0.5))
    share = 1 / (1 + np.exp(-1))
    torch.testing.assert_close(found[:, 1], torch.tensor([share, 0.5, share], dtype=torch.float32))
    torch.testing.assert_close(found.sum(1), torch.ones(3))


@pytest.mark.parametrize("teachers", [(), (2, 3)])
def test_it_asks_one_teacher(teachers):
    """Of none there is nothing to ask, and two may disagree."""
    with pytest.raises(ValueError, match=f"needs one teacher.*got {len(teachers)} among.*Distillation"):
        TeacherBelief().reset(SIZES._replace(teachers=teachers), torch.full((4,), 0.25))


def test_a_name_that_no_loss_has_is_refused():
    """A rule that is misspelt would be doubted without a word; labels may be missing where nothing is labelled."""
    with pytest.raises(ValueError, match=r"\['c'\] are not among the losses.*'teacher'"):
        TeacherBelief(("labels", "c")).reset(SIZES, torch.full((4,), 0.25))
    TeacherBelief().reset(SIZES._replace(names=("votes", "a", "b", "teacher")), torch.full((4,), 0.25))
    with pytest.raises(TypeError, match=r"several names, got 'labels'. Write \('labels',\)"):
        TeacherBelief("labels")


def test_the_largest_logits_of_a_teacher_are_not_enough():
    """They do not say what another class would cost, and everything would be believed."""
    policy = TeacherBelief()
    policy.reset(SIZES, torch.full((4,), 0.25))
    known = TopK(2, 1.0)(torch.randn(3, 5, 6))
    with pytest.raises(ValueError, match="only the largest logits.*Leave top_k out"):
        policy.observe(Signals(COSTS, torch.randn(3, 5, 6), (known,), {}, Task()))


def voted(count):
    """Rows of which half are labelled; two rules, of which one is often wrong and abstains."""
    rows = toy_rows(count)
    truth = np.array(rows["labels"][:])
    labels = np.where(np.arange(count) % 2 == 0, truth, -100)
    votes = np.stack([truth, np.where(np.arange(count) % 3 == 0, (truth + 1) % 3, -1)], 1)
    return rows.remove_columns("labels").add_column("labels", labels).add_column("weak_labels", votes.tolist())


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("trusted", [("labels",), ()])
def test_a_run_weighs_votes_by_what_its_teacher_says(tmp_path, trusted, smoothing):
    """Without a meta set; the weights that it records are those of the teacher's probabilities, example by example,
    however smooth the labels are that the student learns.
    """
    rows = voted(12)
    logits = 3 * torch.randn(VOCABULARY, 3, generator=torch.Generator().manual_seed(0))
    method = replace(teacher_belief(), policy=TeacherBelief(trusted))
    losses = [
        CrossEntropy(),
        RuleLosses(["right", "wrong"]),
        Distillation(lambda batch: logits[batch["input_ids"][:, 0]]),
    ]
    arguments = toy_arguments(tmp_path, max_steps=3, label_smoothing_factor=smoothing)
    trainer = AMALTrainer(tiny_bert(), arguments, train_dataset=rows, losses=losses, method=method)
    trainer.train()
    for row, (_, *found) in zip(rows, map(dict.values, trainer.example_weights()), strict=True):
        believed = logits[row["input_ids"][0]].softmax(-1)
        asked = [row["labels"], *row["weak_labels"]]
        shares = [float(believed[a]) if a >= 0 else 0.0 for a in asked] + [1.0]
        if trusted:
            shares[0] = float(row["labels"] >= 0)
        np.testing.assert_allclose(found, np.array(shares) / sum(shares), atol=1e-5)


def test_without_a_teacher_a_trainer_refuses_it(tmp_path):
    """Before anything is trained."""
    with pytest.raises(ValueError, match="TeacherBelief: needs one teacher"):
        AMALTrainer(
            tiny_bert(),
            toy_arguments(tmp_path),
            train_dataset=voted(12),
            losses=[CrossEntropy(), RuleLosses(["right", "wrong"])],
            method=Method("teacher_belief", TeacherBelief()),
        )
