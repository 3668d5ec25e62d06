"""Pictures of learned weights. Needs matplotlib (`pip install 'amal_hf[plots]'`); not imported by `amal_hf` itself.

Figures are built as objects, without pyplot, so that neither the backend nor any other global setting changes. The
losses are told apart by colour (the palette of Okabe and Ito, distinct to colour-blind eyes) and by line style, so
that a grey print can be read too.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray


OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that stay distinct for colour-blind readers; yellow is left out, being too pale for lines on white."""

_STYLES = ("-", "--", "-.", ":")
_MEAN = re.compile(r"weight_(.+)_mean")
_BINS = 30


def plot_weight_history(log_history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draws how the weights of each loss moved: their mean, and a band from their 10th to their 90th percentile.

    Args:
        log_history: `trainer.state.log_history`. Entries with `weight_{loss}_mean` also hold `weight_{loss}_p10`,
            `weight_{loss}_p90` and `step`; other entries are passed over.
        path: the file to write; its suffix (.png, .pdf, .svg) decides the format.

    Raises:
        ValueError: if no entry holds weights.
    """
    names = [match[1] for entry in log_history for match in map(_MEAN.fullmatch, entry) if match]
    losses = list(dict.fromkeys(names))
    if not losses:
        raise ValueError(
            f"None of the {len(log_history)} entries of the log history has weights (weight_<loss>_mean). "
            "Train with a method and let the trainer log."
        )
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for loss, colour, style in zip(losses, cycle(OKABE_ITO), cycle(_STYLES), strict=False):
        entries = [entry for entry in log_history if f"weight_{loss}_mean" in entry]
        steps = [entry["step"] for entry in entries]
        low, mean, high = ([entry[f"weight_{loss}_{part}"] for entry in entries] for part in ("p10", "mean", "p90"))
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        # Bands of several losses lie over each other; their edges keep them apart.
        axes.plot(steps, np.transpose([low, high]), color=colour, linestyle=style, linewidth=0.7)
        axes.plot(steps, mean, color=colour, linestyle=style, linewidth=1.8, label=loss)
    axes.set(xlabel="training step", ylabel="weight (mean, 10th to 90th percentile)", ylim=(0, None))
    _finish(axes, "loss")
    figure.savefig(path, dpi=200)


def plot_clean_against_flipped(
    weights: Mapping[str, NDArray[Any]], clean: NDArray[np.bool_], path: str | Path
) -> None:
    """Draws the weights of clean and of flipped examples over each other, one panel a loss.

    Each of the two histograms shows shares of its own group, so that groups of different size compare.

    Args:
        weights: the learned weights of each loss, (N,) each.
        clean: (N,) of bool, whether an example's label is right.
        path: the file to write; its suffix (.png, .pdf, .svg) decides the format.

    Raises:
        ValueError: if there is no loss, an array has another length than `clean`, or one group is empty.
    """
    clean = np.asarray(clean, dtype=bool)
    _check_groups(weights, clean)
    figure = Figure(figsize=(3.5 * len(weights), 3.2), layout="constrained")
    panels = figure.subplots(1, len(weights), squeeze=False, sharey=True)[0]
    for axes, (loss, values) in zip(panels, weights.items(), strict=True):
        _overlay(axes, np.asarray(values, dtype=np.float64), clean)
        axes.set(title=loss, xlabel="weight")
    panels[0].set_ylabel("share of the group")
    _finish(panels[-1], None)
    figure.savefig(path, dpi=200)


def _check_groups(weights: Mapping[str, NDArray[Any]], clean: NDArray[np.bool_]) -> None:
    lengths = {loss: len(values) for loss, values in weights.items()}
    if set(lengths.values()) != {len(clean)}:
        raise ValueError(f"Expected weights of {len(clean)} examples, as many as in clean, but came: {lengths}.")
    if clean.all() or not clean.any():
        raise ValueError(f"There is nothing to compare: {int(clean.sum())} of {len(clean)} examples are clean.")


def _overlay(axes: Axes, values: NDArray[np.float64], clean: NDArray[np.bool_]) -> None:
    edges = np.histogram_bin_edges(values, bins=_BINS)
    groups = (("clean label", clean, OKABE_ITO[0], "-"), ("flipped label", ~clean, OKABE_ITO[1], "--"))
    for name, members, colour, style in groups:
        shares = np.full(int(members.sum()), 1 / members.sum())
        common: dict[str, Any] = {"bins": edges, "weights": shares, "color": colour}
        axes.hist(values[members], histtype="stepfilled", alpha=0.3, **common)
        axes.hist(values[members], histtype="step", linestyle=style, linewidth=1.5, label=name, **common)


def _finish(axes: Axes, legend_title: str | None) -> None:
    """Adds the legend and takes the frame away on the sides that carry no scale."""
    axes.legend(title=legend_title, frameon=False)
    for panel in axes.figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
