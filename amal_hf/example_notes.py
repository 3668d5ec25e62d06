"""What was last seen of every training example beside its weights: its losses, and who thought what of its label.

Nothing of this is read in training. It is for pictures, and for a person who looks for wrong labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amal_hf.policies.store import IN_MEMORY, RowStore
from amal_hf.shapes import Batch, ExampleIds, Logits, LossTable, PerExample
from amal_hf.task import one_class_each


GUESS, STUDENT = "guess", "student"
"""Columns: the student's likeliest class, and its probability of the label."""


class ExampleNotes(nn.Module):
    """One row an example, one column for each thing noted; NaN for what was never seen.

    Columns are `loss/{loss}` for each loss, and, where examples are of one class, `guess` (a class), `student` and
    `teacher/{name}` (the probability that each holds of the example's label).

    Args:
        examples: rows of the training set; `None` for a stream. Of a set too large for memory nothing is noted.
        groups: names of the losses, and how many columns each has in a table of losses.
        teachers: where each teacher's logits stand in a prepared batch, by the name of its loss.
    """

    def __init__(self, examples: int | None, groups: Mapping[str, int], teachers: Mapping[str, str]) -> None:
        super().__init__()
        self.groups = dict(groups)
        self.teachers = dict(teachers)
        losses = [f"loss/{name}" for name in groups]
        self.columns = [*losses, GUESS, STUDENT, *(f"teacher/{name}" for name in teachers)]
        self.noting = examples is None or examples * len(self.columns) <= IN_MEMORY
        self.store = RowStore(examples if self.noting else 0, torch.full((len(self.columns),), float("nan")))

    def judge(self, logits: Logits, batch: Batch) -> Tensor:
        """Who thinks what of the labels of a prepared batch, as `judgements`."""
        return judgements(logits, batch, list(self.teachers.values()))

    def write(self, ids: ExampleIds, losses: LossTable, present: Tensor | None, judged: Tensor) -> None:
        """Take note of a micro-batch; only where it is `noting`.

        Args:
            ids: `(B,)`.
            losses: `(B, K)`, detached.
            present: `(B, K)`, bool: which losses the examples have; `None` for all.
            judged: `(B, 2 + teachers)`, from `judge`.
        """
        self.store.write(ids, torch.cat([group_means(losses, present, list(self.groups.values())), judged], 1))

    def of(self, ids: ExampleIds) -> dict[str, Any]:
        """What is known of examples: every column as an array of float32, `(B,)` each."""
        if not self.noting:
            return {name: np.full(len(ids), np.nan, np.float32) for name in self.columns}
        return dict(zip(self.columns, self.store.read(ids).float().cpu().T.numpy(), strict=True))


def group_means(table: LossTable, present: Tensor | None, counts: Sequence[int]) -> Tensor:
    """Mean of the columns of each loss that an example has, `(B, groups)`; NaN where it has none."""
    there = torch.ones_like(table, dtype=torch.bool) if present is None else present
    parts = zip(table.float().split(list(counts), 1), there.split(list(counts), 1), strict=True)
    return torch.stack([torch.where(mask, part, 0.0).sum(1) / mask.sum(1) for part, mask in parts], 1)


def judgements(logits: Logits, batch: Batch, teachers: Sequence[str]) -> Tensor:
    """The student's class, and the probability that student and teachers hold of the label, `(B, 2 + teachers)`.

    NaN for what is not there: a label, a teacher with logits for these classes, or classes at all.
    """
    labels = batch.get("labels")
    unknown = torch.full((len(logits),), float("nan"), device=logits.device)
    if labels is None or not one_class_each(logits, labels):
        return unknown[:, None].repeat(1, 2 + len(teachers))
    tables = [logits, *(batch.get(key) for key in teachers)]
    held = [_held(table, labels) if _fits(table, logits) else unknown for table in tables]
    return torch.stack([logits.argmax(1).float(), *held], 1)


def _fits(table: Any, logits: Logits) -> bool:
    return isinstance(table, Tensor) and table.shape == logits.shape


def _held(logits: Any, labels: Tensor) -> PerExample:
    shares: Tensor = logits.float().softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return torch.where(labels >= 0, shares, float("nan"))
