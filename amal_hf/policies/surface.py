"""The surface of an example: how student and teachers do on it, without a look inside."""

from dataclasses import replace

import torch
from torch import Tensor

from amal_hf.cross_entropy import CrossEntropy
from amal_hf.policies.policy import Signals, Sizes
from amal_hf.shapes import Features, Logits
from amal_hf.task import entropy
from amal_hf.top_logits import TopLogits


def surface(signals: Signals) -> Features:
    """`(B, K + 2 + 2 teachers)`: log losses, then fit and entropy of student and teachers."""
    seen = [fit_and_entropy(logits, signals) for logits in (signals.logits, *signals.teacher_logits)]
    # A loss may be negative (a user's own); what matters is its order of magnitude.
    return torch.cat([signals.losses.clamp(min=0).log1p(), *seen], 1).detach()


def surface_width(sizes: Sizes) -> int:
    """Columns of `surface`."""
    return sizes.losses + 2 * (1 + len(sizes.teachers))


def fit_and_entropy(logits: Logits | TopLogits, signals: Signals) -> Tensor:
    """`(B, 2)`: probability of the label (its generalisation `exp(−loss)` for other tasks), and relative entropy."""
    # Without label smoothing: a probability is wanted.
    task, labels = replace(signals.task, label_smoothing=0.0), signals.batch.get("labels")
    scores = logits.logits if isinstance(logits, TopLogits) else logits
    share = entropy(scores, task, signals.batch)
    if labels is None:
        return torch.stack([torch.ones_like(share), share], 1)
    if isinstance(logits, TopLogits):
        labels, task = logits.positions(task.targets(labels)), replace(task, shifted=False)
    cross_entropy = CrossEntropy()
    cross_entropy.bind(task)
    return torch.stack([cross_entropy.of_logits(scores, labels).neg().exp(), share], 1)
