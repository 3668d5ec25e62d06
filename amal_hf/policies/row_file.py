"""A table that is a file: for more rows than memory should hold.

The file is sparse. What is kept is the difference to the fill, bit by bit (XOR), so that a hole in the file, which
costs nothing and reads as zeros, is a row that holds the fill.
"""

import mmap
import os
import shutil
import tempfile
from io import FileIO

import numpy as np
import torch
from torch import Tensor


BLOCK = 2**22
"""Rows that are looked at together, where all are."""


class RowFile:
    """`(N, K)` fp32 numbers in a file without a name, which is gone with the process, however that ends.

    Rows are read through a memory map: pages of it are the system's to take back. They are written by system calls,
    as a full disk is then an error, where the map would end the process.

    Args:
        rows: N.
        fill: `(K,)` what every row holds at first.
        folder: on which disk; the system's folder for temporary files by default.

    Raises:
        OSError: the disk has no room for all rows, should all be written.
    """

    def __init__(self, rows: int, fill: Tensor, folder: str | None) -> None:
        self.fill = fill.detach().cpu().float().numpy().view(np.int32)
        folder = folder or tempfile.gettempdir()
        os.makedirs(folder, exist_ok=True)
        size = rows * self.fill.nbytes
        _check_room(folder, size)
        self._folder = folder
        self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115
        self._file.truncate(size)
        pages = mmap.mmap(self._file.fileno(), size)
        if hasattr(pages, "madvise"):  # not under Windows
            pages.madvise(mmap.MADV_RANDOM)  # or the pages around each row would be read with it
        self._bits = np.frombuffer(pages, np.int32).reshape(rows, len(self.fill))

    def __len__(self) -> int:
        return len(self._bits)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Rows by number, `(B, K)`."""
        return self._numbers(self._bits[rows.cpu().numpy()]).to(rows.device)

    def __setitem__(self, rows: Tensor, values: Tensor) -> None:
        """Replace rows; of a number that stands there twice one of the values is kept."""
        numbers, first = np.unique(rows.cpu().numpy(), return_index=True)
        bits = values.detach().cpu().float().numpy()[first].view(np.int32) ^ self.fill
        width = self.fill.nbytes
        starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
        try:
            for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
                _write(self._file, bits[start:end].tobytes(), int(numbers[start]) * width)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: the weights of the examples could not be written to {self._folder}. Resume from "
                f"the last checkpoint with more room, there or elsewhere: AMALArguments(weights_dir=...).",
            ) from error

    def block(self, start: int) -> Tensor:
        """`BLOCK` rows from `start`, fewer at the end."""
        return self._numbers(self._bits[start : start + BLOCK])

    def written(self, start: int) -> Tensor:
        """Which rows of the block from `start` hold something else than the fill."""
        return torch.from_numpy(start + np.flatnonzero(self._bits[start : start + BLOCK].any(1)))

    def _numbers(self, bits: np.ndarray) -> Tensor:
        return torch.from_numpy((bits ^ self.fill).view(np.float32))


def _check_room(folder: str, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            f"The weights of all examples may take {size / 2**20:.0f} MB, and {folder} has {free / 2**20:.0f} MB "
            f"left. Name a folder with more room: AMALArguments(weights_dir=...)."
        )


def _write(file: FileIO, content: bytes, place: int) -> None:
    """A write may stop half-way, and where it can write nothing at all it says why. `os.pwrite` is not everywhere."""
    file.seek(place)
    while content:
        content = content[file.write(content) :]
