"""Scores of classifiers, with the intervals that say how far to trust them.

The scores are `evaluate.Metric` classes: they take lists, arrays or tensors, in one go or by `add_batch`, and need
neither a download nor a cache file. All that is returned are plain Python floats, fit for JSON and cards.
"""

from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from numpy.typing import NDArray
from transformers.trainer_utils import EvalPrediction


IGNORED = -100
"""The label of positions that do not count, as in the losses of PyTorch."""


class _ClassMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate carries no types
    """A score of predicted classes against reference classes, kept in memory (no cache file, no lock)."""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            features=Features({"predictions": Value("int64"), "references": Value("int64")}),
        )


class Accuracy(_ClassMetric):
    """Share of the predicted classes that are the reference classes: `{"accuracy": float}`."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": _share_equal(predictions, references)}


class MacroF1(_ClassMetric):
    """Mean of the classes' F1, each class counting alike: `{"macro_f1": float}`.

    The classes are those that occur among predictions or references. F1 = 2 TP / (2 TP + FP + FN).
    """

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predicted, wanted = np.asarray(predictions), np.asarray(references)
        classes = np.union1d(predicted, wanted)[:, None]
        hits = ((predicted == classes) & (wanted == classes)).sum(axis=1)
        mentions = (predicted == classes).sum(axis=1) + (wanted == classes).sum(axis=1)
        return {"macro_f1": float(np.mean(2 * hits / mentions))}


class Agreement(_ClassMetric):
    """Share of the student's classes (predictions) that its teacher (references) gives too: `{"agreement": float}`.

    It says how faithful a student is, which is not how right it is.
    """

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"agreement": _share_equal(predictions, references)}


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy and macro F1 of logits; give it to a trainer as `compute_metrics`.

    Args:
        prediction: logits (N, C) with classes (N,), or (N, T, C) with (N, T) where tokens are labelled. Of a tuple of
            outputs the first counts. Labels of -100 are left out, as are those of -1 (rows without a label).

    Raises:
        ValueError: if the shapes do not belong together, or if no label is left.
    """
    outputs = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    logits, labels = np.asarray(outputs), np.asarray(prediction.label_ids)
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"Logits should have the labels' shape and one dimension of classes more, but came as {logits.shape} for "
            f"labels of {labels.shape}. For regression or several labels a text write your own compute_metrics."
        )
    counted = (labels != IGNORED) & (labels != -1)
    if not counted.any():
        raise ValueError(
            f"All {labels.size} labels are -100 or -1, so there is nothing to score. Evaluate labelled rows."
        )
    predicted, wanted = logits.argmax(axis=-1)[counted], labels[counted]
    scores: dict[str, float] = {}
    for metric in (Accuracy(), MacroF1()):
        scores |= metric.compute(predictions=predicted, references=wanted) or {}
    return scores


def bootstrap_interval(
    correct: NDArray[Any], seed: int, level: float = 0.95, samples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, such as an accuracy.

    Args:
        correct: (N,), one value an example; for an accuracy whether the example was right.
        seed: the same seed resamples alike.
        level: the share of the resampled means inside the interval.
        samples: how many times the examples are drawn anew.

    Raises:
        ValueError: if there is no example or the values are not one-dimensional.
    """
    values = np.asarray(correct, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"Expected one value an example, of shape (N,) with N > 0, but the shape is {values.shape}.")
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(samples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_interval(
    a: NDArray[Any], b: NDArray[Any], seed: int, level: float = 0.95, samples: int = 2000
) -> tuple[float, float]:
    """Bootstrap interval of mean(a) - mean(b) for two systems scored on the same examples, row by row.

    It is much narrower than two intervals side by side suggest, since an example that is hard for one system is mostly
    hard for the other. Arguments as in `bootstrap_interval`.
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(f"Both systems need scores on the same examples, but have {np.shape(a)} and {np.shape(b)}.")
    return bootstrap_interval(np.subtract(a, b, dtype=np.float64), seed, level, samples)


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
    _, inverse, ties = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[inverse]
    above = ranks[positive].sum() - count * (count + 1) / 2
    return float(above / (count * (len(positive) - count)))


def _share_equal(predictions: Any, references: Any) -> float:
    return float(np.mean(np.asarray(predictions) == np.asarray(references)))
