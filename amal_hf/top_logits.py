"""The k largest logits of a token, and all others as one further class.

With `S` the k kept classes and a temperature `T`,

    z' = (z_s for s in S,  T log Σ_{c not in S} exp(z_c / T))        softmax(z' / T) = (p_s for s in S,  1 − Σ p_s)

so any divergence of `softmax(z / T)` is computed on k + 1 classes as it is on V. It is never above the full one (what
the rest does among itself is not seen), and equal to it where k = V.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from amal_hf.shapes import Logits
from amal_hf.tokens import chunks_of


class TopLogits(NamedTuple):
    """Logits of a teacher, merged.

    Attributes:
        logits: `(B, T, k + 1)`, the last of them for the rest; `(B, T, V)` where nothing is left over.
        classes: `(B, T, k)`, int64: which classes these are, the largest first.
    """

    logits: Tensor
    classes: Tensor

    def positions(self, labels: Tensor) -> Tensor:
        """Where in `logits` each label stands, `(B, T)`; labels below 0 stay as they are."""
        found = self.classes == labels[..., None]
        places = torch.where(found.any(-1), found.int().argmax(-1), self.logits.shape[-1] - 1)
        return torch.where(labels < 0, labels, places)


@dataclass(frozen=True)
class TopK:
    """Keeps the k largest logits at a temperature.

    Raises:
        ValueError: k below 1.
    """

    k: int
    temperature: float

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"Distillation: top_k must be at least 1, got {self.k}. None keeps all logits.")

    def __call__(self, logits: Logits) -> TopLogits:
        """`(B, T, V)` merged into k + 1 classes, all V where the vocabulary is not larger than k."""
        parts = [self._of_rows(rows) for rows in chunks_of(logits.flatten(0, -2))]
        return TopLogits(*(torch.cat(part).unflatten(0, logits.shape[:-1]) for part in zip(*parts, strict=True)))

    def _of_rows(self, rows: Tensor) -> TopLogits:
        classes = rows.topk(min(self.k, rows.shape[-1]), -1).indices
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return TopLogits(merged(wide, classes, self.temperature), classes)

    def settings(self) -> dict[str, str]:
        """What decides the numbers, for the key of a cache."""
        return {"top_k": str(self.k), "temperature": str(self.temperature)}


def merged(logits: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """Logits `(..., V)` of the given classes `(..., k)`, and of the rest as one more, `(..., k + 1)`."""
    kept = logits.gather(-1, classes)
    if classes.shape[-1] == logits.shape[-1]:
        return kept
    others = (logits / temperature).scatter(-1, classes, float("-inf"))
    return torch.cat([kept, temperature * others.logsumexp(-1, keepdim=True)], -1)
