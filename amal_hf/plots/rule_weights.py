"""Rules: what they have learned to weigh against how often they are right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from amal_hf.plots.style import OKABE_ITO, finished, short


NAMED = 20
"""Rules up to which each has its name beside its point."""


def plot_rule_weights(
    weights: NDArray[Any], precisions: NDArray[Any], names: Sequence[str], path: str | Path | None = None
) -> Figure:
    """Draws the learned weight of every rule against how often it is right.

    Args:
        weights: (m,) mean weight where a rule votes.
        precisions: (m,) share of right votes; rules for which either is NaN are left out.
        names: the m rules; written beside their points if there are at most 20.
        path: the file to write, if any.

    Raises:
        ValueError: if the lengths differ or no rule is left.
    """
    weights, precisions = np.asarray(weights, dtype=np.float64), np.asarray(precisions, dtype=np.float64)
    if weights.shape != precisions.shape or weights.shape != (len(names),):
        raise ValueError(f"Expected {len(names)} weights and precisions, got {weights.shape} and {precisions.shape}.")
    shown = np.isfinite(weights) & np.isfinite(precisions)
    if not shown.any():
        raise ValueError("No rule has both a weight and a precision: there is nothing to draw.")
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(precisions[shown], weights[shown], color=OKABE_ITO[0])
    for place in np.flatnonzero(shown).tolist() if len(names) <= NAMED else []:
        # Towards the middle, so that no name leaves the picture.
        right = precisions[place] > np.median(precisions[shown])
        axes.annotate(
            short(names)[place],
            (precisions[place], weights[place]),
            fontsize=7,
            xytext=(-4 if right else 4, 2),
            textcoords="offset points",
            ha="right" if right else "left",
        )
    axes.set(xlabel="share of right votes", ylabel="learned weight where it votes", ylim=(0, None))
    return finished(figure, path)
