"""The matrix λ of a `LabelBlend`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from amal_hf.plots.style import finished, short


NUMBERED = 20
"""Labels up to which every share is written into its cell."""


def plot_blends(shares: NDArray[Any], names: Sequence[str], path: str | Path | None = None) -> Figure:
    """Draws λ of a `LabelBlend` for every pair of labels.

    Args:
        shares: (C, C), `policy.shares()`: the share of the first example, by its label (row) and its partner's.
        names: the C labels.
        path: the file to write, if any.

    Raises:
        ValueError: if there is not one name for each row and column.
    """
    shares = np.asarray(shares, dtype=np.float64)
    if shares.shape != (len(names), len(names)):
        raise ValueError(f"Expected a matrix of {len(names)} x {len(names)}, one row a name; got {shares.shape}.")
    side = min(1.6 + 0.6 * len(names), 14.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="cividis")
    axes.set(xlabel="label of the partner", ylabel="label of the example")
    axes.set_xticks(range(len(names)), short(names), rotation=45, ha="right")
    axes.set_yticks(range(len(names)), short(names))
    middle = (shares.min() + shares.max()) / 2
    for (row, column), share in np.ndenumerate(shares) if len(names) <= NUMBERED else []:
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", color="w" if share < middle else "k")
    figure.colorbar(image, label="share of the example (λ)")
    return finished(figure, path)
