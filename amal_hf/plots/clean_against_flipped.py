"""Weights of examples whose label is right over those of examples whose label is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from amal_hf.plots.style import OKABE_ITO, finished, panels


BINS = 30


def plot_clean_against_flipped(
    weights: Mapping[str, NDArray[Any]], clean: NDArray[np.bool_], path: str | Path | None = None
) -> Figure:
    """Draws the weights of clean and of flipped examples over each other, one panel a loss.

    Each of the two histograms shows shares of its own group, so that groups of different size compare.

    Args:
        weights: the weights of each loss, (N,) each; NaN for examples without it.
        clean: (N,) of bool, whether an example's label is right.
        path: the file to write, if any.

    Raises:
        ValueError: if there is no loss, an array has another length than `clean`, or one group is empty.
    """
    clean = np.asarray(clean, dtype=bool)
    _check_groups(weights, clean)
    figure, grid = panels(len(weights), 3.5, 3.2)
    for axes, (loss, values) in zip(grid, weights.items(), strict=True):
        known = np.isfinite(values)
        _overlay(axes, np.asarray(values, dtype=np.float64)[known], clean[known])
        axes.set(title=loss, xlabel="weight")
    grid[0].set_ylabel("share of the group")
    return finished(figure, path, grid[0])


def _check_groups(weights: Mapping[str, NDArray[Any]], clean: NDArray[np.bool_]) -> None:
    lengths = {loss: len(values) for loss, values in weights.items()}
    if set(lengths.values()) != {len(clean)}:
        raise ValueError(f"Expected weights of {len(clean)} examples, as many as in clean, but came: {lengths}.")
    if clean.all() or not clean.any():
        raise ValueError(f"There is nothing to compare: {int(clean.sum())} of {len(clean)} examples are clean.")


def _overlay(axes: Axes, values: NDArray[np.float64], clean: NDArray[np.bool_]) -> None:
    edges = np.histogram_bin_edges(values, bins=BINS)
    groups = (("clean label", clean, OKABE_ITO[0], "-", ""), ("flipped label", ~clean, OKABE_ITO[1], "--", "////"))
    for name, members, colour, style, hatch in groups:
        shares = np.full(int(members.sum()), 1 / max(members.sum(), 1))
        common: dict[str, Any] = {"bins": edges, "weights": shares, "color": colour}
        axes.hist(values[members], histtype="stepfilled", alpha=0.3, **common)
        axes.hist(values[members], histtype="step", linestyle=style, linewidth=1.5, hatch=hatch, label=name, **common)
