"""What all pictures share: a palette that colour-blind eyes and grey prints tell apart, and how a figure is ended.

Figures are built as objects, without pyplot, so that neither the backend nor any other global setting changes.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text


OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that stay distinct for colour-blind readers (the palette of Okabe and Ito).

Yellow is left out, being too pale for lines on white.
"""

PANEL_COLUMNS = 4
"""Panels beside one another; more go on in the next row."""

_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


Place: TypeAlias = Literal["outside lower center", "outside right upper"]
"""Of a legend: outside the panels, so that it never covers what they show."""


class Look(NamedTuple):
    """Colour, line and marker of one of several things in a picture; each differs, for a print without colour."""

    colour: str
    line: str
    marker: str


def looks() -> Iterator[Look]:
    """One after the other, without end."""
    return map(Look, cycle(OKABE_ITO), cycle(_LINES), cycle(_MARKERS))


def panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of a common vertical scale, each `width` by `height` inches."""
    columns = min(count, PANEL_COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, 4.0), height * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]


def finished(
    figure: Figure, path: str | Path | None, legend: Axes | None = None, place: Place = "outside lower center"
) -> Figure:
    """Take the frame away on the sides that carry no scale, add a legend, write the file if there is a path.

    Args:
        figure: as drawn.
        path: of the file, if any.
        legend: a panel with everything that the legend is to name.
        place: of the legend.
    """
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    if legend is not None:
        handles, names = legend.get_legend_handles_labels()
        beside = 2 if figure.get_figwidth() < 5 else len(names)
        columns = beside if place == "outside lower center" else 1
        figure.legend(handles, names, loc=place, ncols=columns, frameon=False, fontsize="small")
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # names are no formulas, whatever dollars they hold
    if path is not None:
        figure.savefig(path, dpi=200)
    return figure


def short(names: Sequence[str], length: int = 24) -> list[str]:
    """Names with their middle left out where they would run over their neighbours; their ends tell them apart."""
    half = length // 2
    return [name if len(name) <= length else f"{name[:half]}…{name[1 - half :]}" for name in names]
