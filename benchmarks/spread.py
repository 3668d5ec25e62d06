"""Means over seeds and how far to trust them."""

from collections.abc import Sequence

import numpy as np


T = {3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t at 95 % for n seeds; of two nothing can be said."""


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % t-interval of a mean; `None` for fewer than three values."""
    t = T.get(len(values))
    return None if t is None else float(t * np.std(values, ddof=1) / len(values) ** 0.5)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """`mean ± half-width`, or the mean alone."""
    width = half_width(values)
    mean = f"{np.mean(values):.{digits}f}"
    return mean if width is None else f"{mean} ± {width:.{digits}f}"
