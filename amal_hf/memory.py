"""What to do where a meta step does not fit into memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def memory_advice() -> Iterator[None]:
    """Within the block an error for want of memory gets a note of the settings to lower.

    The error itself stays as it was, so that `auto_find_batch_size` knows it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if _is_out_of_memory(error):
            error.add_note(
                "amal_hf: memory ran out in a meta step. Besides a smaller per_device_train_batch_size, lower "
                "meta_batch_size, switch activation checkpointing on, or use amal(tangent=LastLayer()), which only "
                "moves the output layer. Methods with a trajectory take fewer steps: Trajectory(steps=...). "
                "A larger meta_interval takes fewer meta steps; each needs as much memory."
            )
        raise


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    # The CPU's allocator has no class of its own.
    words = ("out of memory", "not enough memory", "can't allocate memory")
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(part in str(error) for part in words)
