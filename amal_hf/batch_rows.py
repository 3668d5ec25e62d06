"""Which examples the rows of a batch are, and which of them count."""

import torch
from torch import Tensor

from amal_hf.shapes import EXAMPLE_ID, KEPT, Batch, ExampleIds


def ids_of(batch: Batch) -> ExampleIds:
    """The example ids of the rows of a batch that count."""
    return kept(all_ids_of(batch), batch)


def all_ids_of(batch: Batch) -> ExampleIds:
    """The example ids of all rows of a batch; -1 in a stream that has none."""
    if EXAMPLE_ID in batch:
        ids: Tensor = batch[EXAMPLE_ID]
        return ids
    first = next(value for value in batch.values() if isinstance(value, Tensor))
    return torch.full((len(first),), -1, device=first.device)


def kept(values: Tensor, batch: Batch) -> Tensor:
    """The rows that count, of values of all rows of a batch."""
    return values[: batch.get(KEPT, len(values))]
