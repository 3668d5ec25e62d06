"""Losses: student outputs and a batch in, one value for every example out.

A loss never averages over examples. Weighing and reducing happens in one other place (`mixture.py`), so that every
example can have its own weight for every loss. A loss of tokens is the mean over the example's labelled tokens: a
sentence counts once, however long it is.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amal_hf.shapes import IGNORED, Batch, Logits, LossTable, PerExample
from amal_hf.tokens import token_means


@dataclass(frozen=True)
class Task:
    """How the student's logits and labels are read.

    Args:
        problem_type: `config.problem_type` of the student; `None` applies the rule of `transformers`: one output is a
            regression, integer labels are classes, float labels are several yes/no labels at once.
        label_smoothing: share of the target spread over all classes, in [0, 1);
            `TrainingArguments.label_smoothing_factor`.
        shifted: whether the logits of token t are meant for the label of token t + 1, as in causal language models.
    """

    problem_type: str | None = None
    label_smoothing: float = 0.0
    shifted: bool = False

    def targets(self, labels: Tensor) -> Tensor:
        """The labels at the places of the logits that predict them, in the shape they came in.

        Logits stay whole: cutting the last token off would copy all of them.
        """
        return F.pad(labels[:, 1:], (0, 1), value=IGNORED) if self.shifted else labels

    def is_regression(self, logits: Logits) -> bool:
        """Whether the outputs are numbers to be hit rather than scores of classes."""
        if self.problem_type is None:
            return logits.shape[-1] == 1
        return self.problem_type == "regression"

    def is_multi_label(self, logits: Logits, labels: Tensor | None) -> bool:
        """Whether every class is a yes/no question of its own."""
        if self.problem_type is None:
            return labels is not None and labels.is_floating_point() and not self.is_regression(logits)
        return self.problem_type == "multi_label_classification"


class Loss(ABC):
    """One value for every example.

    Attributes:
        name: column name in logs and in `AMALTrainer.example_weights()`; unique within a run.
        columns: dataset columns that this loss reads beyond what the student's forward takes.
        citation: BibTeX of the source.
        pull: how long its gradient with respect to an example's logits gets, where that of a label is one. Policies
            that share weight out among losses compare slopes by it: AdamW goes no further for a loss that only pulls
            harder.
    """

    name: str
    columns: tuple[str, ...] = ()
    citation: str = ""
    pull: float = 1.0

    def bind(self, task: Task) -> None:
        """Learn how the student's logits are read. Called once, before training."""
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


class CrossEntropy(Loss):
    """The task's own loss against the labels, as `transformers` computes it but for each example.

    Cross-entropy for classes (integer labels `(B,)` or `(B, T)`; or probabilities `(B, C)` if the student's
    `config.problem_type` is "single_label_classification"), binary cross-entropy averaged over classes for multi-label
    tasks (float labels `(B, C)`), squared error averaged over outputs for regression. Labels of -100 cost nothing: an
    unlabelled row does not have this loss. Label smoothing follows `torch.nn.functional.cross_entropy` and applies to
    classes only.

    Args:
        name: column name.
        column: where the labels are. Another column than "labels" holds classes or, as floats, probabilities of
            classes: the votes of rules, made into one label.

    Example:
        >>> loss = CrossEntropy()
        >>> loss.bind(Task())
        >>> loss.of_logits(torch.zeros(2, 4), torch.tensor([1, -100]))
        tensor([1.3863, 0.0000])
    """

    def __init__(self, name: str = "labels", column: str = "labels") -> None:
        self.name = name
        self.column = column
        self.columns = () if column == "labels" else (column,)
        self.task = Task()

    def bind(self, task: Task) -> None:
        """Take over the student's problem type and label smoothing."""
        # Floats in a column of its own are soft labels, where the student does not say otherwise.
        soft = self.column != "labels" and task.problem_type is None
        self.task = replace(task, problem_type="single_label_classification") if soft else task

    def present(self, batch: Batch) -> Tensor | None:
        """`(B, 1)`: whether an example has any label."""
        labels = batch.get(self.column)
        if labels is None:
            return None
        known = self._known(labels)
        return known.flatten(1).any(1, keepdim=True) if known.ndim > 1 else known[:, None]

    def _known(self, labels: Tensor) -> Tensor:
        """Which labels cost something, `(B,)`; `(B, n)` where a row has several, of which any is enough."""
        if not labels.is_floating_point():
            return labels != IGNORED
        if labels.ndim == 1 or self.task.problem_type == "regression":
            return (labels != IGNORED).view(len(labels), -1).all(1)
        return (labels >= 0).all(-1) if self.task.problem_type == "single_label_classification" else labels >= 0

    def __call__(self, outputs: Any, batch: Batch) -> PerExample:
        """`(B,)`: the loss against the labels."""
        return self.of_logits(outputs.logits, batch[self.column])

    def of_teacher(self, logits: Logits, batch: Batch) -> PerExample:
        """`(B,)`: the same for a teacher."""
        return self.of_logits(logits, batch[self.column])

    def of_logits(self, logits: Logits, labels: Tensor) -> PerExample:
        """The same for any logits, `(B, C)` or `(B, T, C)`: also tells how well a *teacher* fits the labels."""
        if logits.ndim == 3 and not labels.is_floating_point():
            return _token_cross_entropy(logits, self.task.targets(labels), self.task.label_smoothing)
        logits = at_least_fp32(logits)
        if self.task.is_regression(logits):
            return squared_error(logits, labels.to(logits)) * (labels.view_as(logits) != IGNORED).all(1)
        if self.task.is_multi_label(logits, labels):
            return _binary_cross_entropy(logits, labels)
        return _class_cross_entropy(logits, labels, self.task.label_smoothing)


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
                f"({examples},); it returned {came}. "
                "Do not average over the batch."
            )
        return values


def at_least_fp32(logits: Logits) -> Logits:
    """Logits in fp32, or fp64 if they are: a log-softmax in half precision has two or three digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def masked_mean(values: Tensor, mask: Tensor) -> PerExample:
    """Mean of `values` `(B, T)` where `mask` `(B, T)` is true; 0 for a row without any, `(B,)`."""
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def distilled_tokens(batch: Batch, task: Task) -> Tensor:
    """`(B, T)`, bool: the tokens on which a student is compared with its teacher, at the places of their logits.

    The labelled ones, or all attended ones of an unlabelled row. An encoder-decoder is compared on labelled ones only:
    its attention mask is that of the source.
    """
    if "decoder_input_ids" in batch:
        return task.targets(batch["labels"]) != IGNORED
    mask = batch.get("attention_mask")
    if "labels" not in batch:
        return task.targets(torch.where(batch["attention_mask"].bool(), 0, IGNORED)) != IGNORED
    labels = batch["labels"]
    anything = torch.zeros_like(labels) if mask is None else torch.where(mask.bool(), 0, IGNORED)
    labelled = task.targets(labels) != IGNORED
    return torch.where(labelled.any(1, keepdim=True), labelled, task.targets(anything) != IGNORED)


def entropy(logits: Logits, task: Task, batch: Batch) -> PerExample:
    """Entropy of the predicted distribution as a share of the largest possible one, in [0, 1], `(B,)`.

    0 for regression.
    """
    if task.is_regression(logits):
        return at_least_fp32(logits).new_zeros(len(logits))
    if task.is_multi_label(logits, batch.get("labels")):
        return _entropy_share(as_two_classes(logits)).mean(1)
    if logits.ndim == 3:
        return token_means(lambda picked, _: _entropy_share(picked), logits, distilled_tokens(batch, task))
    return _entropy_share(logits)


def _entropy_share(logits: Logits) -> Tensor:
    log_p = F.log_softmax(at_least_fp32(logits), -1)
    return -(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])


def _token_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> PerExample:
    flat = targets.long().flatten()

    def of_rows(picked: Tensor, places: Tensor) -> Tensor:
        return F.cross_entropy(at_least_fp32(picked), flat[places], reduction="none", label_smoothing=smoothing)

    return token_means(of_rows, logits, targets != IGNORED)


def _class_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> PerExample:
    soft = labels.is_floating_point()
    known = (labels >= 0).all(-1) if soft else labels != IGNORED
    targets = labels.flatten(0, -2).to(logits).clamp(min=0) if soft else labels.long().flatten()
    values = F.cross_entropy(logits.flatten(0, -2), targets, reduction="none", label_smoothing=smoothing)
    values = torch.where(known, values.view(known.shape), 0.0)
    return values if values.ndim == 1 else masked_mean(values, known)


def _binary_cross_entropy(logits: Tensor, labels: Tensor) -> PerExample:
    known = labels >= 0
    values = F.binary_cross_entropy_with_logits(logits, labels.to(logits).clamp(min=0), reduction="none")
    return masked_mean(values.flatten(1), known.flatten(1))


def squared_error(outputs: Tensor, targets: Tensor) -> PerExample:
    """Mean over an example's outputs."""
    return (outputs - targets.view_as(outputs)).square().flatten(1).mean(1)


def as_two_classes(logits: Tensor) -> Tensor:
    """Yes/no logits as logits of two classes, `(..., 2)`."""
    return torch.stack([torch.zeros_like(logits), logits], -1)
