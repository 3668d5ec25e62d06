"""Features of rows and their labels, checked."""

from typing import Any

import torch
from torch import Tensor

from amal_hf.tensor_of import tensor_of


LEAST_VARIANCE = 1e-12
"""Added to that of a row: more than rounding leaves where numbers are alike, and next to nothing beside the 1e-6 of
probabilities of a thousand classes."""


def read_labelled(reader: str, name: str, features: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Features `(N, d)`, as precise as numbers are by default, and class numbers `(N,)`, on the CPU.

    Args:
        reader: the function that was called, for messages.
        name: what it calls these features.
        features: whatever `tensor_of` reads.
        labels: the same; negative for none.

    Raises:
        TypeError: what is no array of numbers.
        ValueError: other shapes, or features that are not finite.
    """
    try:
        rows = tensor_of(features).to(torch.get_default_dtype())
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{reader}: {name} must be an array, a tensor, a table or lists of numbers, got "
            f"{type(features).__name__}. embed_texts(texts, encoder, tokenizer) makes features."
        ) from error
    given = read_labels(reader, f"labels of {name}", labels)
    if rows.ndim != 2 or given.shape != rows.shape[:1]:
        raise ValueError(
            f"{reader}: {name} must be (N, d), and their labels (N,); got {tuple(rows.shape)} and "
            f"{tuple(given.shape)}. Both are of the same rows, in their order."
        )
    if not bool(rows.isfinite().all()):
        bad = (~rows.isfinite().all(1)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"{reader}: {name} must be finite; those of {len(bad)} rows are not, the first is {bad[0]}. Embed "
            f"the texts in fp32."
        )
    return rows, given


def read_labels(reader: str, name: str, labels: Any) -> Tensor:
    """Class numbers `(N,)`, on the CPU.

    Args:
        reader: the function that was called, for messages.
        name: what it calls these labels.
        labels: whatever `tensor_of` reads; negative for none.

    Raises:
        TypeError: what is no array of numbers.
        ValueError: several a row, or numbers with a fraction.
    """
    try:
        given = tensor_of(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{reader}: {name} must be whole numbers, one a row, and some are not: names of classes, or None. "
            f"dataset.class_encode_column makes numbers of names; after it, dataset.map can write -100 for no label."
        ) from error
    if given.ndim != 1 or (given.is_floating_point() and len(given)):  # lists of nothing are of floats
        raise ValueError(
            f"{reader}: {name} must be whole numbers, one a row; got {given.dtype} of shape {tuple(given.shape)}. "
            f"Cast the column, if these are classes."
        )
    return given.long()


def standardised(features: Tensor) -> Tensor:
    """Every row, `(N, d)`, with mean zero and variance one, however small its numbers; zeros where all are alike."""
    return torch.nn.functional.layer_norm(features, features.shape[1:], eps=LEAST_VARIANCE)
