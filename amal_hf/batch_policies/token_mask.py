"""A soft mask over the tokens of an example: what there is worth looking at."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amal_hf.batch_policies.batch_policy import BatchPolicy, Changed, attention_of
from amal_hf.shapes import Batch
from amal_hf.task import at_least_fp32


_HALVINGS = 40  # of an interval of about the scores' spread: more than the digits of fp32


class TokenMask(BatchPolicy):
    """A mask in [0, 1] over tokens whose mean is a budget; the input embeddings are multiplied by it.

    The counterpart for text of the paper's attention masks. A small network reads the vector of a token in a frozen
    table and the mean vector of its sentence, so that what is learned holds for any student with the same tokenizer.
    Special tokens are kept at 1. The n others share the budget n b: their mask is the point nearest to their scores
    among all masks of that sum, so that what scores low is left out wholly and what scores high is kept whole:

        m_i = clip(c score_i − τ, 0, 1)        with τ such that the sum is n b

    c grows by one with every `patience` updates: soft while it is not known what matters, sharp in the end.

    Args:
        vectors: `(V, d)`, a table of token vectors, as `encoder.get_input_embeddings().weight`; copied and never
            trained.
        special_ids: ids that are kept, as `tokenizer.all_special_ids`.
        budget: mean of an example's mask over its other tokens, in (0, 1]. 0.5: half of what there is.
        hidden: width of the one hidden layer.
        learning_rate: of Adam; 3e-3. At 1e-2 one seed in three kept the wrong words of a planted set.
        patience: updates after which the mask is twice as sharp as at the beginning; 50.
        seed: of its first weights.

    Raises:
        ValueError: vectors that are not a finite matrix, or a budget, width, rate or patience out of range.

    References:
        Teaching with Commentaries, arXiv:2011.03037, attention masks. The projection is that of sparsemax
        (arXiv:1602.02068) with an upper limit of 1 and a sum other than 1.
    """

    vectors: Tensor
    special: Tensor
    updates: Tensor

    def __init__(
        self,
        vectors: Tensor,
        special_ids: Sequence[int],
        budget: float = 0.5,
        hidden: int = 32,
        learning_rate: float = 3e-3,
        patience: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__(learning_rate)
        if vectors.ndim != 2 or not bool(torch.isfinite(vectors).all()):
            raise ValueError(
                f"{type(self).__name__}: vectors must be a finite matrix (V, d), one row a token; got shape "
                f"{tuple(vectors.shape)}. Take those of an encoder: encoder.get_input_embeddings().weight."
            )
        if not 0 < budget <= 1 or hidden < 1 or patience < 1:
            raise ValueError(
                f"{type(self).__name__}: budget must be in (0, 1], hidden and patience at least 1; got {budget}, "
                f"{hidden} and {patience}."
            )
        self.special_ids = list(special_ids)
        self.budget = budget
        self.hidden = hidden
        self.patience = patience
        self.seed = seed
        # Both belong to the tokenizer and not to what is learned, so they are not saved.
        # Vectors of tables differ in size by orders of magnitude; normalised, one learning rate suits all.
        self.register_buffer("vectors", _normed(at_least_fp32(vectors.detach())), persistent=False)
        self.register_buffer("special", torch.tensor(self.special_ids, dtype=torch.long), persistent=False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.begin()
        self.optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)

    def arguments(self) -> dict[str, Any]:
        """What one like it is made with, beside the vectors."""
        names = ("special_ids", "budget", "hidden", "learning_rate", "patience", "seed")
        return {name: getattr(self, name) for name in names}

    def begin(self) -> None:
        """A network that gives every token the same."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            last = nn.Linear(self.hidden, 1)
            self.network = nn.Sequential(nn.Linear(2 * self.vectors.shape[1], self.hidden), nn.Tanh(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network.to(self.vectors)
        self.updates.zero_()

    def check(self, labels: int) -> None:
        """Any student will do."""
        del labels

    def update(self, gradients: Sequence[Tensor]) -> None:
        """One Adam step, and a little sharper."""
        super().update(gradients)
        self.updates += 1

    def change(self, embeddings: Tensor, batch: Batch, step: int) -> Changed:
        """The batch behind its mask."""
        del step
        attention = attention_of(batch, embeddings)
        keep = self.keep(batch["input_ids"], attention)
        masked, attention = self.apply_mask(embeddings, attention, keep)
        return Changed(masked, attention, ((batch, torch.ones(len(embeddings), device=embeddings.device)),))

    def apply_mask(self, embeddings: Tensor, attention_mask: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and attention mask with the mask `(B, T)` in force: pixels are multiplied in the paper."""
        return embeddings * keep[..., None].to(embeddings), attention_mask

    def keep(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The mask, `(B, T)`, in [0, 1]; 1 for special tokens and padding."""
        present = attention_mask.bool()
        ordinary = present & ~torch.isin(input_ids, self.special)
        vectors = self.vectors[input_ids]
        counted = present[..., None].to(vectors)
        sentence = (vectors * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)
        scores = self.network(torch.cat([vectors, _normed(sentence).expand_as(vectors)], -1))[..., 0]
        sharpness = 1 + self.updates / self.patience
        return torch.where(ordinary, within_budget(sharpness * scores, ordinary, self.budget), 1.0)


def within_budget(scores: Tensor, counted: Tensor, budget: float) -> Tensor:
    """`clip(scores − τ, 0, 1)` of every row, `(B, T)`, with τ such that the mean over `counted` is `budget`.

    The threshold is found by bisection and then computed once more from the entries strictly between 0 and 1, which
    makes it exact, and differentiable as the projection is.
    """
    total = budget * counted.sum(1, keepdim=True)
    with torch.no_grad():
        low, high = scores.amin(1, keepdim=True) - 1, scores.amax(1, keepdim=True)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            too_much = (_clipped(scores - middle) * counted).sum(1, keepdim=True) > total
            low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
        above = counted & (scores - high >= 1)
        between = counted & (scores > high) & ~above
    inner = between.sum(1, keepdim=True)
    exact = ((scores * between).sum(1, keepdim=True) + above.sum(1, keepdim=True) - total) / inner.clamp(min=1)
    return _clipped(scores - torch.where(inner > 0, exact, high))


def _clipped(values: Tensor) -> Tensor:
    return values.clamp(0, 1)


def _normed(vectors: Tensor) -> Tensor:
    return F.layer_norm(vectors, vectors.shape[-1:])


class AttentionMask(TokenMask):
    """The same mask, added as `log m` to the scores of attention: every layer looks at a token m times as much.

    For encoders that take a mask of shape `(B, 1, T, T)`. Embeddings stay as they are, and with them the order of
    words. Arguments and errors are those of `TokenMask`.
    """

    replaces_attention = True

    def apply_mask(self, embeddings: Tensor, attention_mask: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings as they are, and a mask for every pair of tokens; as low as can be for padding."""
        logs = keep.clamp(min=torch.finfo(keep.dtype).tiny).log().to(embeddings)
        scores = torch.where(attention_mask.bool(), logs, torch.finfo(embeddings.dtype).min)
        return embeddings, scores[:, None, None, :].expand(-1, 1, keep.shape[1], -1)
