"""Batches that do not come out even over the processes.

Accelerate fills the last batch of an epoch up with rows from its beginning, so that every process has one. Such rows
have been trained on already: they are passed through the student, as all processes must take part, and count for
nothing, in losses, weights and numbers of examples. They are always the last of their batch.
"""

from typing import Any

from accelerate.utils import find_batch_size, slice_tensors

from amal_hf.processes import process_count
from amal_hf.shapes import KEPT, Batch


def fills_up(args: Any) -> bool:
    """Whether Accelerate makes the last batch of an epoch full under these arguments of a run."""
    return process_count() > 1 and not (args.dataloader_drop_last or args.train_sampling_strategy == "batch_rebalance")


def without_repeats(batch: Batch, real: int, rank: int) -> Batch:
    """A process's part of a batch that has only `real` rows of its own over all processes, told which these are."""
    rows = find_batch_size(batch)
    return {**batch, KEPT: min(max(real - rank * rows, 0), rows)}


def own_part(batch: Batch, rank: int, count: int) -> Batch:
    """What one of `count` processes takes of a batch that all of them hold.

    One without any row takes the first, for company.
    """
    if count == 1:
        return batch
    rows = find_batch_size(batch)
    start, end = rank * rows // count, (rank + 1) * rows // count
    part: dict[str, Any] = slice_tensors(dict(batch), slice(start, end) if end > start else slice(0, 1))
    return {**part, KEPT: end - start}


def rows_of_last_batch(examples: int | None, loader: Any, batch_size: int) -> int:
    """Rows of its own that the last batch of an epoch has over all processes.

    Args:
        examples: in an epoch; `None` for a stream, whose batches are made by the first process, which then says so.
        loader: Accelerate's.
        batch_size: of a full batch over all processes.
    """
    if examples is None:
        return loader.remainder if loader.remainder > 0 else batch_size
    return examples % batch_size or batch_size
