"""Arrays that take long to make, kept in files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def kept_array(file: Path, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """What is in the file; made, and put there, if there is none. Several processes may ask at once."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{np.random.default_rng().integers(10**9)}.npy")
        np.save(unfinished, make())
        unfinished.rename(file)  # whole or not at all
    return np.asarray(np.load(file))
