"""The task's own loss against labels, for each example."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amal_hf.losses import Loss
from amal_hf.shapes import IGNORED, Batch, Logits, PerExample
from amal_hf.task import Task, at_least_fp32
from amal_hf.tokens import OfRows, row_values, token_means


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
        if self.task.is_regression(logits):
            logits = at_least_fp32(logits)
            return squared_error(logits, labels.to(logits)) * (labels.view_as(logits) != IGNORED).all(1)
        if self.task.is_multi_label(logits, labels):
            return _binary_cross_entropy(at_least_fp32(logits), labels)
        return _class_cross_entropy(logits, labels, self.task.label_smoothing)


def _token_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> PerExample:
    return token_means(_of_rows(targets.long().flatten(), smoothing), logits, targets != IGNORED)


def _of_rows(targets: Tensor, smoothing: float) -> OfRows:
    """Cross-entropy of some of the rows that the targets are for."""

    def of_rows(picked: Tensor, places: Tensor | slice) -> Tensor:
        return F.cross_entropy(at_least_fp32(picked), targets[places], reduction="none", label_smoothing=smoothing)

    return of_rows


def _class_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> PerExample:
    soft = labels.is_floating_point()
    known = (labels >= 0).all(-1) if soft else labels != IGNORED
    rows = logits.flatten(0, -2)
    wide = torch.promote_types(rows.dtype, torch.float32)
    targets = labels.flatten(0, -2).to(rows.device, wide).clamp(min=0) if soft else labels.long().flatten()
    values = row_values(_of_rows(targets, smoothing), rows)
    values = torch.where(known, values.view(known.shape), 0.0)
    return values if values.ndim == 1 else masked_mean(values, known)


def _binary_cross_entropy(logits: Tensor, labels: Tensor) -> PerExample:
    known = labels >= 0
    values = F.binary_cross_entropy_with_logits(logits, labels.to(logits).clamp(min=0), reduction="none")
    return masked_mean(values.flatten(1), known.flatten(1))


def squared_error(outputs: Tensor, targets: Tensor) -> PerExample:
    """Mean over an example's outputs."""
    return (outputs - targets.view_as(outputs)).square().flatten(1).mean(1)


def masked_mean(values: Tensor, mask: Tensor) -> PerExample:
    """Mean of `values` `(B, T)` where `mask` `(B, T)` is true; 0 for a row without any, `(B,)`."""
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp(min=1)
