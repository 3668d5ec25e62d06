"""What the compared methods reach, and how long they train for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from amal_hf.plots.style import finished, looks


class Curve(NamedTuple):
    """One run: its accuracies, in [0, 1], after so many seconds of training; a single point where only the end counts.

    Attributes:
        seconds: `(n,)`.
        accuracies: `(n,)`.
        interval: low and high of the last accuracy, if known.
    """

    seconds: NDArray[Any] | list[float]
    accuracies: NDArray[Any] | list[float]
    interval: tuple[float, float] | None = None


def plot_accuracy_against_seconds(curves: Mapping[str, Curve], path: str | Path | None = None) -> Figure:
    """Draws the accuracy of compared methods against the seconds that they have trained.

    Args:
        curves: by the method's name.
        path: the file to write, if any.

    Raises:
        ValueError: no method, or not as many seconds as accuracies.
    """
    lengths = {name: (len(curve.seconds), len(curve.accuracies)) for name, curve in curves.items()}
    if not curves or any(seconds != accuracies or not seconds for seconds, accuracies in lengths.values()):
        raise ValueError(f"Expected methods with as many seconds as accuracies, one or more; came: {lengths}.")
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for (name, curve), look in zip(curves.items(), looks(), strict=False):
        accuracies = 100 * np.asarray(curve.accuracies, dtype=np.float64)
        axes.plot(curve.seconds, accuracies, look.line, color=look.colour, marker=look.marker, label=name)
        if curve.interval is not None:
            ends = np.abs(100 * np.array(curve.interval) - accuracies[-1])[:, None]
            axes.errorbar(curve.seconds[-1], accuracies[-1], ends, color=look.colour, capsize=3)
    axes.set(xlabel="seconds of training", ylabel="accuracy (%)", xlim=(0, None))
    axes.grid(axis="y", linewidth=0.4, color="0.85")
    return finished(figure, path, axes, "outside right upper")
