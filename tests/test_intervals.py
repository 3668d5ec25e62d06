"""How far to trust a score."""

import numpy as np
import pytest

from amal_hf.intervals import bootstrap_interval, score_interval


def test_bootstrap_interval_has_the_binomial_width():
    """For an accuracy the interval is that of the normal approximation, and it narrows with the level."""
    correct = np.arange(1000) < 800
    low, high = bootstrap_interval(correct, seed=0)
    error = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert (low, high) == (pytest.approx(0.8 - error, abs=0.004), pytest.approx(0.8 + error, abs=0.004))
    assert type(low) is float and (low, high) == bootstrap_interval(correct, seed=0)
    narrow = bootstrap_interval(correct, seed=0, level=0.5)
    assert low < narrow[0] < 0.8 < narrow[1] < high


@pytest.mark.parametrize("values", [np.array([]), np.zeros((3, 2))])
def test_bootstrap_needs_one_value_an_example(values):
    """An empty or two-dimensional array is refused, since its mean would be no score of examples."""
    with pytest.raises(ValueError, match="one value an example"):
        bootstrap_interval(values, seed=0)


def test_any_score_has_an_interval():
    """Rows of all columns are drawn together; of the mean it is the same interval."""
    values = np.random.default_rng(0).random(50)
    assert score_interval(np.mean, (values,), seed=3) == bootstrap_interval(values, seed=3)
    together = score_interval(lambda a, b: float(np.mean(a - b)), (values, values), seed=0, samples=50)
    assert together == (0.0, 0.0)
    with pytest.raises(ValueError, match=r"one length above 0, but they have \[1, 2\]"):
        score_interval(np.mean, (np.zeros(1), np.zeros(2)), seed=0)
