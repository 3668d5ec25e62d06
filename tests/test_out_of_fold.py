"""A teacher over frozen features that has not been told the label of the row it is asked about."""

import pytest
import torch

from amal_hf import out_of_fold, out_of_fold_logits
from amal_hf.labelled_features import standardised
from amal_hf.out_of_fold import dealt


ROWS, CLASSES, WIDTH = 240, 4, 12


@pytest.fixture(scope="module")
def planted():
    """Features that tell the class of a row, and that class."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(CLASSES, (ROWS,), generator=generator)
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    return centres[true] + 0.5 * torch.randn(ROWS, WIDTH, generator=generator), true


def by_newton(table, labels, asked):
    """Probabilities `(A, C)` of the most probable coefficients under a prior of variance 4/d, in float64."""
    table, asked = (torch.cat([rows, rows.new_ones(len(rows), 1)], 1) for rows in (table, asked))
    penalty = torch.full((WIDTH + 1, 1), WIDTH / 4, dtype=torch.float64)
    penalty[-1] = 0  # the constant

    def cost(flat):
        weight = flat.view(WIDTH + 1, CLASSES)
        misfit = torch.nn.functional.cross_entropy(table @ weight, labels, reduction="sum")
        return misfit + (penalty * weight.square()).sum() / 2

    flat = table.new_zeros((WIDTH + 1) * CLASSES)
    for _ in range(12):
        slope, curvature = torch.func.grad(cost)(flat), torch.func.hessian(cost)(flat)
        flat = flat - torch.linalg.pinv(curvature, hermitian=True) @ slope
    assert slope.abs().max() < 1e-9
    return (asked @ flat.view(WIDTH + 1, CLASSES)).softmax(1)


def test_each_fold_is_answered_by_the_regression_over_the_others(planted):
    """Its coefficients have a normal prior, and are those that Newton's method finds; rows without a label are
    answered by the regression over all that have one.
    """
    features, labels = planted[0], planted[1].clone()
    labels[:30] = -1
    found = out_of_fold_logits(features, labels, folds=3, seed=5).softmax(1)
    table, fold = torch.nn.functional.layer_norm(features.double(), [WIDTH]), dealt(labels, 3, 5)
    for number in (-1, 0, 1, 2):
        others, asked = (labels >= 0) & (fold != number), fold == number
        expected = by_newton(table[others], labels[others], table[asked]).float()
        torch.testing.assert_close(found[asked], expected, atol=1e-3, rtol=0)


def test_a_label_says_nothing_of_its_own_row(planted, monkeypatch):
    """Other labels in one fold change the answers for the other, and none for their own."""
    features, labels = planted
    monkeypatch.setattr(out_of_fold, "dealt", lambda labels, folds, seed: torch.arange(len(labels)) % folds)
    wrong = labels.clone()
    wrong[::2] = (labels[::2] + 1) % CLASSES
    before, after = (out_of_fold_logits(features, given, folds=2) for given in (labels, wrong))
    assert torch.equal(before[::2], after[::2]) and (before[1::2] - after[1::2]).abs().amax(1).min() > 0.01


def test_wrong_labels_are_not_repeated(planted):
    """A fifth are wrong: nearly all rows are given their class, and hardly one what it was told."""
    features, true = planted
    labels = true.clone()
    labels[::5] = (labels[::5] + 1) % CLASSES
    told = out_of_fold_logits(features, labels).argmax(1)
    assert (told == true).float().mean() > 0.9 and (told[::5] == labels[::5]).float().mean() < 0.1


def test_folds_are_of_like_sizes_and_classes(planted):
    """And none is empty, however rare a class is."""
    _, labels = planted
    fold = dealt(labels, 5, 0)
    for number in range(CLASSES):
        counts = fold[labels == number].bincount(minlength=5)
        assert counts.max() - counts.min() <= 1
    assert fold.bincount().max() - fold.bincount().min() <= 1


def test_classes_that_no_row_has_are_answered_for_too(planted):
    """Where the student knows more of them; and rows without a label."""
    features, labels = planted
    given = [*labels.tolist()[:-1], -100]
    found = out_of_fold_logits(features.numpy(), given, classes=CLASSES + 2)
    assert found.shape == (ROWS, CLASSES + 2) and (found.argmax(1) < CLASSES).all()


@pytest.mark.parametrize("scale", [1e3, 1e-3, 1e-4])
def test_the_scale_of_features_does_not_matter(planted, scale):
    """As probabilities of many classes are small; and of rows whose features are all alike nothing is made up."""
    features, labels = planted
    expected, found = (out_of_fold_logits(factor * features, labels).softmax(1) for factor in (1, scale))
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)
    assert standardised(torch.full((2, 384), 0.1)).abs().max() < 0.1


def test_an_encoder_s_graph_is_left_alone(planted):
    """Features that were made without `no_grad` are answered the same, and their encoder gets no gradient."""
    features, labels = planted
    scale = torch.ones((), requires_grad=True)
    found = out_of_fold_logits(scale * features, labels)
    assert torch.equal(found, out_of_fold_logits(features, labels)) and scale.grad is None


GOOD = {"features": torch.rand(6, 3), "labels": [0, 1, 0, 1, 0, -100]}


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"features": ["a"] * 6}, TypeError, "out_of_fold_logits: features must be an array"),
        ({"labels": [0, 1]}, ValueError, "same rows"),
        ({"features": torch.full((6, 3), torch.inf)}, ValueError, "6 rows are not, the first is 0"),
        ({"labels": [-100] * 6}, ValueError, "got 5 and 0"),
        ({"folds": 1}, ValueError, "got 1 and 5"),
        ({"folds": 6}, ValueError, "got 6 and 5"),
        ({"classes": 1}, ValueError, "a label is 1, and of 1 classes the last is 0"),
    ],
)
def test_what_cannot_be_answered_is_refused(wrong, error, words):
    """In words."""
    with pytest.raises(error, match=words):
        out_of_fold_logits(**{**GOOD, **wrong})
