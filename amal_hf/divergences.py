"""How far one distribution over classes is from another, at a temperature; any may serve in `Distillation`."""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor


Divergence: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]
"""`(student logits (..., C), teacher logits (..., C), temperature) -> (...)`."""


def forward_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T² Σ_c p_teacher (log p_teacher − log p_student)`, `(..., C) -> (...)`.

    Covers all that the teacher holds possible.
    """
    log_p, log_q = F.log_softmax(teacher / temperature, -1), F.log_softmax(student / temperature, -1)
    return temperature**2 * _kl(log_p, log_q)


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T² Σ_c p_student (log p_student − log p_teacher)`, `(..., C) -> (...)`.

    Settles on what the teacher holds likeliest.
    """
    return forward_kl(teacher, student, temperature)


def jensen_shannon(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T²` times the Jensen–Shannon divergence, `(..., C) -> (...)`: symmetric, and bounded by `T² log 2`."""
    log_p, log_q = F.log_softmax(teacher / temperature, -1), F.log_softmax(student / temperature, -1)
    # Not `logaddexp`, whose second derivative is no number where they are far apart.
    log_m = torch.stack([_finite(log_p), _finite(log_q)]).logsumexp(0) - math.log(2)
    return temperature**2 * 0.5 * (_kl(log_p, log_m) + _kl(log_q, log_m))


def logit_mse(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`mean_c (z_student − z_teacher)²`, `(..., C) -> (...)`.

    The temperature does not enter. Half of it for a yes/no class, which is read as logits (0, z).
    """
    del temperature
    return (student - teacher).square().mean(-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (_finite(log_p) - _finite(log_q))).sum(-1)


def _finite(log_p: Tensor) -> Tensor:
    return log_p.clamp(min=max(-1e30, torch.finfo(log_p.dtype).min / 4))
