"""Rules: how much more they have come to be believed, against how often they are right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from amal_hf.plots.style import OKABE_ITO, finished, short


NAMED = 20
"""Rules up to which each has a number beside its point; names would run over one another."""


def plot_rule_weights(
    lifts: NDArray[Any], precisions: NDArray[Any], names: Sequence[str], path: str | Path | None = None
) -> Figure:
    """Draws the weight of every rule, as a multiple of its initial one, against how often it is right.

    Args:
        lifts: (m,) mean multiple where a rule votes, as `RuleSummary.lift`.
        precisions: (m,) share of right votes; rules for which either is NaN are left out.
        names: the m rules. Up to 20 are numbered, the most believed first, with their names beside the picture.
        path: the file to write, if any.

    Raises:
        ValueError: if the lengths differ or no rule is left.
    """
    lifts, precisions = np.asarray(lifts, dtype=np.float64), np.asarray(precisions, dtype=np.float64)
    if lifts.shape != precisions.shape or lifts.shape != (len(names),):
        raise ValueError(f"Expected {len(names)} lifts and precisions, got {lifts.shape} and {precisions.shape}.")
    shown = np.isfinite(lifts) & np.isfinite(precisions)
    if not shown.any():
        raise ValueError("No rule has both a weight and a precision: there is nothing to draw.")
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color="0.8", linewidth=1)
    axes.scatter(precisions[shown], lifts[shown], color=OKABE_ITO[0])
    axes.set(xlabel="share of right votes", ylabel="weight / initial weight, where it votes", ylim=(0, None))
    if shown.sum() <= NAMED:
        ranked = sorted(np.flatnonzero(shown).tolist(), key=lambda place: -lifts[place])
        for number, place in enumerate(ranked, 1):
            point = (precisions[place], lifts[place])
            axes.annotate(str(number), point, fontsize=8, xytext=(4, 3), textcoords="offset points")
        key = [f"{number}  {short(names)[place]}" for number, place in enumerate(ranked, 1)]
        axes.annotate("\n".join(key), (1.03, 1), xycoords="axes fraction", fontsize=8, va="top", linespacing=1.5)
    return finished(figure, path)
