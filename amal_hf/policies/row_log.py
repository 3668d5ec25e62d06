"""A `RowFile` in checkpoints: what changed since the last one is written, the rest is linked.

A checkpoint holds segments, files of row numbers and rows, oldest first; later ones count. A save writes one segment
of the rows that have changed, and makes hard links to the last checkpoint's others: every checkpoint is complete in
itself, whichever others are removed. Segments of less than twice the new one's rows are merged into it, so that there
are few of them, and a row is merged only as often as the table's size can be halved. Where more than a sixteenth of
the rows would have to be listed, or nothing can be linked, all rows that hold something are written.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from amal_hf.policies.row_file import BLOCK, RowFile


SEGMENTS = "weights-*.safetensors"
"""The names of segments."""


class Segment(NamedTuple):
    """A file of rows, and how many it holds."""

    path: Path
    rows: int


class RowLog:
    """Which rows have changed since the last checkpoint, and where all others are kept.

    Args:
        table: the rows themselves.
    """

    def __init__(self, table: RowFile) -> None:
        self.table = table
        self.segments: list[Segment] = []
        self._limit = max(len(table) // 16, 1)
        self._changed: np.ndarray | None = np.empty(0, np.int64)
        self._recent: list[np.ndarray] = []
        self._noted = 0

    @property
    def names(self) -> list[str]:
        """The files of the last checkpoint, oldest first."""
        return [segment.path.name for segment in self.segments]

    def note(self, rows: Tensor) -> None:
        """These rows have been written."""
        if self._changed is not None:
            self._recent.append(rows.cpu().numpy())
            self._noted += len(rows)
            if self._noted > self._limit:
                self._gather()

    def save(self, folder: str | Path) -> None:
        """Keep all rows in a checkpoint's folder.

        Raises:
            OSError, SafetensorError: it could not be written.
        """
        kept, changed = self._divided()
        first = 1 + int(self.names[-1].split("-")[1].split(".")[0]) if self.segments else 0
        parts: Iterable[Tensor]
        if changed is None or not _linked(kept, Path(folder)):
            kept = []
            parts = (self.table.written(start) for start in range(0, len(self.table), BLOCK))
        else:
            parts = [torch.from_numpy(changed)]
        written = [self._write(Path(folder), first + i, rows) for i, rows in enumerate(parts) if len(rows)]
        self.segments = [Segment(Path(folder, segment.path.name), segment.rows) for segment in kept] + written
        self._forget()

    def load(self, folder: str | Path, names: Sequence[str]) -> None:
        """Read the rows of a checkpoint into a fresh table."""
        self.segments = []
        for name in names:
            content = load_file(Path(folder, name))
            self.table[content["ids"]] = content["weights"]
            self.segments.append(Segment(Path(folder, name), len(content["ids"])))
        self._forget()

    def _divided(self) -> tuple[list[Segment], np.ndarray | None]:
        """The segments to be linked, and the rows to be written; `None` for all."""
        self._gather()
        kept, changed = list(self.segments), self._changed
        while changed is not None and kept and kept[-1].rows < 2 * len(changed):
            merged = _ids(kept.pop().path)
            changed = None if merged is None else _few(_distinct(changed, merged), self._limit)
        return kept, changed

    def _gather(self) -> None:
        if self._changed is not None:
            self._changed = _few(_distinct(self._changed, *self._recent), self._limit)
        self._recent, self._noted = [], 0

    def _forget(self) -> None:
        self._changed, self._recent, self._noted = np.empty(0, np.int64), [], 0

    def _write(self, folder: Path, number: int, rows: Tensor) -> Segment:
        path = folder / f"weights-{number:06d}.safetensors"
        # A file that stands there may be a link to that of another checkpoint: it is replaced, never written to.
        unfinished = path.with_suffix(".tmp")
        save_file({"ids": rows, "weights": self.table[rows]}, unfinished)
        os.replace(unfinished, path)
        return Segment(path, len(rows))


def _distinct(*parts: np.ndarray) -> np.ndarray:
    """Row numbers in order, each once. `np.unique` goes by hashes, which takes seventy times as long."""
    rows = np.sort(np.concatenate(parts))
    return rows[np.diff(rows, prepend=-1) != 0]


def _few(rows: np.ndarray, limit: int) -> np.ndarray | None:
    return rows if len(rows) <= limit else None


def _ids(path: Path) -> np.ndarray | None:
    """The row numbers of a segment; `None` where its checkpoint was removed."""
    try:
        with safe_open(path, "np") as opened:
            ids: np.ndarray = opened.get_tensor("ids")
    except (OSError, SafetensorError):
        return None
    return ids


def _linked(segments: Sequence[Segment], folder: Path) -> bool:
    """Whether all segments could be linked into a folder; not every file system can, nor are they sure to be there."""
    try:
        for segment in segments:
            target = folder / segment.path.name
            if target == segment.path:
                return False
            target.unlink(missing_ok=True)
            os.link(segment.path, target)
    except OSError:
        return False
    return True
