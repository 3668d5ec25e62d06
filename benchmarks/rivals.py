"""Rival policies: a network on the geometry of student, teacher and label, rules of thumb, and given weights."""

import numpy as np
import torch
import torch.nn.functional as F
from settings import Bench
from torch import Tensor

from amal_hf import Convex, NetworkPolicy, Policy
from amal_hf.policies.bounds import Normalisation
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.shapes import IGNORED, TRUE_LABEL, VOTES


class Geometry(NetworkPolicy):
    """Weights from the triangle of an example: what student and teacher predict, and the label.

    The network reads the three edges as vectors and their lengths. After TGeo-KD (Hu et al. 2023, arXiv:2312.15112),
    without its edges to a prediction for the whole class.
    """

    interval = 4

    def __init__(self, learning_rate: float) -> None:
        super().__init__(hidden=32, learning_rate=learning_rate, normalisation=None, seed=0)

    def usual_normalisation(self, sizes: Sizes) -> Normalisation:
        """A ratio of label and teacher for each example, as in the paper."""
        return Convex()

    def observe(self, signals: Signals) -> Tensor:
        """`(B, 3 C + 3)`."""
        (teacher,) = signals.teacher_logits
        student, taught = signals.logits.float().softmax(-1), torch.as_tensor(teacher).float().softmax(-1)
        label = F.one_hot(signals.batch["labels"], student.shape[-1]).to(student)
        edges = [label - student, label - taught, taught - student]
        return torch.cat([*edges, *(edge.norm(dim=-1, keepdim=True) for edge in edges)], 1)

    def width(self, sizes: Sizes) -> int:
        """And progress."""
        return 3 * sizes.classes + 3 + 1


class TeacherConfidence(Policy):
    """The teacher's share is its highest probability, the label's the rest."""

    learns = False

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """Nothing to forget."""

    def observe(self, signals: Signals) -> Tensor:
        """The label's share, `(B, 1)`."""
        (teacher,) = signals.teacher_logits
        return 1 - torch.as_tensor(teacher).float().softmax(-1).amax(-1, keepdim=True)

    def weights(self, observation: Observation) -> Tensor:
        """`(B, 2)`."""
        return torch.cat([observation.features, 1 - observation.features], 1)

    def update(self, observation: Observation, slopes: Tensor) -> None:
        """Nothing to learn."""


class TeacherAgreement(TeacherConfidence):
    """The label's share is the probability that the teacher gives it."""

    def observe(self, signals: Signals) -> Tensor:
        """`(B, 1)`."""
        (teacher,) = signals.teacher_logits
        return torch.as_tensor(teacher).float().softmax(-1).gather(1, signals.batch["labels"][:, None])


class BelievedLabels(TeacherAgreement):
    """Labels alone, each as much as the teacher believes it, one on average over the batch.

    Args:
        temperature: of the teacher.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def observe(self, signals: Signals) -> Tensor:
        """`(B, 1)`."""
        softer = tuple(torch.as_tensor(logits) / self.temperature for logits in signals.teacher_logits)
        return super().observe(signals._replace(teacher_logits=softer))

    def weights(self, observation: Observation) -> Tensor:
        """`(B, 2)`."""
        belief = observation.features
        return torch.cat([belief / belief.mean().clamp(min=0.05), torch.zeros_like(belief)], 1)


class GivenWeights(Policy):
    """Weights that were found before training.

    Args:
        table: `(N, K)`, by example.
    """

    learns = False
    needs_ids = True

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """Nothing to forget."""

    def weights(self, observation: Observation) -> Tensor:
        """`(B, K)`."""
        return self.table.to(observation.ids.device)[observation.ids]

    def update(self, observation: Observation, slopes: Tensor) -> None:
        """Nothing to learn."""


def right_votes(bench: Bench) -> Tensor:
    """`(N, 1 + m + 1)`: equal weights for the label where there is one, the votes that are right, and the teacher."""
    rows = bench.splits["train"]
    votes, truth, labels = (np.array(rows[name][:]) for name in (VOTES, TRUE_LABEL, "label"))
    right = (votes >= 0) & (votes == truth[:, None])
    believed = np.column_stack([labels != IGNORED, right, np.ones(len(rows), dtype=bool)])
    return torch.from_numpy(believed / believed.sum(1, keepdims=True)).float()
