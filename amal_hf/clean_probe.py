"""What clean rows alone say of an example: a linear reading of the student's last hidden state.

A student that is trained on wrong labels comes to believe them, and then its losses do not tell them any more. A
reading that has never seen these labels still does.

1. A memory holds the states of the clean rows that were seen last, and their classes.
2. Ridge regression from states to classes is solved in closed form, in as many unknowns as there are rows.
3. Its strength, and the scale that makes probabilities of its scores, are those that predict each row best from all
   the others (leave-one-out, in closed form too). Of few rows, or of states that say little, it claims little.
4. The rows of the present meta batch are left out: what they are to judge must not know them.
5. What it believes of clean rows it has not seen says what to expect of right labels and of wrong ones. Training rows
   are compared with it as if one clean row of their class had not been seen either, in closed form again: of a class
   with six clean rows one more or less is much (`benchmarks/LOG.md`).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amal_hf.shapes import Logits, PerExample


MOST_ROWS = 512
"""Of the memory: a few hundred clean rows are usual, and the cost grows with the cube of their number."""

STRENGTHS = (0.3, 3.0, 30.0)
"""Of the ridge, in units of the mean squared length of a state."""

SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Of scores, which are shares of a class; 0 makes all classes as likely."""

DOUBT = 16
"""So many more rows are counted in, of which nothing is known, when the scale is chosen: a handful of rows that happen
to predict each other would have it be certain (`benchmarks/LOG.md`)."""

FEWEST_ROWS = 2 * DOUBT
"""With less than these it says nothing: what it said of 20 clean rows in all was believed, and did harm (as there)."""


class CleanRows(NamedTuple):
    """Rows of the meta set: their numbers `(n,)`, their states `(n, D)`, their classes `(n,)`."""

    numbers: Tensor
    states: Tensor
    classes: Tensor

    def where(self, mask: Tensor) -> "CleanRows":
        """Some of them."""
        return CleanRows(*(part[mask] for part in self))

    def and_then(self, others: "CleanRows") -> "CleanRows":
        """These and others, the newest `MOST_ROWS`."""
        return CleanRows(*(torch.cat(parts)[-MOST_ROWS:] for parts in zip(self, others, strict=True)))


class Reading(NamedTuple):
    """A fitted probe: logits are `(unit(state) − centre) @ weight + bias`.

    `in_right` and `in_wrong`, `(C,)`, are the mean probabilities that it gives a class where it is that of a clean
    row, and where it is not, of rows that it has not seen; `spread` is by how much single rows of a class differ from
    that, their standard deviation. Without its row j logits are less by
    `((unit(state) − centre) · reach_j) answers_j`, `(n, D)` and `(n, C)`, rows in the order of their classes; of each
    class the first of them and how many there are, `(C,)`.
    """

    centre: Tensor
    weight: Tensor
    bias: Tensor
    in_right: Tensor
    in_wrong: Tensor
    spread: Tensor
    reach: Tensor
    answers: Tensor
    first: Tensor
    counts: Tensor


class CleanProbe(nn.Module):
    """A linear classifier of hidden states, fitted to clean rows alone.

    The rows are kept, and the fit is made, on the CPU: a few small systems of equations take a GPU longer.

    Args:
        classes: C.

    References: fitting a last layer anew on clean rows, Kirichenko et al. 2022, arXiv:2204.02937.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.memory: CleanRows | None = None
        self.present: CleanRows | None = None
        self._reading: Reading | None = None

    def note(self, seen: CleanRows) -> None:
        """Remember a meta batch, from the next one on; without copies, and rows without a class or a finite state."""
        seen = CleanRows(seen.numbers.cpu(), seen.states.detach().float().cpu(), seen.classes.cpu())
        copies = (seen.numbers[:, None] == seen.numbers).triu(1).any(1)
        seen = seen.where((seen.classes >= 0) & seen.states.isfinite().all(1) & ~copies)
        held = seen.where(torch.zeros_like(seen.classes, dtype=torch.bool))
        if self.memory is not None and self.present is not None:
            held = self.memory.and_then(self.present)
        self.memory = held.where(~torch.isin(held.numbers, seen.numbers))
        self.present = seen
        self._reading = None

    @property
    def knows(self) -> bool:
        """Whether it has rows enough to read by."""
        return self.memory is not None and len(self.memory.classes) >= FEWEST_ROWS

    def logits(self, states: Tensor) -> Logits:
        """`(B, D) -> (B, C)`.

        Raises:
            RuntimeError: it has seen too few.
        """
        with torch.no_grad(), torch.autocast(states.device.type, enabled=False):
            if self.reading().weight.device != states.device:
                self._reading = Reading(*(part.to(states.device) for part in self.reading()))
            centre, weight, bias, *_ = self.reading()
            return (unit(states.float()) - centre) @ weight + bias

    def beliefs(self, logits: Logits, states: Tensor, classes: Tensor) -> PerExample:
        """`(B,)`: the probability of each example's class, as of a clean row that it has not seen.

        One of the rows of that class is left out, another for each example of the batch.

        Args:
            logits: `(B, C)`, its own of these states.
            states: `(B, D)`.
            classes: `(B,)`, whole numbers from 0.

        Raises:
            RuntimeError: it has seen too few.
        """
        with torch.no_grad(), torch.autocast(states.device.type, enabled=False):
            reading = self.reading()
            counts = reading.counts[classes]
            turn = torch.arange(len(classes), device=classes.device) % counts.clamp(min=1)
            row = (reading.first[classes] + turn).clamp(max=len(reading.answers) - 1)
            known = ((unit(states.float()) - reading.centre) * reading.reach[row]).sum(1, keepdim=True)
            unseen = logits - (counts > 0)[:, None] * known * reading.answers[row]
            return unseen.softmax(1).gather(1, classes[:, None])[:, 0]

    def reading(self) -> Reading:
        """What is fitted to the memory.

        Raises:
            RuntimeError: it has seen too few rows.
        """
        if self.memory is None or not self.knows:
            raise RuntimeError(f"CleanProbe: it has noted less than {FEWEST_ROWS} clean rows; ask `knows` first.")
        if self._reading is None:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                self._reading = fitted(self.memory, self.classes)
        return self._reading

    def get_extra_state(self) -> dict[str, Any]:
        """The rows; what is fitted to them follows."""
        rows = {"memory": self.memory, "present": self.present}
        return {name: None if part is None else part._asdict() for name, part in rows.items()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the rows."""
        self.memory, self.present = (
            None if part is None else CleanRows(**part) for part in (state["memory"], state["present"])
        )
        self._reading = None


def unit(states: Tensor) -> Tensor:
    """States normalised to mean zero and length one."""
    return F.layer_norm(states, states.shape[1:]) / states.shape[1] ** 0.5


def fitted(rows: CleanRows, classes: int) -> Reading:
    """Ridge regression in its dual form, with the strength and the scale that leave-one-out prefers."""
    states = unit(rows.states)
    centre = states.mean(0)
    states = states - centre
    targets = F.one_hot(rows.classes.long(), classes).to(states)
    shares = targets.mean(0)
    kernel = states @ states.T
    size = kernel.diagonal().mean().clamp(min=torch.finfo(kernel.dtype).tiny)
    inverses, coefficients, errors = _ridges(kernel / size, targets - shares)
    best = errors.square().sum((1, 2)).argmin()
    unseen, own = targets - errors[best], rows.classes.long()
    scale = _scale(unseen, own)
    answers, inverse, order = scale * coefficients[best], inverses[best], own.argsort()
    counts = own.bincount(minlength=classes)
    return Reading(
        centre,
        states.T @ answers / size,
        scale * shares,
        *_beliefs((scale * unseen).softmax(1), targets),
        reach=(inverse @ states / inverse.diagonal()[:, None] / size)[order],
        answers=answers[order],
        first=counts.cumsum(0) - counts,
        counts=counts,
    )


def _beliefs(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean probability of each class where it is right, and where it is wrong; of one without rows that of all.

    And the standard deviation within classes of those where it is right.
    """
    others, overall = 1 - targets, (probabilities * targets).sum() / targets.sum()
    in_right = (probabilities * targets).sum(0) / targets.sum(0)
    in_wrong = (probabilities * others).sum(0) / others.sum(0).clamp(min=1)
    in_right = torch.where(targets.any(0), in_right, overall)
    freedom = (len(targets) - targets.any(0).sum()).clamp(min=1)
    spread = (((probabilities - in_right) * targets).square().sum() / freedom).sqrt()
    return in_right, in_wrong, spread


def _ridges(kernel: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For every strength λ `(K + λ)⁻¹`, the coefficients with it, and errors of each row predicted from the others."""
    strengths = torch.tensor(STRENGTHS, dtype=kernel.dtype, device=kernel.device)
    ridge = strengths[:, None, None] * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    inverses = torch.cholesky_inverse(torch.linalg.cholesky(kernel + ridge))
    coefficients = inverses @ targets
    return inverses, coefficients, coefficients / inverses.diagonal(dim1=1, dim2=2)[..., None]


def _scale(scores: Tensor, classes: Tensor) -> Tensor:
    """The one whose softmax costs least; `DOUBT` rows of unknown class are what smoothed labels stand for."""
    doubt = DOUBT / (DOUBT + len(classes))
    costs = [F.cross_entropy(scale * scores, classes, label_smoothing=doubt) for scale in SCALES]
    return scores.new_tensor(SCALES)[torch.stack(costs).argmin()]
