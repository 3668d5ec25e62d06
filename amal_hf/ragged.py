"""Batches that do not come out even over the processes.

Accelerate fills the last batch of an epoch up with rows from its beginning, so that every process has one. Such rows
have been trained on already: they are passed through the student, as all processes must take part, and count for
nothing, in losses, weights and numbers of examples. They are always the last of their batch.
"""

from collections.abc import Iterator
from typing import Any

from accelerate.data_loader import IterableDatasetShard
from accelerate.utils import find_batch_size, slice_tensors
from torch.utils.data import IterableDataset

from amal_hf.processes import process_count, process_rank
from amal_hf.shapes import KEPT, REPEATED, Batch


def fills_up(args: Any) -> bool:
    """Whether Accelerate makes the last batch of an epoch full under these arguments of a run."""
    return process_count() > 1 and not (args.dataloader_drop_last or args.train_sampling_strategy == "batch_rebalance")


def without_repeats(batch: Batch, accelerator: Any, batch_size: int, examples: int | None) -> Batch:
    """A batch as it came from Accelerate's loader; the last of an epoch is told how many of its rows count.

    Args:
        batch: this process's.
        accelerator: Accelerate's; its loader is at this batch.
        batch_size: of the loader.
        examples: in an epoch; `None` for a stream.
    """
    state = accelerator.gradient_state
    if KEPT in batch or not state.end_of_dataloader:
        return batch
    every = batch_size if accelerator.split_batches else batch_size * process_count()
    rows = find_batch_size(batch)
    before = process_rank() * rows
    real = rows_of_last_batch(examples, state.active_dataloader, every)
    return {**batch, KEPT: min(max(real - before, 0), rows)}


def own_part(batch: Batch) -> dict[str, Any]:
    """What this process takes of a batch that all of them hold. One without any row takes the first, for company."""
    rank, count = process_rank(), process_count()
    if count == 1:
        return dict(batch)
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


class FilledStream(IterableDataset[dict[str, Any]]):
    """A stream that fills its last batch up by itself, and marks the rows that it repeats.

    Where every process reads the whole stream to take its own rows (`dispatch_batches=False`), nobody could tell else.

    Args:
        rows: the stream.
        batch_size: of a batch over all processes.
    """

    def __init__(self, rows: Any, batch_size: int) -> None:
        self.rows = rows
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        first: list[dict[str, Any]] = []
        count = 0
        for row in self.rows:
            if count < self.batch_size:
                first.append(row)
            count += 1
            yield {**row, REPEATED: False}
        for number in range(-count % self.batch_size):
            yield {**first[number % len(first)], REPEATED: True}

    def set_epoch(self, epoch: int) -> None:
        """Passed on, where the stream wants to know."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)


def filled(loader: Any) -> Any:
    """A loader of Accelerate's, whose stream marks the rows that it repeats if every process reads all of it."""
    part = loader.dataset
    if isinstance(part, IterableDatasetShard) and not part.drop_last:
        part.dataset = FilledStream(part.dataset, part.batch_size * (1 if part.split_batches else part.num_processes))
    return loader
