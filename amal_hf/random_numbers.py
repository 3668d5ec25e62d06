"""Random numbers that leave those of the student alone, and the state of what its dropout draws from."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


@contextmanager
def put_back(gpus: Iterable[int] = ()) -> Iterator[None]:
    """Within the block the generators of Python, NumPy and torch may be used and seeded; then they are as before.

    Args:
        gpus: those whose generators are put back too, each of which has to be waited for.
    """
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """A collator or a transform may draw (for masking, say): within the block by this seed."""
    with put_back():
        # Not torch.manual_seed, which would reseed GPUs as well.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield


def generator_of(*key: object) -> torch.Generator:
    """One whose numbers are a function of the key alone, such as seed and example."""
    return torch.Generator().manual_seed(hash(key) % 2**63)


def randomness() -> list[Tensor]:
    """The state of all generators that dropout draws from: the CPU's, then those of all GPUs."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_randomness(states: list[Tensor]) -> None:
    """Restore `randomness`."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])
