"""Gold loss correction: answers, made as wrong as the labels are, should look like the labels.

How wrong these are is seen from what a classifier that was trained on them answers to the clean rows of each class.

References: Hendrycks et al. 2018, "Using Trusted Data to Train Deep Networks on Labels Corrupted by Severe Noise",
    arXiv:1802.05300.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amal_hf import CrossEntropy
from amal_hf.shapes import EXAMPLE_ID, Batch, Logits, PerExample


SMALLEST = 1e-8
"""Of a probability that a logarithm is taken of."""


def corruption_matrix(logits: Logits, classes: Tensor) -> Tensor:
    """`(C, C)`: the mean answer to clean rows of each class; of one without clean rows, the class itself.

    Args:
        logits: `(M, C)`, of a classifier that was trained on the wrong labels.
        classes: `(M,)`, right.
    """
    right = F.one_hot(classes, logits.shape[1]).to(logits)
    counts = right.sum(0)[:, None]
    means = right.T @ logits.softmax(1) / counts.clamp(min=1)
    return torch.where(counts > 0, means, torch.eye(len(means)).to(means))


class CorrectedCrossEntropy(CrossEntropy):
    """`−log Σ_c p_c M[c, y]` where labels may be wrong, plain cross-entropy where they are right.

    Smoothed, it is mixed with the mean of `−log p_c`, as cross-entropy is.

    Args:
        matrix: M, of the classes that are right and the labels they get.
        doubtful: examples with a number below this one may be wrong.
    """

    def __init__(self, matrix: Tensor, doubtful: int) -> None:
        super().__init__()
        self.matrix = matrix
        self.doubtful = doubtful

    def __call__(self, outputs: Any, batch: Batch) -> PerExample:
        """`(B,)`."""
        log_p = outputs.logits.float().log_softmax(-1)
        garbled = (log_p.exp() @ self.matrix).clamp(min=SMALLEST).log()
        answers = torch.where((batch[EXAMPLE_ID] < self.doubtful)[:, None], garbled, log_p)
        costs = -answers.gather(1, batch["labels"][:, None])[:, 0]
        return torch.lerp(costs, -log_p.mean(1), self.task.label_smoothing)
