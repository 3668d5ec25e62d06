"""Pairs of examples blended in their input embeddings, as much as their two labels allow."""

from typing import Any

import torch
from torch import Tensor, nn

from amal_hf.batch_policies.batch_policy import BatchPolicy, Changed, attention_of
from amal_hf.class_counts import one_class_labels
from amal_hf.random_numbers import generator_of
from amal_hf.shapes import Batch


class LabelBlend(BatchPolicy):
    """`x̃ = λ x₁ + (1 − λ) x₂` with a learned `λ(y₁, y₂) = 1 − 0.5 · sigmoid(a[y₁, y₂])` for every pair of labels.

    The counterpart for text of the paper's blended images: input embeddings are blended, attention masks are united,
    and each loss is `λ ℓ(·, y₁) + (1 − λ) ℓ(·, y₂)`, distillation with the partner's teacher logits included. λ lies
    in (0.5, 1), so the first example always dominates. Partners are drawn within a micro-batch: how a batch is cut
    decides who may meet whom. A row without a label (-100) stays as it is.

    Args:
        labels: C.
        initial: every entry of `a` at the start; −1 in the official code, which makes λ 0.87.
        learning_rate: of Adam; 1e-2 in the official code.
        seed: of the partners, together with the step; no global random number is drawn.

    Raises:
        ValueError: fewer than two labels, or a learning rate that is not positive and finite.

    References:
        Teaching with Commentaries, arXiv:2011.03037, label-dependent augmentation.
    """

    needs_one_class = True

    def __init__(self, labels: int, initial: float = -1.0, learning_rate: float = 1e-2, seed: int = 0) -> None:
        super().__init__(learning_rate)
        if labels < 2:
            raise ValueError(f"LabelBlend: labels must be at least 2, got {labels}; one label has nothing to blend.")
        self.initial = initial
        self.seed = seed
        self.matrix = nn.Parameter(torch.full((labels, labels), initial))
        self.optimizer = torch.optim.Adam([self.matrix], lr=learning_rate)

    def begin(self) -> None:
        """The same λ for all pairs."""
        nn.init.constant_(self.matrix, self.initial)

    def check(self, labels: int) -> None:
        """A classifier of as many classes."""
        if labels != len(self.matrix):
            raise ValueError(
                f"LabelBlend: made for {len(self.matrix)} labels, and the student has {labels} classes. Blending is "
                f"for sentence classification; make it with labels=model.config.num_labels."
            )

    def arguments(self) -> dict[str, Any]:
        """What one like it is made with."""
        names = ("initial", "learning_rate", "seed")
        return {"labels": len(self.matrix), **{name: getattr(self, name) for name in names}}

    def shares(self) -> Tensor:
        """`λ`, `(C, C)`: the share of the first example by its label (row) and its partner's (column)."""
        return 1 - 0.5 * self.matrix.sigmoid()

    def change(self, embeddings: Tensor, batch: Batch, step: int) -> Changed:
        """Every example blended with one partner."""
        partner = self._partners(len(embeddings), step).to(embeddings.device)
        other = {name: v[partner] if isinstance(v, Tensor) else v for name, v in batch.items()}
        labels = one_class_labels(batch, len(embeddings), "LabelBlend").to(embeddings.device)
        labels_of_other, attention = labels[partner], attention_of(batch, embeddings)
        learned = self.shares()[labels.clamp(min=0), labels_of_other.clamp(min=0)]
        blended = (labels >= 0) & (labels_of_other >= 0)
        share = torch.where(blended, learned, 1.0)
        wide = share[:, None, None].to(embeddings)
        united = torch.maximum(attention, attention[partner])
        return Changed(
            embeddings=wide * embeddings + (1 - wide) * embeddings[partner],
            attention_mask=torch.where(blended[:, None], united, attention),
            targets=((batch, share), (other, 1 - share)),
        )

    def _partners(self, examples: int, step: int) -> Tensor:
        return torch.randperm(examples, generator=generator_of(self.seed, step))
