"""How the weights of each loss moved."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amal_hf.plots.style import Look, finished, looks, panels


_MEDIAN = re.compile(r"weight_(.+)_p50")


def plot_weight_history(log_history: Sequence[Mapping[str, Any]], path: str | Path | None = None) -> Figure:
    """Draws the quantiles of each loss's weights over training, one panel a loss.

    The line is the median; the dark band holds the middle half of the examples, the light one the middle 80 %. Dots
    mark the mean, which the mixture as a whole follows.

    Args:
        log_history: `trainer.state.log_history`. Entries with `weight_{loss}_p50` also hold `_p10`, `_p25`, `_p75`,
            `_p90`, `_mean` and `step`; other entries are passed over.
        path: the file to write, if any.

    Raises:
        ValueError: if no entry holds weights.
    """
    names = [match[1] for entry in log_history for match in map(_MEDIAN.fullmatch, entry) if match]
    losses = list(dict.fromkeys(names))
    if not losses:
        raise ValueError(
            f"None of the {len(log_history)} entries of the log history has weights (weight_<loss>_p50). "
            "Train with a method and let the trainer log."
        )
    figure, grid = panels(len(losses), 3.4, 3.2)
    for axes, loss, look in zip(grid, losses, looks(), strict=False):
        _draw(axes, [entry for entry in log_history if f"weight_{loss}_p50" in entry], loss, look)
        axes.set(title=loss, xlabel="training step")
    grid[0].set(ylabel="weight", ylim=(0, None))
    return finished(figure, path, grid[0])


def _draw(axes: Axes, entries: Sequence[Mapping[str, Any]], loss: str, look: Look) -> None:
    steps = [entry["step"] for entry in entries]

    def of(part: str) -> list[float]:
        return [entry[f"weight_{loss}_{part}"] for entry in entries]

    axes.fill_between(steps, of("p10"), of("p90"), color=look.colour, alpha=0.18, linewidth=0, label="middle 80 %")
    axes.fill_between(steps, of("p25"), of("p75"), color=look.colour, alpha=0.35, linewidth=0, label="middle 50 %")
    # Edges, since a pale band is lost on a grey print.
    axes.plot(steps, np.transpose([of("p10"), of("p90")]), color=look.colour, linewidth=0.6)
    axes.plot(steps, of("p50"), color=look.colour, linewidth=2, label="median")
    axes.plot(steps, of("mean"), color="k", linestyle="none", marker=".", markersize=3, label="mean")
