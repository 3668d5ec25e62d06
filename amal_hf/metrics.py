"""Scores of classifiers."""

from typing import Any

import numpy as np
from datasets import List, Value
from numpy.typing import NDArray
from transformers.trainer_utils import EvalPrediction

from amal_hf.scores import Score
from amal_hf.shapes import IGNORED


class Accuracy(Score):
    """Share of the predicted classes that are the reference classes."""

    key = "accuracy"

    def score(self, predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """In [0, 1]."""
        return float(np.mean(predictions == references))


class Agreement(Accuracy):
    """Share of the student's classes (predictions) that its teacher (references) gives too.

    It says how faithful a student is, which is not how right it is.
    """

    key = "agreement"


class MacroF1(Score):
    """Mean of the classes' F1, each class counting alike.

    The classes are those that occur among predictions or references. F1 = 2 TP / (2 TP + FP + FN).
    """

    key = "macro_f1"

    def score(self, predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """In [0, 1]."""
        classes = np.union1d(predictions, references)[:, None]
        hits = ((predictions == classes) & (references == classes)).sum(axis=1)
        mentions = (predictions == classes).sum(axis=1) + (references == classes).sum(axis=1)
        return float(np.mean(2 * hits / mentions))


class F1(Score):
    """F1 of class 1, as spam is scored: what two-class tasks of GLUE call F1.

    0 where class 1 neither occurs nor is predicted.
    """

    key = "f1"

    def score(self, predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """In [0, 1]."""
        hits = np.sum((predictions == 1) & (references == 1))
        return float(2 * hits / max(np.sum(predictions == 1) + np.sum(references == 1), 1))


class MatthewsCorrelation(Score):
    """Correlation of predicted and reference classes, which guessing the commonest class does not raise.

    For several classes as in Gorodkin 2004; 0 where only one class is predicted or wanted.
    """

    key = "matthews_correlation"

    def score(self, predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """In [-1, 1]."""
        classes = np.union1d(predictions, references)[:, None]
        guessed, wanted = (predictions == classes).sum(1), (references == classes).sum(1)
        rows, hits = len(references), np.sum(predictions == references)
        spread = float(rows**2 - np.sum(guessed**2)) * float(rows**2 - np.sum(wanted**2))
        return float((hits * rows - guessed @ wanted) / np.sqrt(spread)) if spread else 0.0


class CalibrationError(Score):
    """How far confidence is from accuracy: expected calibration error (Guo et al. 2017, arXiv:1706.04599).

    Predictions are probabilities of all classes. Rows are put into 15 bins of equal width by their highest
    probability, as in the paper; the gaps between mean confidence and accuracy are averaged by the rows in each.
    """

    key = "calibration_error"
    prediction = List(Value("float64"))
    bins = 15

    def score(self, predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """In [0, 1], 0 being best; NaN for a student that has come to no finite numbers."""
        confidence = predictions.max(1)
        if not np.isfinite(confidence).all():
            return float("nan")
        right = predictions.argmax(1) == references
        bins = np.minimum((confidence * self.bins).astype(int), self.bins - 1)
        gaps = np.bincount(bins, confidence, self.bins) - np.bincount(bins, right, self.bins)
        return float(np.abs(gaps).sum() / len(references))


def classification_metrics(
    prediction: EvalPrediction, resamples: int = 0, teacher_logits: NDArray[Any] | None = None
) -> dict[str, float]:
    """Accuracy, macro F1, Matthews correlation and calibration error of logits: `compute_metrics` for a trainer.

    Where there are two classes, also F1 of class 1.
    With intervals, or against a teacher: `functools.partial(classification_metrics, resamples=1000)`.

    Args:
        prediction: logits (N, C) with classes (N,), or (N, T, C) with (N, T) where tokens are labelled. Of a tuple of
            outputs the first counts. Labels of -100 are left out, as are those of -1 (rows without a label).
        resamples: of the rows, for an interval of each score; 0 for none.
        teacher_logits: of the same shape, for the agreement with a teacher.

    Raises:
        ValueError: if the shapes do not belong together, or if no label is left.
    """
    outputs = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    logits, labels = np.asarray(outputs), np.asarray(prediction.label_ids)
    _check_shapes(logits, labels, teacher_logits)
    counted = (labels != IGNORED) & (labels != -1)
    if not counted.any():
        raise ValueError(
            f"All {labels.size} labels are -100 or -1, so there is nothing to score. Evaluate labelled rows."
        )
    chosen, wanted = logits[counted], labels[counted]
    guessed = chosen.argmax(axis=-1)
    scored: list[tuple[Score, Any, Any]] = [
        (Accuracy(resamples), guessed, wanted),
        (MacroF1(resamples), guessed, wanted),
        (MatthewsCorrelation(resamples), guessed, wanted),
        (CalibrationError(resamples), _softmax(chosen), wanted),
    ]
    if logits.shape[-1] == 2:
        scored.append((F1(resamples), guessed, wanted))
    if teacher_logits is not None:
        scored.append((Agreement(resamples), guessed, np.asarray(teacher_logits)[counted].argmax(axis=-1)))
    scores: dict[str, float] = {}
    for metric, predictions, references in scored:
        scores |= metric.compute(predictions=predictions, references=references) or {}
    return scores


def auc(scores: NDArray[Any], positives: NDArray[Any]) -> float:
    """Probability that a random positive scores above a random negative, ties counting half.

    Args:
        scores: (N,) finite numbers, for instance learned weights.
        positives: (N,) of bool, for instance which labels are clean.

    Raises:
        ValueError: if the shapes differ, a score is not finite, or one of the two groups is empty.
    """
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(positives, dtype=bool)
    if values.shape != positive.shape or not np.isfinite(values).all():
        raise ValueError(
            f"Expected finite scores and as many positives, but {np.sum(~np.isfinite(values))} scores are not finite "
            f"and the shapes are {values.shape} and {positive.shape}."
        )
    count = int(positive.sum())
    if count in (0, len(positive)):
        raise ValueError(f"AUC compares positives with negatives, but {count} of {len(positive)} are positive.")
    above = _ranks(values)[positive].sum() - count * (count + 1) / 2
    return float(above / (count * (len(positive) - count)))


def rank_correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Spearman's rank correlation, ties sharing their mean rank.

    Args:
        first, second: (N,) numbers, for instance the learned weights of rules and their precision; pairs of which one
            is NaN are left out.

    Returns:
        From -1 to 1; NaN where fewer than two pairs are left, or where all numbers of a side are equal.

    Raises:
        ValueError: if the shapes differ.
    """
    pair = np.stack([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)])
    one, other = (_ranks(values) for values in pair[:, ~np.isnan(pair).any(0)])
    if len(one) == 0 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1 on, the smallest first; ties share their mean rank."""
    _, inverse, ties = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(ties) - (ties - 1) / 2)[inverse]
    return ranks


def _check_shapes(logits: NDArray[Any], labels: NDArray[Any], teacher_logits: NDArray[Any] | None) -> None:
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"Logits should have the labels' shape and one dimension of classes more, but came as {logits.shape} for "
            f"labels of {labels.shape}. For regression or several labels a text write your own compute_metrics."
        )
    if teacher_logits is not None and np.shape(teacher_logits) != logits.shape:
        raise ValueError(
            f"The teacher's logits have the shape {np.shape(teacher_logits)}, the student's {logits.shape}."
        )


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # what is not finite becomes NaN
        exponents = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = exponents / exponents.sum(axis=-1, keepdims=True)
    return shares
