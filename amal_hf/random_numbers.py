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


def randomness(device: torch.device) -> list[Tensor]:
    """The state of all generators that dropout on a device draws from: the CPU's and, of a GPU, its own."""
    own = [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state(device)]
    return [torch.get_rng_state(), *own]


def set_randomness(states: list[Tensor], device: torch.device) -> None:
    """Restore `randomness`."""
    torch.set_rng_state(states[0])
    if device.type != "cpu" and len(states) > 1:  # a trajectory that began on a CPU has no more
        torch.get_device_module(device).set_rng_state(states[1], device)


@contextmanager
def put_back_on(device: torch.device) -> Iterator[None]:
    """Within the block dropout on a device may draw; then its generators are as before. No other GPU is touched."""
    before = randomness(device)
    try:
        yield
    finally:
        set_randomness(before, device)
