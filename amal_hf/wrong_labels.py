"""How many training labels are wrong, or of other classes than clean rows have, and how far to reweigh them.

Labels get less of the probe's belief than those of clean rows it has not seen, as far as they are wrong. Weights that
are learned where training rows are as good as clean ones find something all the same: they take from hard examples.
"""

import torch
from torch import Tensor, nn

from amal_hf.clean_probe import CleanProbe
from amal_hf.processes import totals
from amal_hf.shapes import PerExample


ENOUGH = 0.2
"""The share of wrong and of surplus labels from which on weights are what was learned; with none all examples weigh
alike. 0.2 was better than 0.1, which is within what a few hundred rows can tell (`benchmarks/LOG.md`)."""

MOMENTUM = 0.1
"""Share of one update in the running means: some hundred examples. Not tuned."""

LEAST_DIFFERENCE = 0.1
"""Of the belief in right and in wrong labels: with less, means over a few hundred rows say nothing."""


class WrongLabels(nn.Module):
    """A running estimate, on the device of the examples, which is not waited for.

    Attributes:
        updates: so many have been noted.
        beliefs: `(3,)`, means over the labels of the last of them: what the probe gives the label, what it would give
            it were it right, and were it wrong.
        chance: the standard error of the second, as clean rows are few.
        shift: `class_shift` of them.
    """

    updates: Tensor
    beliefs: Tensor
    chance: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("updates", torch.zeros(()))
        self.register_buffer("beliefs", torch.zeros(3))
        self.register_buffer("chance", torch.zeros(()))
        self.register_buffer("shift", torch.zeros(()))

    def note(self, probe: CleanProbe, beliefs: PerExample, classes: PerExample, counts: Tensor) -> None:
        """The examples of one update, over all processes; nothing as long as the probe knows too little.

        Args:
            probe: as it stands.
            beliefs: `(B,)`, what it gives the labels, as of rows that it has not seen.
            classes: `(B,)`, of the labels, negative for none.
            counts: `(C,)`, how many training examples of each class were seen so far.
        """
        if probe.memory is None or not probe.knows:
            return
        self.to(beliefs.device)
        labelled, reading = classes >= 0, probe.reading()
        numbers = classes.clamp(min=0).long()
        expected = (part.to(beliefs.device)[numbers] for part in (reading.in_right, reading.in_wrong))
        *sums, count = totals([(part * labelled).sum() for part in (beliefs, *expected, torch.ones_like(beliefs))])
        self.updates = self.updates + (count > 0)
        new = (1 / self.updates.clamp(min=1)).clamp(min=MOMENTUM) * (count > 0)
        self.beliefs = self.beliefs.lerp(torch.stack(sums) / count.clamp(min=1), new)
        clean = torch.bincount(probe.memory.classes, minlength=len(counts)).to(beliefs.device)
        self.shift = class_shift(counts.to(beliefs.device), clean)
        self.chance = reading.spread.to(beliefs.device) * _per_row(counts.to(beliefs.device), clean)

    @property
    def share(self) -> Tensor:
        """How many labels are wrong, a number in [0, 1]; NaN where that cannot be told."""
        belief, in_right, in_wrong = self.beliefs
        share = ((in_right - belief) / (in_right - in_wrong)).clamp(0, 1)
        return share.where(in_right - in_wrong >= LEAST_DIFFERENCE, torch.nan)

    @property
    def error(self) -> Tensor:
        """The standard error of `share`, as far as clean rows that were drawn at random leave it to chance."""
        _, in_right, in_wrong = self.beliefs
        return (1 - self.share) * self.chance / (in_right - in_wrong)

    @property
    def strength(self) -> Tensor:
        """How far weights are what was learned, from 0 to 1; 1 where it cannot be told what is wrong."""
        return ((self.share + self.shift) / ENOUGH).clamp(max=1).nan_to_num(1.0)


def _per_row(seen: Tensor, clean: Tensor) -> Tensor:
    """Standard error of a mean over training classes, `(C,)` counts of these and of clean rows, in that of one row."""
    shares = seen / seen.sum()
    alone = torch.where(clean > 0, clean, clean.sum())
    return (shares.square() / alone).sum().sqrt()


def class_shift(seen: Tensor, clean: Tensor) -> Tensor:
    """The share of training examples that are too many for their classes, `(C,)` counts of these and of clean rows.

    The total variation distance, less what it is on average where the few clean rows were drawn from the same classes.
    """
    shares, count = clean / clean.sum(), clean.sum()
    distance = (seen / seen.sum() - shares).abs().sum() / 2
    by_chance = (2 / torch.pi * shares * (1 - shares) / count).sqrt().sum() / 2
    return (distance - by_chance).clamp(min=0)
