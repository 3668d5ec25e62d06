"""Losses: student outputs and a batch in, one value for every example out.

A loss never averages over examples. Weighing and reducing happens in one other place (`mixture.py`), so that every
example can have its own weight for every loss. A loss of tokens is the mean over the example's labelled tokens: a
sentence counts once, however long it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from amal_hf.shapes import Batch, Logits, LossTable, PerExample
from amal_hf.task import Task


class Loss(ABC):
    """One value for every example.

    Attributes:
        name: column name in logs and in `AMALTrainer.example_weights()`; unique within a run.
        columns: dataset columns that this loss reads beyond what the student's forward takes.
        citation: BibTeX of the source.
        pull: how long its gradient with respect to an example's logits gets, where that of a label is one. Policies
            that share weight out among losses compare slopes by it: AdamW goes no further for a loss that only pulls
            harder.
        exponent: q, where the loss is `(1 − p^q) / q` of the probability p of what is asked for; 0 for `−log p`.
            Policies that look at probabilities get these from it.
    """

    name: str
    columns: tuple[str, ...] = ()
    citation: str = ""
    pull: float = 1.0
    exponent: float = 0.0

    def bind(self, task: Task) -> None:
        """Learn how the student's logits are read. Called before training, again if a search has changed it."""
        del task

    def check(self, rows: Any, classes: int) -> None:
        """Refuse training rows that this loss would fail on, before the first step.

        Args:
            rows: the training set.
            classes: of the student.
        """
        del rows, classes

    def prepare(self, batch: Batch) -> dict[str, Any]:
        """What depends on the batch alone (a teacher's logits); added to the batch before the student runs."""
        del batch
        return {}

    def describe(self) -> str:
        """What it is made with, for cards."""
        return type(self).__name__

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its columns; its own, unless it has several values for every example."""
        return (self.name,)

    def present(self, batch: Batch) -> Tensor | None:
        """`(B, k)`, bool: which of its k columns an example has; `None` if it always has all.

        What is missing has the value 0, no slope, and no weight.
        """
        del batch
        return None

    def of_teacher(self, logits: Logits, batch: Batch) -> PerExample | LossTable | None:
        """What a teacher's logits cost, for policies that read it; `None` if it is no question for a teacher."""
        del logits, batch
        return None

    @abstractmethod
    def __call__(self, outputs: Any, batch: Batch) -> PerExample | LossTable:
        """The loss of every example, `(B,)`; `(B, k)` for one of k columns.

        Args:
            outputs: the student's `ModelOutput`; `outputs.logits` is `(B, C)` or `(B, T, C)`.
            batch: the collated batch on the student's device, with everything that `prepare` added.
        """


class JointLoss(Loss):
    """A loss with a model of its own, trained beside the student: on every step's examples, one step a step."""

    @abstractmethod
    def own_objective(self, batch: Batch) -> PerExample:
        """`(B,)`: what the inner model is trained on, with a graph to it alone.

        It is added with the fixed weight 1: the student is not in it, so no weight for it could be learned.
        """

    @abstractmethod
    def finish_step(self) -> None:
        """An optimizer step of the student is over: the inner model takes its own."""

    @abstractmethod
    def reset(self) -> None:
        """Start a run: the inner model forgets what it has learned."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All of the inner model, for a checkpoint."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""


class CustomLoss(Loss):
    """A plain function `(outputs, batch) -> (B,)` with a name.

    `AMALTrainer(losses=[..., function])` wraps functions by itself, taking the function's own name.

    Args:
        function: reads the student's outputs and the batch, and gives one value for every example.
        name: column name.
        columns: dataset columns that it reads beyond what the student's forward takes.

    Raises:
        TypeError: one name for `columns`, not in a tuple.
    """

    def __init__(self, function: Callable[[Any, Batch], PerExample], name: str, columns: tuple[str, ...] = ()) -> None:
        if isinstance(columns, str):
            raise TypeError(
                f"CustomLoss '{name}': columns must be a tuple of names, got {columns!r}. Write ({columns!r},)."
            )
        self.function = function
        self.name = name
        self.columns = columns

    def __call__(self, outputs: Any, batch: Batch) -> PerExample:
        """`(B,)`, checked.

        Raises:
            ValueError: the function averaged or returned another shape; a weight for each example would silently be
                lost.
        """
        try:
            values = self.function(outputs, batch)
        except KeyError as error:
            error.add_note(
                f"Loss '{self.name}': the batch holds {sorted(batch)}. Name dataset columns that it reads: "
                f"CustomLoss(function, name, columns=(...,))."
            )
            raise
        examples = outputs.logits.shape[0]
        if not isinstance(values, Tensor) or values.shape != (examples,):
            came = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"Loss '{self.name}' must return one value for each of the {examples} examples, a tensor of shape "
                f"({examples},); it returned {came}. Do not average over the batch."
            )
        return values
