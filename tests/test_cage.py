"""CAGE against the enumeration of everything that could happen, and SPEAR's terms against their definitions."""

import itertools
import math

import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows
from torch.distributions import Beta

from amal_hf import AMALTrainer, Cage, CrossEntropy, Spear, amal, split_rules
from amal_hf.task import Task


CLASSES = [0, 1, 1]


def stirred(**options):
    cage = Cage(CLASSES, 3, **options).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in cage.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return cage


def everything():
    """All ways in which three rules can fire, `(8, 3)`."""
    return torch.tensor(list(itertools.product([False, True], repeat=3)))


def brute_force(cage):
    """`P(y, m)` as a table `(8, 3)`: every product written out, divided by their sum."""
    table = torch.stack(
        [
            torch.stack(
                [
                    torch.stack(
                        [cage.theta[y, j].exp() if m[j] else cage.theta[y, j] * 0 + 1 for j in range(3)]
                    ).prod()
                    for y in range(3)
                ]
            )
            for m in everything()
        ]
    )
    return table / table.sum()


def test_the_joint_is_that_of_the_enumeration():
    """All probabilities add up to one, and each is what the products say, with the same gradient."""
    cage = stirred()
    ours, exact = cage.log_joint(everything()).exp(), brute_force(cage)
    torch.testing.assert_close(ours.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-14)
    weights = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (mine,) = torch.autograd.grad((ours.log() * weights).sum(), cage.theta)
    (theirs,) = torch.autograd.grad((exact.log() * weights).sum(), cage.theta)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_posterior_and_the_guide_are_those_of_the_enumeration():
    """`P(y | m)` by Bayes, and the guide from each rule's precision over all cases in which it fires."""
    cage = stirred(quality=0.8)
    exact, fired = brute_force(cage), everything()
    torch.testing.assert_close(cage.posterior(fired).exp(), exact / exact.sum(1, keepdim=True))
    precision = torch.stack([exact[fired[:, j]][:, k].sum() / exact[fired[:, j]].sum() for j, k in enumerate(CLASSES)])
    guide = -(0.8 * precision.log() + 0.2 * (1 - precision).log()).sum()
    torch.testing.assert_close(cage.guide(), guide)
    (mine,) = torch.autograd.grad(cage.guide(), cage.theta)
    (theirs,) = torch.autograd.grad(guide, cage.theta)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_scores_count_only_where_a_rule_fired():
    """A fired rule multiplies by the Beta density of its score, whose mean is high on its own class only."""
    cage, fired = stirred(), everything()
    scores = torch.rand(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.8 + 0.1
    difference = cage.log_joint(fired, scores) - cage.log_joint(fired)
    for row, y in itertools.product(range(8), range(3)):
        expected = 0.0
        for j in range(3):
            if fired[row, j]:
                mean, sharpness = (0.85 if y == CLASSES[j] else 0.15), math.exp(cage.pi[y, j].item())
                expected += Beta(mean * sharpness, (1 - mean) * sharpness).log_prob(scores[row, j].float()).item()
        assert difference[row, y].item() == pytest.approx(expected, abs=1e-4)


def test_hundreds_of_rules_do_not_overflow():
    """164 rules in fp32: everything stays finite, gradients as well."""
    cage = Cage([j % 3 for j in range(164)], 3)
    fired = torch.rand(16, 164, generator=torch.Generator().manual_seed(0)) < 0.5
    value = cage.log_joint(fired).logsumexp(1).mean() + cage.guide()
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(cage.theta.grad).all()


def test_rules_for_several_classes_are_split():
    """One column for each class that a rule votes for, so that every column has one class."""
    votes = torch.tensor([[0, 2], [1, -1], [-1, 2]])
    with pytest.raises(ValueError, match="all 3 rules abstain on all 2 rows"):
        split_rules(torch.full((2, 3), -1))
    columns, rules, classes = split_rules(votes)
    assert rules == [0, 0, 1] and classes == [0, 1, 2]
    assert columns.tolist() == [[0, -1, 2], [-1, 1, -1], [-1, -1, 2]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cage([0, 3], 3), "one class from 0 to 2"),
        (lambda: Cage([], 3), "one class from 0 to 2"),
        (lambda: Cage([0], 2, quality=1.0), "between 0 and 1"),
        (lambda: Cage([0, 1], 2).fired(torch.tensor([[1, -1]])), "some voted otherwise"),
        (lambda: Spear(Cage([0], 2), learning_rate=0), "positive and finite"),
    ],
)
def test_bad_input(build, message):
    """Said where it happens, with what came."""
    with pytest.raises(ValueError, match=message):
        build()


def spear_batch():
    """Labelled with votes, unlabelled with votes, unlabelled without, labelled without."""
    votes = torch.tensor([[0, 1, -1], [-1, 1, 1], [-1, -1, -1], [-1, -1, -1]])
    return {"labels": torch.tensor([0, -100, -100, 2]), "weak_labels": votes}


class Outputs:
    def __init__(self, logits):
        self.logits = logits


def test_terms_are_those_of_the_definition():
    """Entropy on unlabelled rows; pseudo-labels on those that were voted on; agreement wherever a rule fired."""
    loss, batch = Spear(stirred()), spear_batch()
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    values = loss(Outputs(logits), batch).detach()
    f, g = logits.softmax(-1), loss.cage.posterior(batch["weak_labels"] >= 0).exp()
    present = [[False, False, True], [True, True, True], [True, False, False], [False, False, False]]
    assert loss.present(batch).tolist() == present
    for row in range(4):
        terms = [
            -(f[row] * f[row].log()).sum(),
            -f[row, g[row].argmax()].log(),
            (f[row] * (f[row] / g[row]).log()).sum(),
        ]
        for column in range(3):
            expected = terms[column].item() if present[row][column] else 0.0
            assert values[row, column].item() == pytest.approx(expected, abs=1e-9)


def test_the_models_own_objective():
    """−log P(y | m) where there is a label, −log P(m) where there is none, nothing without a vote; and the guide."""
    loss, batch = Spear(stirred()), spear_batch()
    exact = brute_force(loss.cage).detach()
    rows = [(everything() == (votes >= 0)).all(1).nonzero()[0, 0] for votes in batch["weak_labels"]]
    expected = torch.stack(
        [-(exact[rows[0], 0] / exact[rows[0]].sum()).log(), -exact[rows[1]].sum().log(), *exact.new_zeros(2)]
    )
    torch.testing.assert_close(loss.own_objective(batch), expected + loss.cage.guide())


def rows_with_votes(count, unlabelled):
    rows = toy_rows(count)
    labels = rows["labels"][:]
    generator = torch.Generator().manual_seed(5)
    right = (torch.rand(count, 3, generator=generator) < 0.5).tolist()
    votes = [[k if right[i][k] and label == k else -1 for k in range(3)] for i, label in enumerate(labels)]
    given = [-100 if i < unlabelled else label for i, label in enumerate(labels)]
    return rows.remove_columns("labels").add_column("labels", given).add_column("weak_labels", votes)


def new_trainer(folder, losses=None, **options):
    return AMALTrainer(
        model=tiny_bert(),
        args=toy_arguments(folder, **options),
        train_dataset=rows_with_votes(24, 16),
        meta_dataset=toy_rows(10, 4),
        losses=[CrossEntropy(), Spear(Cage([0, 1, 2], 3))] if losses is None else losses,
        method=amal(),
    )


def test_trained_jointly_and_resumed(tmp_path):
    """Student and graphical model learn together; both, and the model's Adam, go on bit for bit from a checkpoint."""
    whole = new_trainer(tmp_path / "whole", save_strategy="steps", save_steps=3)
    whole.train()
    cage = whole.mixture.joint[0].cage
    assert not torch.equal(cage.theta, Cage([0, 1, 2], 3).theta)
    assert cage.theta.grad is None
    again = new_trainer(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert torch.equal(again.mixture.joint[0].cage.theta, cage.theta)
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    weights = whole.example_weights().to_pandas()
    assert (weights["labels"][:16] == 0).all() and (weights["spear/entropy"][16:] == 0).all()
    assert {"loss_spear", "weight_spear_mean", "loss_labels"} <= set(whole.state.log_history[0])


def test_two_trainers_given_one_loss_do_not_share_its_model(tmp_path):
    """The second would begin by wiping out what the first has learned, and train it on with another student."""
    losses = [CrossEntropy(), Spear(Cage([0, 1, 2], 3))]
    first, second = (new_trainer(tmp_path, losses) for _ in range(2))
    first.train()
    cages = [run.mixture.joint[0].cage for run in (first, second)]
    assert len({id(cage) for cage in (*cages, losses[1].cage)}) == 3
    assert not torch.equal(cages[0].theta, cages[1].theta)
    assert torch.equal(cages[1].theta, losses[1].cage.theta)


def test_votes_for_another_class_are_refused_before_training(tmp_path):
    """Checked once, on the dataset; a rule of class 0 that votes 1 stops the trainer from being made."""
    rows = toy_rows(24).add_column("weak_labels", [[1, -1, -1]] * 24)
    with pytest.raises(ValueError, match="some voted otherwise"):
        AMALTrainer(
            model=tiny_bert(),
            args=toy_arguments(tmp_path),
            train_dataset=rows,
            losses=[CrossEntropy(), Spear(Cage([0, 1, 2], 3))],
        )


@pytest.mark.parametrize(
    ("rows", "scores", "message"),
    [
        (toy_rows(4), None, "made for 2 classes, the student has 3"),
        (toy_rows(4).remove_columns("labels"), None, "labelled rows from others"),
        (toy_rows(4), "sure", "no column 'sure'"),
        (toy_rows(4).add_column("sure", [[0.5, float("nan"), 0.1]] * 4), "sure", "missing or not finite"),
    ],
    ids=["classes", "labels", "column", "scores"],
)
def test_what_spear_needs_is_named_before_training(rows, scores, message):
    """And not by an error of torch at the first step."""
    spear = Spear(Cage([0, 1, 1], 2 if message.startswith("made") else 3), scores=scores)
    with pytest.raises(ValueError, match=message):
        spear.check(rows, 3)


def test_spear_is_for_one_class_a_row():
    """Several answers at once would end in an error of torch at the first step."""
    with pytest.raises(ValueError, match="one class a row, and the task is multi_label_classification"):
        Spear(Cage([0, 1, 1], 3)).bind(Task("multi_label_classification"))
