"""Scores and their intervals."""

import json

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from amal_hf.metrics import (
    Accuracy,
    Agreement,
    MacroF1,
    auc,
    bootstrap_interval,
    classification_metrics,
    paired_interval,
)


def one_hot(classes, count=3):
    """Logits whose largest entry is the given class."""
    return np.eye(count)[np.asarray(classes)]


@pytest.mark.parametrize(
    ("metric", "name", "expected"),
    # By hand: classes 0, 1, 2 have F1 of 2/3, 2/4 and 0; class 2 is only predicted.
    [(Accuracy, "accuracy", 2 / 4), (Agreement, "agreement", 2 / 4), (MacroF1, "macro_f1", (2 / 3 + 2 / 4 + 0) / 3)],
)
def test_scores_by_hand(metric, name, expected):
    """Scores equal the textbook, whatever holds the classes and however they come in, as plain floats for JSON."""
    predictions, references = [0, 1, 1, 2], [0, 0, 1, 1]
    for wrap in (list, np.array, torch.tensor):
        score = metric().compute(predictions=wrap(predictions), references=wrap(references))
        assert score == {name: pytest.approx(expected)}
        assert type(score[name]) is float
    in_batches = metric()
    for part in (slice(0, 1), slice(1, 4)):
        in_batches.add_batch(predictions=predictions[part], references=references[part])
    assert in_batches.compute() == {name: pytest.approx(expected)}


def test_classification_metrics_of_texts():
    """A trainer's logits give both scores; a tuple of outputs is read by its first, as models return it."""
    outputs = (one_hot([0, 1, 1, 2]), "hidden states")
    scores = classification_metrics(EvalPrediction(outputs, np.array([0, 0, 1, 1])))
    assert scores == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 2 / 4) / 3)}
    assert json.loads(json.dumps(scores)) == scores


def test_classification_metrics_leave_out_ignored_tokens():
    """Padding (-100) and unlabelled rows (-1) count neither as hits nor as a class of their own."""
    logits = one_hot([[0, 1, 2], [2, 2, 0]])
    labels = np.array([[0, 0, -100], [2, -100, -1]])
    scores = classification_metrics(EvalPrediction(logits, labels))
    assert scores == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx((2 / 3 + 0 + 1) / 3)}


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((4, 1)), np.zeros((4, 1)), "shape"),
        (np.zeros((2, 3)), np.array([-100, -1]), "nothing to score"),
    ],
)
def test_classification_metrics_refuse_other_tasks(logits, labels, message):
    """Labels that do not fit or are all absent are refused: a score of 0 or NaN would pass for a result."""
    with pytest.raises(ValueError, match=message):
        classification_metrics(EvalPrediction(logits, labels))


def test_bootstrap_interval_has_the_binomial_width():
    """For an accuracy the interval is that of the normal approximation, and it narrows with the level."""
    correct = np.arange(1000) < 800
    low, high = bootstrap_interval(correct, seed=0)
    error = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert (low, high) == (pytest.approx(0.8 - error, abs=0.004), pytest.approx(0.8 + error, abs=0.004))
    assert type(low) is float and (low, high) == bootstrap_interval(correct, seed=0)
    narrow = bootstrap_interval(correct, seed=0, level=0.5)
    assert low < narrow[0] < 0.8 < narrow[1] < high


def test_paired_interval_uses_the_pairs():
    """Two systems that fail on the same examples are told apart where unpaired intervals overlap."""
    better, worse = np.arange(500) < 400, np.arange(500) < 385
    low, high = paired_interval(better, worse, seed=0)
    assert 0 < low < 0.03 < high
    assert bootstrap_interval(worse, seed=0)[1] > bootstrap_interval(better, seed=0)[0]
    with pytest.raises(ValueError, match="same examples"):
        paired_interval(better, worse[:-1], seed=0)


@pytest.mark.parametrize("values", [np.array([]), np.zeros((3, 2))])
def test_bootstrap_needs_one_value_an_example(values):
    """An empty or two-dimensional array is refused, since its mean would be no score of examples."""
    with pytest.raises(ValueError, match="one value an example"):
        bootstrap_interval(values, seed=0)


def test_auc_counts_pairs():
    """It equals the count over all pairs with ties as halves: learned weights tie often, being clamped."""
    rng = np.random.default_rng(0)
    scores, positives = rng.integers(0, 5, 60), rng.random(60) < 0.4
    ups, downs = scores[positives][:, None], scores[~positives]
    assert auc(scores, positives) == pytest.approx(np.mean((ups > downs) + 0.5 * (ups == downs)))
    assert auc(np.zeros(4), np.array([1, 0, 1, 0])) == 0.5
    assert type(auc(scores, positives)) is float


@pytest.mark.parametrize(
    ("scores", "positives", "message"),
    [([1.0, 2.0], [1, 1], "2 of 2"), ([1.0, np.nan], [0, 1], "1 scores"), ([1.0], [0, 1], "shapes")],
)
def test_auc_refuses_what_has_no_answer(scores, positives, message):
    """One group alone, a missing score or unequal lengths have no AUC; a number would be made up."""
    with pytest.raises(ValueError, match=message):
        auc(np.array(scores), np.array(positives))
