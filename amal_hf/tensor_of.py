"""Whatever holds numbers, as a tensor."""

from typing import Any

import numpy as np
import torch
from datasets import Column
from torch import Tensor


def tensor_of(values: Any) -> Tensor:
    """An array, a tensor, lists, a table or a column of a dataset, as it is but for its graph, on the CPU.

    Args:
        values: tables of pandas go by the places of their rows, not by their names.

    Raises:
        TypeError, ValueError, RuntimeError: no numbers, or lists of several lengths.
    """
    if isinstance(values, Column):
        values = values[:]  # at once; row by row it takes twenty times as long
    return torch.as_tensor(values if isinstance(values, Tensor | np.ndarray) else np.array(values)).detach().cpu()
