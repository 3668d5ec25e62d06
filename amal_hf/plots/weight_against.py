"""Weights against something else that is known of every example: what the teacher holds of its label, or its loss."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from amal_hf.plots.style import Look, finished, looks, panels


BINS = 10
"""Groups of examples that quantiles are taken of."""

POINTS = 1500
"""Examples shown as points; more would hide one another."""


def plot_weight_against_agreement(
    weights: Mapping[str, NDArray[Any]], agreement: NDArray[Any], path: str | Path | None = None
) -> Figure:
    """Draws the weights of each loss against how far the teacher agrees with the label.

    Args:
        weights: of each loss, `(N,)`.
        agreement: `(N,)` the teacher's probability of the example's label, in [0, 1].
        path: the file to write, if any.

    Raises:
        ValueError: arrays of different lengths, or no example that has both.
    """
    values = np.asarray(agreement, dtype=np.float64)
    return _against(weights, dict.fromkeys(weights, values), "teacher's probability of the label", path)


def plot_weight_against_loss(
    weights: Mapping[str, NDArray[Any]], losses: Mapping[str, NDArray[Any]], path: str | Path | None = None
) -> Figure:
    """Draws the weights of each loss against the loss itself.

    Args:
        weights: of each loss, `(N,)`.
        losses: the value of the same losses, `(N,)` each.
        path: the file to write, if any.

    Raises:
        ValueError: other losses than weights, arrays of different lengths, or no example that has both.
    """
    if list(losses) != list(weights):
        raise ValueError(f"Expected the values of the losses {list(weights)}, but came those of {list(losses)}.")
    return _against(weights, losses, "loss", path)


def _against(
    weights: Mapping[str, NDArray[Any]], others: Mapping[str, NDArray[Any]], xlabel: str, path: str | Path | None
) -> Figure:
    if not weights:
        raise ValueError("There is no loss to draw: weights is empty.")
    figure, grid = panels(len(weights), 3.4, 3.2)
    for axes, (loss, values), look in zip(grid, weights.items(), looks(), strict=False):
        x, y = np.asarray(others[loss], dtype=np.float64), np.asarray(values, dtype=np.float64)
        if x.shape != y.shape:
            raise ValueError(f"'{loss}' has weights of shape {y.shape}, and what they are drawn against {x.shape}.")
        known = np.isfinite(x) & np.isfinite(y)
        if not known.any():
            raise ValueError(f"No example has both a weight of '{loss}' and its {xlabel}: there is nothing to draw.")
        _draw(axes, x[known], y[known], look)
        axes.set(title=loss, xlabel=xlabel)
    grid[0].set(ylabel="weight", ylim=(0, None))
    return finished(figure, path, grid[0])


def _draw(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], look: Look) -> None:
    """Some of the examples as points, and quantiles of equally many examples each."""
    shown = np.random.default_rng(0).permutation(len(x))[:POINTS]
    axes.scatter(x[shown], y[shown], s=4, color="0.55", alpha=0.35, linewidths=0, rasterized=True, label="examples")
    groups = np.array_split(np.argsort(x, kind="stable"), min(BINS, len(x)))
    places = [np.median(x[group]) for group in groups]
    low, middle, high = np.transpose([np.quantile(y[group], (0.25, 0.5, 0.75)) for group in groups])
    axes.fill_between(places, low, high, color=look.colour, alpha=0.3, linewidth=0, label="middle 50 %")
    axes.plot(places, middle, color=look.colour, marker=look.marker, markersize=4, linewidth=1.8, label="median")
