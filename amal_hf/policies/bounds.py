"""Bounds: what keeps weights in a sensible range.

A table of free weights works better with every weight in [0, 2] on its own: a convex mixture cannot drop an example
whose label and teacher are both wrong. A network must be normalised: the part that all slopes share is a learning rate
in disguise, and drives unnormalised weights to their upper bound together.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amal_hf.policies.inward_softmax import inward_softmax, softmax
from amal_hf.processes import total, total_count
from amal_hf.shapes import LossTable


Projection: TypeAlias = Callable[[LossTable], LossTable]
"""For a table: the nearest allowed weights, `(B, K) -> (B, K)`."""

LEAST_MEAN = 0.2
"""Of sigmoids, which start at 0.5. It is what few examples had taken on banking77 that falls below; 0.33 and 0.5 hold
back what is better on TREC where errors follow a pattern (`benchmarks/LOG.md`)."""

_SMALLEST_MEAN = 1e-12  # its square is still above zero in fp32


def clamp(weights: LossTable) -> LossTable:
    """Every weight on its own in [0, 2], as in the AMAL code; `(B, K) -> (B, K)`."""
    return weights.clamp(0, 2)


def convex(weights: LossTable) -> LossTable:
    """Euclidean projection of every row onto the simplex, `(B, K) -> (B, K)`.

    No weight negative, their sum one (the form of the AMAL paper's first version).
    """
    # The projection does not mind a shift; a largest entry of 0 keeps the 1 below from being lost in rounding.
    weights = weights - weights.amax(-1, keepdim=True)
    ranked = weights.sort(-1, descending=True).values
    excess = ranked.cumsum(-1) - 1
    counts = torch.arange(1, weights.shape[-1] + 1, device=weights.device, dtype=weights.dtype)
    support = (ranked * counts > excess).sum(-1, keepdim=True)
    return (weights - excess.gather(-1, support - 1) / support).clamp(min=0)


class Normalisation(nn.Module, ABC):
    """For a network: scores in, weights out.

    Attributes:
        sums_to_one: whether the weights of an example do, on average at least, whatever the mixture sums to.
        is_mixture: whether an example's losses share out what it counts for among them.
        scores_example: whether one of the scores is of the example as a whole.
    """

    sums_to_one: bool = True
    is_mixture: bool = False
    scores_example: bool = False

    @abstractmethod
    def start(self, initial: Tensor) -> Tensor:
        """The scores that give the mixture `initial`, `(K,)`; as many as the network must put out."""

    @abstractmethod
    def forward(self, scores: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None) -> LossTable:
        """Weights `(B, K)` from scores, each example on its own, so that it does not matter how a batch is cut.

        Args:
            scores: `(B, K)`, or as many as `start` has.
            present: `(B, K)`, bool: which losses an example has; the others get nothing. All by default.
            counts_for: `(B, 1)`: what an example counts for before scores are looked at, 1 on average. One by
                default, and where no example may count more than another.
        """

    def of_step(self, scores: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None) -> LossTable:
        """The weights that an update differentiates, given the scores of a whole optimizer step."""
        weights: LossTable = self(scores, present, counts_for)
        return weights

    def note_update(
        self, before: Tensor, after: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None
    ) -> None:
        """Take note of an update: the scores of a whole optimizer step before and after it. Nothing by default."""


class Convex(Normalisation):
    """Softmax over the losses of an example.

    Its weights sum to one. With a single loss there is nothing to choose; use `MeanOne` or `GatedConvex`. An update
    does not push a weight below a fifth of an equal share any further down, so that it can come back
    (`inward_softmax.py`).
    """

    is_mixture = True

    def start(self, initial: Tensor) -> Tensor:
        """Log shares; a mixture that does not sum to one is scaled to it."""
        return _log(initial / initial.sum())

    def forward(self, scores: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None) -> LossTable:
        """`(B, K) -> (B, K)`."""
        return softmax(scores, present)

    def of_step(self, scores: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None) -> LossTable:
        """The same weights, with a gradient however sure they are."""
        return inward_softmax(scores, present)


class ConvexOrNone(Normalisation):
    """As `Convex`, with one more choice, "none of them": an example whose every loss misleads can be dropped.

    Args:
        share: what the extra choice starts with, in (0, 1).

    Raises:
        ValueError: a share outside it.
    """

    is_mixture = True

    def __init__(self, share: float = 0.1) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"ConvexOrNone: share must lie between 0 and 1, got {share}.")
        self.share = share

    def start(self, initial: Tensor) -> Tensor:
        """Log shares with one more column; the weights of a row sum to `1 − share` at the start."""
        kept = (1 - self.share) * initial / initial.sum()
        return _log(torch.cat([kept, kept.new_tensor([self.share])]))

    def forward(self, scores: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None) -> LossTable:
        """`(B, K + 1) -> (B, K)`."""
        return softmax(scores, _or_none(present))[:, :-1]

    def of_step(self, scores: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None) -> LossTable:
        """The same weights, with a gradient however sure they are."""
        return inward_softmax(scores, _or_none(present))[:, :-1]


class GatedConvex(Convex):
    """As `Convex`, times a weight of the example in (0, 2), which asks whether it helps at all.

    A row that is of no use can be left out, and one of a rare class count up to twice, without taking anything from
    rows that help less than the average, as `MeanOne` does. At the start all gates are one. What gates have in common
    is a learning rate in disguise, of at most twice: Adam divides it out but for clipped gradients, SGD does not.
    """

    scores_example = True

    def start(self, initial: Tensor) -> Tensor:
        """Log shares and, for the gate, a zero."""
        return torch.cat([super().start(initial), initial.new_zeros(1)])

    def forward(self, scores: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None) -> LossTable:
        """`(B, K + 1) -> (B, K)`."""
        return _times(super().forward(scores[..., :-1], present) * _gate(scores), counts_for)

    def of_step(self, scores: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None) -> LossTable:
        """The same weights, with a gradient however sure the shares are."""
        return _times(super().of_step(scores[..., :-1], present) * _gate(scores), counts_for)


class MeanOne(Normalisation):
    """Sigmoids, scaled so that weights sum to one on average over examples with a loss: these compete as well.

    What helps, but less than the average, loses its weight: right where all that is said of an example may be wrong,
    and a loss where a good teacher could have been followed (`benchmarks/LOG.md`).

    An example that lacks some of the losses, as rules that abstain do, starts with the same sum as the others: its
    sigmoids are divided by the share of the mixture that it has.

    An update divides by the mean of its own batch, which takes the common part out of the gradient. In between,
    weights are divided by a running mean of these, because a batch that is cut in pieces has several means. An update
    moves the running mean as much as the mean of its batch: one that only ran after it let all weights swing together
    between 0.5 and 1.2 where updates are far apart.

    The bar for an example is the mean slope of what has weight, and rises with it: late in a run, when most examples
    are learned and have next to no slope, a few hard ones would come to have all of it. So where sigmoids have a mean
    below `LEAST_MEAN`, weights are scaled by no more than that stands for, and the bar is the plain mean.

    Args:
        momentum: share of the new mean in the running one.

    Raises:
        ValueError: a momentum outside (0, 1].
    """

    mean: Tensor
    shares: Tensor

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(f"{type(self).__name__}: momentum must lie in (0, 1], got {momentum}.")
        self.momentum = momentum
        self.register_buffer("mean", torch.ones(()))
        self.register_buffer("shares", torch.ones(()), persistent=False)

    def start(self, initial: Tensor) -> Tensor:
        """Logits of half the shares, over a running mean that starts at a half.

        A share near one would start where a sigmoid has no gradient left.
        """
        self.mean.fill_(0.5)
        halves = (0.5 * initial / initial.sum()).clamp(min=1e-4)
        self.shares = 2 * halves
        return halves.logit()

    def forward(self, scores: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None) -> LossTable:
        """`(B, K) -> (B, K)`."""
        return self._raw(scores, present, counts_for) / self.mean.clamp(min=LEAST_MEAN)

    def of_step(self, scores: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None) -> LossTable:
        """Divided by the mean over all processes' batches."""
        raw = self._raw(scores, present, counts_for)
        mean = self._mean(raw, present)
        return torch.where(mean < LEAST_MEAN, self._against_plain_mean(raw, mean, present), raw / mean)

    def note_update(
        self, before: Tensor, after: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None
    ) -> None:
        """The running mean moves with the network, and a little towards the mean of this batch."""
        was, mean = (self._mean(self._raw(scores, present, counts_for), present) for scores in (before, after))
        moved = (self.mean * mean / was).lerp(mean, self.momentum)
        # A batch that has none of the losses tells nothing. Asked on the device: nobody waits.
        self.mean.copy_(torch.where(mean > _SMALLEST_MEAN, moved, self.mean))

    def _against_plain_mean(self, raw: Tensor, mean: Tensor, present: Tensor | None) -> LossTable:
        """The weights; their gradient is that of weights less their plain mean over all processes' batches."""
        given = torch.ones_like(raw) if present is None else present.to(raw)
        common = total(raw.sum()) / total(given.sum()).clamp(min=1)
        return (raw - given * (common - common.detach())) / mean.detach().clamp(min=LEAST_MEAN)

    def _mean(self, raw: Tensor, present: Tensor | None) -> Tensor:
        """Over the examples that have any loss: of the others there is nothing to weigh."""
        examples = total_count(len(raw), raw.device) if present is None else total(present.any(-1).sum()).clamp(min=1)
        return (total(raw.sum()) / examples).clamp(min=_SMALLEST_MEAN)

    def _raw(self, scores: Tensor, present: Tensor | None, counts_for: Tensor | None) -> Tensor:
        raw = _times(scores.sigmoid(), counts_for)
        if present is None:
            return raw
        held = (self.shares * present).sum(-1, keepdim=True)
        return _only(raw, present) / torch.where(held > 0, held, 1)


class AboveAverage(MeanOne):
    """As `MeanOne`, but a weight rises where its slope is above the average of all slopes, whatever weights they have.

    The gradient of `MeanOne` compares a slope with the mean weighted by the weights. That mean rises with what has
    weight already, and over thousands of updates few examples are left with all of it: among right translations the
    10th and 90th percentile were 0.3 and 1.8 where less than a fifth of what slopes say is about being right. Here
    everything above average keeps its weight, so examples are sorted into kept and left out. It is slower: in a run of
    less than a hundred updates `MeanOne` comes further.

    Args:
        momentum: share of the new mean in the running one.

    Raises:
        ValueError: a momentum outside (0, 1].
    """

    def of_step(self, scores: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None) -> LossTable:
        """Always against the plain mean."""
        raw = self._raw(scores, present, counts_for)
        return self._against_plain_mean(raw, self._mean(raw, present), present)


class TwiceSigmoid(Normalisation):
    """Every weight on its own in (0, 2), as in Meta-Weight-Net: not normalised at all."""

    sums_to_one = False

    def start(self, initial: Tensor) -> Tensor:
        """The mixture as it is; weights outside (0, 2) are taken to the nearest inside."""
        return (initial / 2).clamp(1e-4, 1 - 1e-4).logit()

    def forward(self, scores: Tensor, present: Tensor | None = None, counts_for: Tensor | None = None) -> LossTable:
        """`(B, K) -> (B, K)`."""
        return _only(2 * scores.sigmoid(), present)


def _gate(scores: Tensor) -> Tensor:
    return 2 * scores[..., -1:].sigmoid()


def _times(weights: Tensor, counts_for: Tensor | None) -> Tensor:
    return weights if counts_for is None else weights * counts_for


def _or_none(present: Tensor | None) -> Tensor | None:
    """With one more column: "none of them" can always be chosen."""
    return None if present is None else F.pad(present, (0, 1), value=True)


def _only(weights: Tensor, present: Tensor | None) -> Tensor:
    return weights if present is None else weights * present


def _log(shares: Tensor) -> Tensor:
    # A share of exactly zero would have no gradient and could never come back.
    return shares.clamp(min=1e-4).log()
