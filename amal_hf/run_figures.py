"""Pictures of a finished run, as far as its data allow."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amal_hf.loggers import logger_of
from amal_hf.run_record import RunRecord


if TYPE_CHECKING:
    from matplotlib.figure import Figure


logger = logger_of(__name__)

TRAINING_TEXTS = "data"
"""Folder among the figures for those that show training texts; it is not published."""


class Picture(NamedTuple):
    """A figure, the name of its file, and what it shows in words.

    Those that show training texts lie in a folder of their own.
    """

    name: str
    figure: "Figure"
    caption: str


_MEDIAN_WEIGHT = re.compile(r"weight_.+_p50")


def write_figures(record: RunRecord, folder: Path, weighs: bool = True) -> list[Path]:
    """Write all pictures as PNG; says so once where matplotlib is missing.

    Args:
        record: of the run.
        folder: where; made if need be.
        weighs: whether weights differ, so that there is something to draw of them.
    """
    if not can_draw():
        logger.warning("No figures are written: they need matplotlib (pip install 'amal_hf[plots]').")
        return []
    files: dict[str, Path] = {}
    for picture in pictures(record, weighs):
        name = picture.name
        while name.lower() in files:  # many a disk does not tell A from a
            name += "_2"
        file = files[name.lower()] = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.figure.savefig(file, dpi=150)
    return list(files.values())


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def pictures(record: RunRecord, weighs: bool = True) -> Iterator[Picture]:
    """One after the other, as far as there is something to draw; those of weights where these differ."""
    if weighs:
        yield from _weights(record)
    yield from _changes(record)


def _weights(record: RunRecord) -> Iterator[Picture]:
    from amal_hf import plots

    if any(_MEDIAN_WEIGHT.fullmatch(name) for entry in record.log_history for name in entry):
        yield Picture(
            "weights", plots.plot_weight_history(record.log_history), "The weights of each loss over training"
        )
    seen = {name: np.isfinite(values).any() for name, values in record.weights.items()}
    weights = {name: values for name, values in record.weights.items() if seen[name]}
    if weights:
        yield from _against(record, weights)
        yield from _clean_and_flipped(record, weights)
    yield from _rules(record)


def _against(record: RunRecord, weights: dict[str, Any]) -> Iterator[Picture]:
    from amal_hf import plots

    known = {name: values for name, values in weights.items() if _share_both(values, record.losses[name])}
    if known:
        losses = {name: record.losses[name] for name in known}
        caption = "The weights of each loss against its value when an example was last trained on"
        yield Picture("weight_against_loss", plots.plot_weight_against_loss(known, losses), caption)
    for teacher, agreement in record.teachers.items():
        known = {name: values for name, values in weights.items() if _share_both(values, agreement)}
        if known:
            figure = plots.plot_weight_against_agreement(known, agreement)
            caption = f"The weights of each loss against the probability that {teacher} gives to the label"
            yield Picture(f"weight_against_{_file_name(teacher)}", figure, caption)


def _clean_and_flipped(record: RunRecord, weights: dict[str, Any]) -> Iterator[Picture]:
    from amal_hf import plots

    if record.truth is None or record.labels is None:
        return
    known = (record.truth >= 0) & (record.labels >= 0)
    known &= np.any([np.isfinite(values) for values in weights.values()], axis=0)
    clean = record.truth[known] == record.labels[known]
    if len(clean) and not clean.all() and clean.any():
        figure = plots.plot_clean_against_flipped({name: values[known] for name, values in weights.items()}, clean)
        yield Picture("clean_against_flipped", figure, "The weights of examples whose label is right, and is wrong")


def _rules(record: RunRecord) -> Iterator[Picture]:
    from amal_hf import plots

    entries = record.rule_summaries()
    precision, lift = (np.array([getattr(entry, part) for entry in entries]) for part in ("precision", "lift"))
    if np.isfinite(precision + lift).any():
        figure = plots.plot_rule_weights(lift, precision, [entry.name for entry in entries])
        yield Picture(
            "rules", figure, "How far every rule has come to be believed, and how many of its votes are right"
        )


def _changes(record: RunRecord) -> Iterator[Picture]:
    from amal_hf import plots

    if record.shares is not None:
        figure = plots.plot_blends(record.shares, record.classes)
        yield Picture("blends", figure, "The share of an example in its blends, by its label and its partner's")
    if record.masked:
        figure = plots.plot_masks([text for text, _ in record.masked], [mask for _, mask in record.masked])
        yield Picture(f"{TRAINING_TEXTS}/masks", figure, "Texts; the darker a word, the more of it is kept")


def _share_both(values: NDArray[Any], others: NDArray[Any]) -> bool:
    return bool((np.isfinite(values) & np.isfinite(others)).any())


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)[:50]  # a disk takes 255 bytes, and a letter up to four of them
