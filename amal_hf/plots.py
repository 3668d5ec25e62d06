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
_LINE = 120  # characters


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


def plot_blends(shares: NDArray[Any], names: Sequence[str], path: str | Path) -> None:
    """Draws λ of a `LabelBlend` for every pair of labels.

    Args:
        shares: (C, C), `policy.shares()`: the share of the first example, by its label (row) and its partner's.
        names: the C labels.
        path: the file to write.

    Raises:
        ValueError: if there is not one name for each row and column.
    """
    shares = np.asarray(shares, dtype=np.float64)
    if shares.shape != (len(names), len(names)):
        raise ValueError(f"Expected a matrix of {len(names)} x {len(names)}, one row a name; got {shares.shape}.")
    side = 1.6 + 0.6 * len(names)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="cividis")
    axes.set(xlabel="label of the partner", ylabel="label of the example")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    middle = (shares.min() + shares.max()) / 2
    for (row, column), share in np.ndenumerate(shares):
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", color="w" if share < middle else "k")
    figure.colorbar(image, label="share of the example (λ)")
    figure.savefig(path, dpi=200)


def plot_masks(texts: Sequence[Sequence[str]], masks: Sequence[Sequence[float]], path: str | Path) -> None:
    """Draws texts whose words are the darker the more of them a `TokenMask` keeps.

    Args:
        texts: the tokens of each text.
        masks: what is kept of each token, in [0, 1].
        path: the file to write.

    Raises:
        ValueError: if a text and its mask differ in length.
    """
    lengths = [(len(text), len(mask)) for text, mask in zip(texts, masks, strict=True)]
    if any(tokens != values for tokens, values in lengths):
        raise ValueError(f"Expected one value for each token; got (tokens, values) {lengths}.")
    blocks = [_lines(list(zip(text, mask, strict=True))) for text, mask in zip(texts, masks, strict=True)]
    height = sum(len(lines) + 0.5 for lines in blocks)
    figure = Figure(figsize=(9, 0.3 * height + 0.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, _LINE), ylim=(height, -1))
    axes.axis("off")
    row = 0.0
    for lines in blocks:
        for line in lines:
            _draw_line(axes, line, row)
            row += 1
        row += 0.5
    figure.savefig(path, dpi=200)


def plot_rule_weights(weights: NDArray[Any], precisions: NDArray[Any], names: Sequence[str], path: str | Path) -> None:
    """Draws the learned weight of every rule against how often it is right.

    Args:
        weights: (m,) mean weight where a rule votes.
        precisions: (m,) share of right votes; rules for which either is NaN are left out.
        names: the m rules; written beside their points if there are at most 20.
        path: the file to write.

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
    for place in np.flatnonzero(shown).tolist() if len(names) <= 20 else []:
        axes.annotate(
            names[place], (precisions[place], weights[place]), fontsize=7, xytext=(4, 2), textcoords="offset points"
        )
    axes.set(xlabel="share of right votes", ylabel="learned weight where it votes", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=200)


def _draw_line(axes: Axes, line: list[tuple[str, float]], row: float) -> None:
    column = 1
    for token, kept in line:
        box = {"facecolor": OKABE_ITO[5], "alpha": float(kept), "edgecolor": "none", "pad": 1.5}
        axes.text(column, row, token, family="monospace", fontsize=8, va="center", bbox=box)
        column += len(token) + 1


def _lines(tokens: list[tuple[str, float]]) -> list[list[tuple[str, float]]]:
    """The tokens of a text, cut where a line of the figure is full."""
    lines: list[list[tuple[str, float]]] = [[]]
    for token, kept in tokens:
        if sum(len(word) + 1 for word, _ in lines[-1]) + len(token) > _LINE - 2:
            lines.append([])
        lines[-1].append((token, kept))
    return lines


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
