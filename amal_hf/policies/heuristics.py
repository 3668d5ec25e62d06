"""Weights by rule of thumb, three of them the controls of Learning to Reweight Examples (arXiv:1803.09050).

None needs a meta set.

Each gives every example one weight for all its losses, one on average, times the initial mixture. An example without
any loss is none of those that are chosen among.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from amal_hf.class_counts import class_weights, of_class, one_class_labels
from amal_hf.policies.policy import Observation, Policy, Signals, Sizes, among_present, sharing
from amal_hf.random_numbers import generator_of
from amal_hf.shapes import Features, LossTable, PerExample


class Heuristic(Policy):
    """A fixed rule for how much an example counts."""

    learns = False
    mixture: Tensor

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """Take over the mixture."""
        del sizes
        self.register_buffer("mixture", initial.clone())

    @abstractmethod
    def importance(self, observation: Observation) -> PerExample:
        """`(B,)`, not negative, one on average."""

    def weights(self, observation: Observation) -> LossTable:
        """`(B, K)`: importance times mixture."""
        self.to(observation.features.device)  # once: a GPU would be waited for at every step
        return self.importance(observation)[:, None] * among_present(self.mixture, observation)


class RandomRectified(Heuristic):
    """`max(z, 0)` of a Gaussian `z`, drawn anew for every example at every step, scaled to mean one.

    As many weights are zero as `RectifiedSlopes` would give on average, at random: nearly as good on some data, and
    so the first thing to compare with.

    Args:
        seed: of the draws, which depend on seed, example and progress alone.
    """

    needs_ids = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def importance(self, observation: Observation) -> PerExample:
        """Divided by the mean of a rectified Gaussian, `1/√(2π)`."""
        draws = [self._draw(example, observation.progress) for example in observation.ids.tolist()]
        return torch.tensor(draws, device=observation.ids.device).clamp(min=0) * math.sqrt(2 * math.pi)

    def _draw(self, example: int, progress: object) -> float:
        return float(torch.randn((), generator=generator_of(self.seed, example, progress)))


class ClassProportional(Heuristic):
    """Every class counts the same: `N / (C n_c)` for an example of a class with `n_c` of N rows.

    Args:
        counts: rows of each class in the training set.
        power: weights are `n_c` to the power of `-power`, scaled to a mean of one; 0.5 is half way to equal classes.

    Raises:
        ValueError: fewer than two classes, or one without a row; a power outside [0, 1].
    """

    needs_one_class = True

    def __init__(self, counts: Sequence[int], power: float = 1.0) -> None:
        super().__init__()
        if len(counts) < 2 or min(counts) < 1:
            raise ValueError(f"ClassProportional: needs rows in each of at least two classes, got {list(counts)}.")
        if not 0 <= power <= 1:
            raise ValueError(f"ClassProportional: power must lie in [0, 1], got {power}.")
        self.register_buffer("by_class", class_weights(torch.tensor(counts, dtype=torch.float32), power))

    def observe(self, signals: Signals) -> Features:
        """The label, `(B, 1)`."""
        labels = one_class_labels(signals.batch, len(signals.losses), "ClassProportional")
        return labels.to(signals.losses)[:, None]

    def importance(self, observation: Observation) -> PerExample:
        """By the label; 1 without one."""
        return of_class(self.get_buffer("by_class"), observation.features[:, 0], 1.0)


class HardMining(Heuristic):
    """The examples with the largest losses and no others, `1/share` each.

    Args:
        share: of every micro-batch that is kept, in (0, 1].

    Raises:
        ValueError: a share outside (0, 1].
    """

    def __init__(self, share: float = 0.2) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"HardMining: share must lie in (0, 1], got {share}.")
        self.share = share

    def observe(self, signals: Signals) -> Features:
        """The losses added up, `(B, 1)`."""
        return signals.losses.sum(1, keepdim=True)

    def importance(self, observation: Observation) -> PerExample:
        """At least one example of a micro-batch is kept."""
        return highest(observation.features[:, 0], self.share, observation.present)


class SmallLoss(Heuristic):
    """The examples with the smallest losses and no others: what a student learns late is perhaps wrong.

    All count at first; until the share `ramp` of training is done, `forgotten` of them are given up one by one. The
    losses that an example has are added up as the mixture weighs them.

    Args:
        forgotten: share that is left out in the end, in [0, 1); about that of wrong labels.
        ramp: share of training until then, in (0, 1]. Co-teaching takes 10 of 200 epochs.
        among: of how many of the latest examples that share is; of each micro-batch by default, as published. Of 16
            examples of which 30 % are wrong on average, more than 5 are often: with as many given up in each batch 6 %
            of those that are kept would be wrong, however well wrong ones were known.

    Raises:
        ValueError: a number out of its range.

    References:
        The selection of Co-teaching (Han et al. 2018, arXiv:1804.06872) with one network.
    """

    latest: Tensor

    def __init__(self, forgotten: float = 0.2, ramp: float = 0.3, among: int | None = None) -> None:
        super().__init__()
        if not 0 <= forgotten < 1 or not 0 < ramp <= 1 or not (among is None or among > 0):
            raise ValueError(
                f"{type(self).__name__}: forgotten must lie in [0, 1), ramp in (0, 1], and among be above 0 (or None, "
                f"for the micro-batch); got {forgotten}, {ramp} and {among}."
            )
        self.forgotten = forgotten
        self.ramp = ramp
        self.among = among
        self.notes_steps = among is not None

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """Forget the latest examples."""
        super().reset(sizes, initial)
        self.register_buffer("latest", torch.full((self.among or 0,), torch.nan))

    def observe(self, signals: Signals) -> Features:
        """The weighed loss, `(B, 1)`."""
        mixture, present = self.mixture.to(signals.losses).expand_as(signals.losses), signals.present()
        weights = mixture if present is None else sharing(mixture * present, mixture)
        return (weights * signals.losses).sum(1, keepdim=True)

    def importance(self, observation: Observation) -> PerExample:
        """At least one example of a micro-batch is kept, unless they are chosen among more."""
        left_out = self.forgotten * min(float(observation.progress) / self.ramp, 1.0)
        costs = observation.features[:, 0]
        if self.among is None:
            return highest(-costs, 1 - left_out, observation.present)
        # NaN: nothing seen so far, or an example without a loss. Without any bar all are kept.
        bar = quantile(self.latest.to(costs), 1 - left_out).nan_to_num(torch.inf)
        return (costs <= bar) / (1 - left_out) if left_out else torch.ones_like(costs)

    def note_step(self, features: Features) -> None:
        """The newest take the place of the oldest."""
        self.latest = torch.cat([self.latest.to(features), features[:, 0]])[-len(self.latest) :]


def quantile(values: Tensor, share: float) -> Tensor:
    """The quantile `()`, at a share from 0 to 1, of those values `(n,)` that are not NaN; NaN if all are.

    In their own precision: `torch.nanquantile` computes in float64 from torch 2.14 on, which Apple's GPUs do not have.
    """
    ranked = values.sort().values  # NaN last
    place = share * ((~values.isnan()).sum() - 1).clamp(min=0).to(values)
    below, above = ranked.index_select(0, torch.stack([place.floor(), place.ceil()]).long())
    return below.lerp(above, place.frac())


def highest(scores: PerExample, share: float, present: Tensor | None) -> PerExample:
    """`(B,)`: the same for all that are among the highest, so that the mean is one; 0 for the rest.

    Args:
        scores: `(B,)`.
        share: of the examples that have any loss, in (0, 1]; at least one is kept.
        present: `(B, K)`, bool: which losses they have; `None` for all.
    """
    able = torch.ones_like(scores, dtype=torch.bool) if present is None else present.any(1)
    ranks = scores.masked_fill(~able, -torch.inf).argsort(descending=True).argsort()
    count = able.sum()  # on the device: nobody waits for it
    kept = (share * count).round().clamp(min=1)
    return (ranks < kept) * count / kept
