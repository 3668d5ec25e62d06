"""An example may lack some of its losses: a label, the vote of a rule. What is there takes their share."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows

from amal_hf import (
    AMALTrainer,
    AnnealedWeights,
    ClassProportional,
    CrossEntropy,
    Delayed,
    Distillation,
    ExampleTable,
    FixedWeights,
    HardMining,
    LossNetwork,
    RandomRectified,
    RandomWeights,
    RuleLosses,
    SharedWeights,
    SmallLoss,
)
from amal_hf.policies.policy import Observation, Signals, Sizes, weights_of
from amal_hf.task import Task


LOSSES = torch.tensor([[0.0, 5.0], [2.0, 1.0], [0.0, 0.5], [0.0, 0.0], [4.0, 4.0], [0.0, 3.0]])
PRESENT = torch.tensor([[False, True], [True, True], [False, True], [False, False], [True, True], [False, True]])
BATCH = {"labels": torch.tensor([-100, 1, -100, -100, 0, -100])}

POLICIES = {
    "fixed": FixedWeights,
    "delayed, never judged": lambda: Delayed(ExampleTable(), 0.5),
    "annealed": lambda: AnnealedWeights([0.2, 0.8]),
    "random": RandomWeights,
    "shared": SharedWeights,
    "network": LossNetwork,
    "random rectified": RandomRectified,
    "by class": lambda: ClassProportional([3, 5]),
}
CHOOSE = {"hard": lambda: HardMining(0.5), "small": lambda: SmallLoss(0.4)}


def weights(make, present=PRESENT):
    policy = make()
    policy.reset(Sizes(2, (), None, classes=2), torch.tensor([0.5, 0.5]))
    signals = Signals(LOSSES, torch.zeros(6, 2), (), BATCH, Task())
    return weights_of(policy, Observation(torch.arange(6), policy.observe(signals), 1.0, present))


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES.keys())
def test_what_is_missing_leaves_its_share_to_what_is_there(make):
    """Else examples with a label would count twice as much as those without, under some policies and not others, and a
    control would differ from what it controls in more than its weights.
    """
    missing, whole = weights(make), weights(make, None)
    assert (missing[~PRESENT] == 0).all()
    held = PRESENT.any(1)
    torch.testing.assert_close(missing[held].sum(1), whole[held].sum(1))


@pytest.mark.parametrize(("make", "best"), [(lambda: HardMining(0.2), 4), (lambda: SmallLoss(0.8), 2)])
def test_an_example_without_any_loss_is_not_among_the_chosen(make, best):
    """Its loss of 0 is the smallest of all: a batch would be spent on rows that teach nothing. The others have a mean
    of one.
    """
    chosen = weights(make).sum(1)
    assert chosen.tolist() == [5.0 * (row == best) for row in range(6)]


def test_nothing_at_all_weighs_nothing():
    """A batch of rows without any loss gives no NaN."""
    for make in (POLICIES | CHOOSE).values():
        assert (weights(make, torch.zeros_like(PRESENT)) == 0).all()


@pytest.mark.parametrize(
    ("labels", "problem_type", "present"),
    [
        (torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]]), "multi_label_classification", [True, True, False]),
        (torch.tensor([[0.3, 0.7], [-1.0, -1.0], [1.0, 0.0]]), "single_label_classification", [True, False, True]),
        (torch.tensor([-1.0, -100.0, 2.5]), "regression", [True, False, True]),
        (torch.tensor([[-1.0, -2.0], [-100.0, 0.0], [0.0, 0.0]]), "regression", [True, False, True]),
        (torch.tensor([1, -100, 0]), None, [True, False, True]),
    ],
)
def test_a_row_is_labelled_where_its_labels_cost_something(labels, problem_type, present):
    """Yes/no labels and shares of -1 are none, as the loss itself has it; numbers to be hit may be negative."""
    loss = CrossEntropy()
    loss.bind(Task(problem_type))
    assert loss.present({"labels": labels})[:, 0].tolist() == present
    outputs = SimpleNamespace(logits=torch.randn(3, 1 if problem_type == "regression" and labels.ndim == 1 else 2))
    assert (loss(outputs, {"labels": labels}) != 0).tolist() == present


def test_all_losses_of_a_student_with_yes_no_labels_are_of_that_kind(tmp_path):
    """Its configuration need not say so: heads write it down when they are first called with labels, and a teacher
    and votes would have been taken for one class each until then.
    """
    yes_no = torch.eye(3)[torch.arange(12) % 3].tolist()
    rows = toy_rows(12).remove_columns("labels").add_column("labels", yes_no).add_column("weak", yes_no)
    rows = rows.add_column("weak_labels", [[1, -1, 1]] * 12)
    results = []
    for problem_type in (None, "multi_label_classification"):
        student = tiny_bert(problem_type=problem_type)
        losses = [
            CrossEntropy(),
            CrossEntropy("weak", column="weak"),
            Distillation(tiny_bert(seed=1)),
            RuleLosses(["a", "b", "c"]),
        ]
        trainer = AMALTrainer(
            student, toy_arguments(tmp_path, max_steps=1, logging_steps=1), train_dataset=rows, losses=losses
        )
        trainer.train()
        results.append({k: v for k, v in trainer.state.log_history[-2].items() if "loss" in k})
        assert trainer.mixture.task.problem_type == "multi_label_classification"
    assert results[0] == results[1] and len(results[0]) > 3
