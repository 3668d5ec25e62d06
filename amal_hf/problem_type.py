"""How a student's logits are read: one class, several yes/no labels, or a number."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from amal_hf.collator import is_stream
from amal_hf.model_labels import class_count


def problem_type(model: Any, *sets: Any) -> str | None:
    """How the student's logits are read: as its configuration says, or as its head will when it is first called.

    Heads of `transformers` look at the first labels they see and write down what these are; losses without labels of
    their own have to know before.

    Args:
        model: the student.
        sets: datasets that may have labels.
    """
    said: str | None = getattr(model.config, "problem_type", None)
    if said is not None:
        return said
    if class_count(model) == 1:
        return "regression"
    return "multi_label_classification" if any(_has_yes_no_labels(rows) for rows in sets) else None


def say_problem_type(model: Any, kind: str | None) -> None:
    """Write down how the student is read, as its head would if labels reached it: pipelines go by that."""
    if kind is not None and getattr(model.config, "problem_type", kind) is None:
        model.config.problem_type = kind


def _has_yes_no_labels(dataset: Any) -> bool:
    row = {} if dataset is None or is_stream(dataset) else dataset[0]
    if not isinstance(row, Mapping):
        return False
    label = np.asarray(row.get("labels", row.get("label")))
    return label.ndim == 1 and np.issubdtype(label.dtype, np.floating)
