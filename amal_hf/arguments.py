"""Options of a run, on top of those of `transformers.TrainingArguments`."""

import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import Seq2SeqTrainingArguments, TrainingArguments


@dataclass
class AMALArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the options of learned mixing.

    All are fields, so that the command line, YAML, JSON and hyperparameter search reach them.

    Raises:
        ValueError: an option out of its range.
    """

    loss_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "The mixture to start from (and to stay with if no method is given): one number for each loss. "
            "Equal shares by default."
        },
    )
    meta_interval: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps from one meta gradient to the next. By default what the method wants: 8 for "
            "amal() with a network, which judges 2 of these steps, 1 with a table."
        },
    )
    meta_batch_size: int = field(
        default=16, metadata={"help": "Examples of the meta set in one meta step, over all processes."}
    )
    meta_warmup_steps: float = field(
        default=0.0,
        metadata={
            "help": "Optimizer steps before the first meta step; a number below 1 is a share of all steps. Phases "
            "between epochs come when they come."
        },
    )
    meta_learning_rate: float | None = field(
        default=None, metadata={"help": "The policy's own learning rate. By default what the policy was made with."}
    )
    meta_seed: int | None = field(
        default=None, metadata={"help": "Seed of the order of the meta set; `seed` by default."}
    )
    teacher_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder to keep teachers' logits in, so that each is computed once. Without it the teacher runs "
            "at every step."
        },
    )
    hub_include_weights: bool = field(
        default=False,
        metadata={
            "help": "Publish what the method has learned and the weight of every training example too. They tell "
            "about the training data; without them no run can be resumed from the Hub."
        },
    )
    weights_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder to keep the examples' weights in while training, as a file instead of in memory. By "
            "default only more than 16 million numbers (examples x losses) are a file, among the temporary ones."
        },
    )
    write_figures: bool = field(
        default=True,
        metadata={
            "help": "Draw what a method has learned into output_dir/figures at the end of training, if matplotlib is "
            "installed."
        },
    )
    write_report: bool = field(
        default=False,
        metadata={
            "help": "Write output_dir/report.html at the end of training: a page to look through the training "
            "examples by weight. It contains these examples."
        },
    )
    trackio_static_space_id: str | None | Literal[False] = field(
        default=False,
        metadata={
            "help": "Name of a Space on the Hub that shows a Trackio run; without it the run stays on this machine, "
            "also when the student is pushed."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("meta_warmup_steps", "meta_learning_rate"):
            setattr(self, name, _number(name, getattr(self, name)))
        for name in ("teacher_cache_dir", "weights_dir"):
            folder = getattr(self, name)
            setattr(self, name, folder and os.path.expanduser(folder))  # as `output_dir` is
        interval, batch = self.meta_interval, self.meta_batch_size
        _require(interval is None or _is_count(interval), "meta_interval", interval, "a whole number from 1")
        _require(_is_count(batch), "meta_batch_size", batch, "a whole number from 1")
        _require(self.meta_warmup_steps >= 0, "meta_warmup_steps", self.meta_warmup_steps, "a number from 0")
        shares = self.loss_weights
        fine = shares is None or (isinstance(shares, list | tuple) and all(isinstance(x, int | float) for x in shares))
        _require(fine, "loss_weights", shares, "a list of numbers, one for each loss in their order")
        rate = self.meta_learning_rate
        _require(rate is None or rate > 0, "meta_learning_rate", rate, "a positive number")

    def get_meta_warmup_steps(self, max_steps: int) -> int:
        """Steps before the first meta step, out of `max_steps`."""
        warmup = self.meta_warmup_steps
        return int(warmup) if warmup >= 1 else int(warmup * max_steps)

    def get_steps(self, rows: int, epochs: float) -> int:
        """Optimizer steps of so many epochs over so many rows, on all processes; at least one.

        Runs of one budget over sets of several sizes take it as `max_steps`.
        """
        size = self.per_device_train_batch_size * self.world_size
        batches = rows // size if self.dataloader_drop_last else -(-rows // size)
        return max(1, math.ceil(epochs * -(-batches // self.gradient_accumulation_steps)))


@dataclass
class AMALSeq2SeqArguments(AMALArguments, Seq2SeqTrainingArguments):
    """The same with the options of `transformers.Seq2SeqTrainingArguments`, such as `predict_with_generate`."""


def _number(name: str, value: Any) -> Any:
    """A YAML file makes text of 1e-3."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"AMALArguments: {name} must be a number, got {value!r}.") from None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def _require(fine: bool, name: str, value: object, expected: str) -> None:
    if not fine:
        raise ValueError(f"AMALArguments: {name} must be {expected}, got {value!r}.")
