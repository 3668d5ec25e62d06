"""Texts under a `TokenMask`."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amal_hf.plots.style import OKABE_ITO, finished


_LINE = 120  # characters


def plot_masks(
    texts: Sequence[Sequence[str]], masks: Sequence[Sequence[float]], path: str | Path | None = None
) -> Figure:
    """Draws texts whose words are the darker the more of them a `TokenMask` keeps.

    Args:
        texts: the tokens of each text.
        masks: what is kept of each token, in [0, 1].
        path: the file to write, if any.

    Raises:
        ValueError: if a text and its mask differ in length.
    """
    lengths = [(len(text), len(mask)) for text, mask in zip(texts, masks, strict=True)]
    if any(tokens != values for tokens, values in lengths):
        raise ValueError(f"Expected one value for each token; got (tokens, values) {lengths}.")
    blocks = [_lines(list(zip(text, mask, strict=True))) for text, mask in zip(texts, masks, strict=True)]
    height = sum(len(lines) + 0.5 for lines in blocks) + 1.5
    figure = Figure(figsize=(9, 0.3 * height + 0.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, _LINE), ylim=(height - 1.5, -2.5))
    axes.axis("off")
    _draw_line(axes, [("kept:", 0.0), *((f"{share:.0%}", share) for share in (0, 0.25, 0.5, 0.75, 1))], -1.5)
    row = 0.0
    for lines in blocks:
        for line in lines:
            _draw_line(axes, line, row)
            row += 1
        row += 0.5
    return finished(figure, path)


def _draw_line(axes: Axes, line: list[tuple[str, float]], row: float) -> None:
    column = 1
    for token, kept in line:
        box = {"facecolor": OKABE_ITO[5], "alpha": min(float(kept), 1.0), "edgecolor": "none", "pad": 1.5}
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
