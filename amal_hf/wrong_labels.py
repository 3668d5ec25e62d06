"""How many training labels are wrong, or of other classes than clean rows have, and how far to reweigh them.

Labels get less of the probe's belief than those of clean rows it has not seen, as far as they are wrong. Weights that
are learned where training rows are as good as clean ones find something all the same: they take from hard examples.
"""

from typing import Any

import torch
from torch import Tensor, nn

from amal_hf.clean_probe import CleanProbe
from amal_hf.processes import totals
from amal_hf.shapes import PerExample


ENOUGH = 0.2
"""The share of wrong and of surplus labels from which on weights are what was learned; with none all examples weigh
alike. 0.2 was better than 0.1, which is within what a few hundred rows can tell (`benchmarks/LOG.md`)."""

MOMENTUM = 0.1
"""Share of one update in the running mean of the belief: a few hundred examples, as many as there are clean rows."""

LEAST_DIFFERENCE = 0.1
"""Of the belief in right and in wrong labels: with less, means over a few hundred rows say nothing."""


class WrongLabels(nn.Module):
    """A running estimate.

    Attributes:
        updates: so many have been noted.
        beliefs: means over the labels of the last of them: what the probe gives the label, what it would give it were
            it right, and were it wrong.
        shift: `class_shift` of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.updates = 0
        self.beliefs = [0.0, 0.0, 0.0]
        self.shift = 0.0

    def note(self, probe: CleanProbe, beliefs: PerExample, classes: PerExample, counts: Tensor) -> None:
        """The examples of one update, over all processes.

        Args:
            probe: as it stands.
            beliefs: what it gives the labels.
            classes: of the labels, negative for none.
            counts: `(C,)`, how many training examples of each class were seen so far.
        """
        if probe.memory is None or not probe.knows:
            return
        labelled, reading = classes >= 0, probe.reading()
        numbers = classes.clamp(min=0).long()
        expected = (part.to(beliefs.device)[numbers] for part in (reading.in_right, reading.in_wrong))
        *sums, count = totals([(part * labelled).sum() for part in (beliefs, *expected, torch.ones_like(beliefs))])
        if not count:
            return
        self.updates += 1
        new = max(MOMENTUM, 1 / self.updates)
        self.beliefs = [old + new * (float(part / count) - old) for old, part in zip(self.beliefs, sums, strict=True)]
        self.shift = class_shift(counts.cpu(), torch.bincount(probe.memory.classes, minlength=len(counts)))

    @property
    def share(self) -> float | None:
        """How many labels are wrong, in [0, 1]; `None` where that cannot be told."""
        belief, in_right, in_wrong = self.beliefs
        if in_right - in_wrong < LEAST_DIFFERENCE:
            return None
        return min(max((in_right - belief) / (in_right - in_wrong), 0.0), 1.0)

    @property
    def strength(self) -> float:
        """How far weights are what was learned, from 0 to 1; 1 where it cannot be told what is wrong."""
        return 1.0 if self.share is None else min((self.share + self.shift) / ENOUGH, 1.0)

    def get_extra_state(self) -> dict[str, Any]:
        """All there is."""
        return {"updates": self.updates, "beliefs": self.beliefs, "shift": self.shift}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.updates, self.beliefs, self.shift = state["updates"], state["beliefs"], state["shift"]


def class_shift(seen: Tensor, clean: Tensor) -> float:
    """The share of training examples that are too many for their classes, `(C,)` counts of these and of clean rows.

    The total variation distance, less what it is on average where the few clean rows were drawn from the same classes.
    """
    shares, count = clean / clean.sum(), clean.sum()
    distance = (seen / seen.sum() - shares).abs().sum() / 2
    by_chance = (2 / torch.pi * shares * (1 - shares) / count).sqrt().sum() / 2
    return max(float(distance - by_chance), 0.0)
