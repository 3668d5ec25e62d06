"""Scores of classifiers."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import EvalPrediction

from amal_hf.intervals import score_interval
from amal_hf.metrics import (
    F1,
    Accuracy,
    Agreement,
    CalibrationError,
    MacroF1,
    MatthewsCorrelation,
    auc,
    classification_metrics,
    rank_correlation,
)


def one_hot(classes, count=3):
    """Logits whose largest entry is the given class."""
    return np.eye(count)[np.asarray(classes)]


def test_rank_correlation_is_that_of_pandas():
    """With ties and missing numbers as well; without an answer it is NaN."""
    numbers = np.random.default_rng(0).integers(0, 6, (2, 40)).astype(float)
    numbers[0, 3], numbers[1, 5] = np.nan, np.nan
    assert rank_correlation(*numbers) == pytest.approx(pd.DataFrame(numbers.T).corr("spearman").iloc[0, 1])
    assert rank_correlation(numbers[0], -numbers[0]) == pytest.approx(-1)
    assert np.isnan(rank_correlation(numbers[0], np.ones(40)))
    assert np.isnan(rank_correlation(np.array([1.0, np.nan]), np.array([np.nan, 1.0])))
    with pytest.raises(ValueError, match="same shape"):
        rank_correlation(numbers[0], numbers[1, 1:])


@pytest.mark.parametrize(
    ("metric", "name", "expected"),
    [
        (Accuracy, "accuracy", 2 / 4),
        (Agreement, "agreement", 2 / 4),
        # By hand: classes 0, 1, 2 have F1 of 2/3, 2/4 and 0; class 2 is only predicted.
        (MacroF1, "macro_f1", (2 / 3 + 2 / 4 + 0) / 3),
        (F1, "f1", 2 / 4),
        # (2 * 4 - (1 * 2 + 2 * 2)) / sqrt((16 - 6) (16 - 8))
        (MatthewsCorrelation, "matthews_correlation", 2 / 80**0.5),
    ],
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
    assert (scores["accuracy"], scores["macro_f1"]) == (0.5, pytest.approx((2 / 3 + 2 / 4) / 3))
    assert json.loads(json.dumps(scores)) == scores


def test_two_classes_have_an_f1():
    """Of class 1, where there are two classes and no more; 0 if nobody speaks of it."""
    answers = EvalPrediction(one_hot([0, 1, 1, 0], 2), np.array([0, 1, 0, 1]))
    assert classification_metrics(answers)["f1"] == pytest.approx(2 / 4)
    assert classification_metrics(EvalPrediction(one_hot([0, 0], 2), np.array([0, 0])))["f1"] == 0
    assert "f1" not in classification_metrics(EvalPrediction(one_hot([0, 1]), np.array([0, 1])))


def test_classification_metrics_leave_out_ignored_tokens():
    """Padding (-100) and unlabelled rows (-1) count neither as hits nor as a class of their own."""
    logits = one_hot([[0, 1, 2], [2, 2, 0]])
    labels = np.array([[0, 0, -100], [2, -100, -1]])
    scores = classification_metrics(EvalPrediction(logits, labels))
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_matthews_correlation_of_two_classes():
    """For two classes it is the textbook's correlation; a constant guess has none."""
    rng = np.random.default_rng(0)
    guessed, wanted = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    score = MatthewsCorrelation().compute(predictions=guessed, references=wanted)["matthews_correlation"]
    assert score == pytest.approx(np.corrcoef(guessed, wanted)[0, 1])
    assert MatthewsCorrelation().compute(predictions=[1, 1], references=[0, 1]) == {"matthews_correlation": 0.0}


def test_calibration_error_by_hand():
    """Two rows of confidence 0.9, one of them right, miss by 0.4; one of 0.6 that is right by 0.4 too."""
    probabilities = [[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]]
    score = CalibrationError().compute(predictions=probabilities, references=[0, 0, 0])
    assert score == {"calibration_error": pytest.approx((2 * 0.4 + 0.4) / 3)}
    assert CalibrationError().compute(predictions=np.eye(3), references=[0, 1, 2]) == {"calibration_error": 0.0}
    # Full confidence is in the last bin, beside 0.95: |1 + 0.95 - 1| / 2.
    last = CalibrationError().compute(predictions=[[1.0, 0.0], [0.95, 0.05]], references=[1, 0])
    assert last == {"calibration_error": pytest.approx(0.475)}


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_student_that_has_diverged_is_still_scored(wrong):
    """What cannot be said of it is NaN, and evaluation is not the end of the run."""
    logits = np.random.default_rng(0).normal(size=(6, 3))
    logits[2, 0] = wrong
    scores = classification_metrics(EvalPrediction(logits, np.arange(6) % 3))
    assert np.isnan(scores["calibration_error"]) and 0 <= scores["accuracy"] <= 1


@pytest.mark.parametrize("metric", [Accuracy, MacroF1, MatthewsCorrelation, CalibrationError])
def test_scores_carry_intervals(metric):
    """Asked for, every score brings the interval of its own bootstrap, which holds it, as plain floats."""
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 3, 300)
    guessed = np.where(rng.random(300) < 0.7, wanted, rng.integers(0, 3, 300))
    given = one_hot(guessed) * 0.7 + 0.1 if metric is CalibrationError else guessed
    found = metric(resamples=200).compute(predictions=given, references=wanted)
    value, low, high = found.values()
    assert low < value < high and all(type(number) is float for number in found.values())
    assert (low, high) == score_interval(metric().score, (np.asarray(given), wanted), seed=0, samples=200)
    assert list(found) == [metric.key, f"{metric.key}_low", f"{metric.key}_high"]


def test_against_a_teacher():
    """A trainer's metrics take intervals and a teacher's logits, and refuse those of other rows."""
    prediction = EvalPrediction(one_hot([0, 1, 1, 2]), np.array([0, 0, 1, 1]))
    scores = partial(classification_metrics, resamples=50, teacher_logits=one_hot([0, 1, 1, 1]))(prediction)
    assert scores["agreement"] == 0.75 and scores["agreement_low"] <= 0.75 <= scores["agreement_high"]
    with pytest.raises(ValueError, match="teacher's logits have the shape"):
        classification_metrics(prediction, teacher_logits=one_hot([0, 1]))


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


def test_bins_of_confidence_begin_at_multiples_of_their_width():
    """0.61 and 0.66 are both between 9/15 and 10/15: one gap over both rows, of which one is right."""
    rows = np.array([[0.61, 0.39], [0.66, 0.34]])
    assert CalibrationError().score(rows, np.array([0, 1])) == pytest.approx(abs(0.61 + 0.66 - 1) / 2)
