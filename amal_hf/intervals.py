"""How far to trust a score: bootstrap intervals over the rows that it was measured on."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def score_interval(
    score: Callable[..., float], columns: Sequence[NDArray[Any]], seed: int, level: float = 0.95, samples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of any score of rows.

    Args:
        score: from the columns to a number.
        columns: arrays of one length, `(N, ...)` each, drawn together: predictions and references.
        seed: the same seed resamples alike.
        level: the share of the resampled scores inside the interval.
        samples: how many times the rows are drawn anew.

    Raises:
        ValueError: no rows, or columns of different length.
    """
    lengths = {len(column) for column in columns}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"A bootstrap needs columns of one length above 0, but they have {sorted(lengths)}.")
    (rows,) = lengths
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(rows, size=rows) for _ in range(samples))
    scores = [score(*(column[some] for column in columns)) for some in drawn]
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
    return score_interval(np.mean, (values,), seed, level, samples)
