"""How a student's outputs and labels are read: numbers, classes, yes/no labels, or classes of tokens."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from amal_hf.shapes import IGNORED, Batch, Logits, PerExample
from amal_hf.tokens import row_values, token_means


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


def at_least_fp32(logits: Logits) -> Logits:
    """Logits in fp32, or fp64 if they are: a log-softmax in half precision has two or three digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def as_two_classes(logits: Tensor) -> Tensor:
    """Yes/no logits as logits of two classes, `(..., 2)`."""
    return torch.stack([torch.zeros_like(logits), logits], -1)


def distilled_tokens(batch: Batch, task: Task) -> Tensor:
    """`(B, T)`, bool: the tokens on which a student is compared with its teacher, at the places of their logits.

    The labelled ones, or all attended ones of an unlabelled row. An encoder-decoder is compared on labelled ones only:
    its attention mask is that of the source.
    """
    if "decoder_input_ids" in batch:
        return task.targets(batch["labels"]) != IGNORED
    mask = batch.get("attention_mask")
    attended = torch.ones_like(batch["labels"], dtype=torch.bool) if mask is None else mask.bool()
    # What is predicted at the last place before a text that is padded on the left is not predicted from it.
    anything = (task.targets(torch.where(attended, 0, IGNORED)) != IGNORED) & attended
    if "labels" not in batch:
        return anything
    labelled = task.targets(batch["labels"]) != IGNORED
    return torch.where(labelled.any(1, keepdim=True), labelled, anything)


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
    return row_values(lambda picked, _: _entropy_share(picked), logits)


def _entropy_share(logits: Logits) -> Tensor:
    log_p = F.log_softmax(at_least_fp32(logits), -1)
    # Of a class that is excluded 0 times infinity is no number.
    finite = log_p.clamp(min=torch.finfo(log_p.dtype).min)
    return -(log_p.exp() * finite).sum(-1) / math.log(logits.shape[-1])


def one_class_each(logits: Logits, labels: Tensor) -> bool:
    """Whether every row has one class, and the student a score for each."""
    return logits.ndim == 2 and labels.ndim == 1 and not labels.is_floating_point() and logits.shape[1] > 1
