"""The scores of a student as it stands, out of the history of its run."""

from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np


_TIMING = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")


def last_scores(trainer: Any) -> dict[str, float]:
    """Its last evaluation, or that of the best step if this was loaded, by name and without timing.

    Of several evaluation sets each has an entry of its own.
    """
    several = isinstance(trainer.eval_dataset, dict)
    marks = [f"eval_{name}_loss" for name in trainer.eval_dataset] if several else ["eval_loss"]
    history = _of_this_student(trainer)
    found: list[Mapping[str, Any]] = [
        next((entry for entry in reversed(history) if mark in entry), {}) for mark in marks
    ]
    pairs = [(name, value) for entry in found for name, value in entry.items() if _is_score(name, value)]
    return {name.removeprefix("eval_"): float(value) for name, value in pairs}


def best_step(trainer: Any) -> int | None:
    """The step of the best student, where it is that one which was loaded at the end of training.

    A better one may have been evaluated where nothing was saved: `Trainer` then loads the best of those that were, or
    none.
    """
    folder = trainer.state.best_model_checkpoint
    if not trainer.args.load_best_model_at_end or not folder:
        return None
    return int(Path(folder).name.rpartition("-")[2])


def _of_this_student(trainer: Any) -> list[Mapping[str, Any]]:
    """The entries of the log that say something of the student as it stands."""
    state = trainer.state
    history: list[Mapping[str, Any]] = state.log_history
    best = best_step(trainer)
    ended = max((n for n, entry in enumerate(history) if "train_runtime" in entry), default=-1)
    # What was evaluated after training is the student as it stands, whatever has been done to it since.
    if not best or any(name.startswith("eval_") for entry in history[ended + 1 :] for name in entry):
        return history
    return [entry for entry in history if entry.get("step") == best]


def _is_score(name: str, value: Any) -> bool:
    timed = name.endswith(_TIMING)
    return name.startswith("eval_") and not timed and isinstance(value, Real) and bool(np.isfinite(float(value)))
