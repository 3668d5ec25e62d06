"""How labels go wrong, for gold loss correction: what a classifier of them answers to the clean rows of each class.

References: Hendrycks et al. 2018, "Using Trusted Data to Train Deep Networks on Labels Corrupted by Severe Noise",
    arXiv:1802.05300.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from amal_hf.shapes import Logits


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
