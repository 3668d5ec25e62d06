"""What a student that generates text cannot be trained on, as rows without a target."""

from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from amal_hf.columns import is_transformed
from amal_hf.generators import is_causal, is_encoder_decoder, predicts_next
from amal_hf.method import Method
from amal_hf.shapes import IGNORED


def check_generator(model: Any, losses: list[Any], method: Method, sets: dict[str, Any]) -> None:
    """Refuse what cannot be trained on a student that generates text; and `top_k` on one that does not.

    Args:
        model: the student.
        losses: as given to the trainer.
        method: how their weights are learned.
        sets: training and meta set by name.

    Raises:
        ValueError: a row without a single target token, a method that reads the output layer, or `top_k` on a
            classifier.
    """
    cut = [loss.name for loss in losses if getattr(loss, "top", None) is not None]
    if cut and method.per_token:
        raise ValueError(f"Distillation '{cut[0]}': top_k does not go with per_token=True. Leave one of them out.")
    if not is_causal(model) and not is_encoder_decoder(model):
        if cut:
            raise ValueError(
                f"Distillation '{cut[0]}': top_k is for students that generate text, and {type(model).__name__} does "
                f"not. Leave it out."
            )
        return
    if method.tangent.head_alone:
        raise ValueError(
            f"LastLayer: the output layer of {type(model).__name__} is as wide as its vocabulary, and often tied to "
            "the embeddings. Use FiniteDifference(), which works with any student."
        )
    for name, dataset in sets.items():
        _check_targets(dataset, name, predicts_next(model))


def _check_targets(dataset: Any, name: str, shifted: bool) -> None:
    if not isinstance(dataset, datasets.Dataset) or is_transformed(dataset):
        return
    wanted = ("labels", "input_ids") if shifted else ("labels",)
    column = next((c for c in wanted if c in dataset.column_names), None)
    if column is None:
        return
    # The first token of a causal language model has nothing before it that could predict it.
    empty = _without_target(dataset.select_columns([column]).with_format("arrow"), int(shifted))
    if empty:
        raise ValueError(
            f"AMALTrainer: {name}['{column}'] has no target token in {len(empty)} of {len(dataset)} rows: "
            f"{', '.join(map(str, empty[:5]))}{' ...' if len(empty) > 5 else ''}. Such a row has no loss "
            f"{'(the first token is never predicted) ' if shifted else ''}and would earn weights from nothing; "
            "remove these rows."
        )


def _without_target(rows: datasets.Dataset, left_out: int) -> list[int]:
    """The rows, lists of labels, that have no label but among the first `left_out`."""
    empty: list[int] = []
    for start in range(0, len(rows), 10_000):
        (column,) = rows[start : start + 10_000].columns
        lengths = pc.list_value_length(column).to_numpy()
        places = np.arange(lengths.sum()) - (lengths.cumsum() - lengths).repeat(lengths)
        known = (pc.list_flatten(column).to_numpy() != IGNORED) & (places >= left_out)
        counts = np.bincount(np.arange(len(lengths)).repeat(lengths)[known], minlength=len(lengths))
        empty += (start + np.flatnonzero(counts == 0)).tolist()
    return empty
