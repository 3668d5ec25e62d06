"""What labels have of their mixture with a teacher that has not seen them, by Bayes' rule: for policies."""

import torch
from torch import Tensor, nn

from amal_hf.calibration import CITATION as CALIBRATION_CITATION
from amal_hf.noisy_labels import CITATION, MOST_ROWS_TO_CHOOSE, label_posterior, label_share
from amal_hf.policies.policy import Independent, Observation, Signals, Sizes
from amal_hf.shapes import Features, Logits, PerExample


MOST_CLASSES = 512
"""Expectation maximisation takes seconds for 77 classes, and grows with their number."""

SMALLEST_SHARE = 0.02
"""Of a loss at the start, so that it can come back."""


class BayesShare(nn.Module):
    """The label's share of an example, as far as labels and teacher tell; see `label_share`.

    Features of its policy begin with the teacher's C logits and end with the number of the label's class.

    Args:
        sizes: those that it `fits`.
        initial: the mixture that scores start from, `(K,)`; equal shares by default.

    Attributes:
        confusions: `(C, C)`, as of `LabelPosterior`, with `temperature` and `wrong`; NaN until labels were seen.

    Raises:
        ValueError: other sizes.
    """

    confusions: Tensor
    temperature: Tensor
    wrong: Tensor
    started: Tensor

    def __init__(self, sizes: Sizes, initial: Tensor | None = None) -> None:
        super().__init__()
        if sizes.independent is None or not self.fits(sizes):
            raise ValueError(
                f"BayesShare: is for labels of 2 to {MOST_CLASSES} classes and one teacher that has not seen them; "
                f"got {sizes.classes} classes and the losses {list(sizes.names)}. Go without: amal()."
            )
        self.columns: Independent = sizes.independent
        self.place = sizes.teachers.index(self.columns.teacher)
        self.classes = sizes.classes
        self.register_buffer("confusions", torch.full((self.classes, self.classes), torch.nan))
        self.register_buffer("temperature", torch.tensor(torch.nan))
        self.register_buffer("wrong", torch.tensor(torch.nan))
        mixture = torch.ones(sizes.losses) if initial is None else initial
        pair = mixture[[self.columns.label, self.columns.teacher]] / mixture.sum()
        self.register_buffer("started", _log_shares(pair.clamp(min=1e-4)), persistent=False)

    @staticmethod
    def fits(sizes: Sizes) -> bool:
        """Whether there are labels of not too many classes, and one teacher that has not seen them."""
        return sizes.independent is not None and 2 <= sizes.classes <= MOST_CLASSES

    @property
    def citation(self) -> str:
        """Of the rule, and of the calibration where the teacher has one."""
        return CITATION if self.columns.temperature is None else f"{CITATION}\n\n{CALIBRATION_CITATION}"

    @property
    def rows_wanted(self) -> int:
        """So many training rows are to be shown, before it knows anything."""
        return MOST_ROWS_TO_CHOOSE if bool(self.temperature.isnan()) else 0

    def note(self, logits: Logits, labels: PerExample) -> bool:
        """Find out how labels go wrong, see `label_posterior`; whether that could be told.

        Args:
            logits: `(N, C)`, of the teacher; rows of which some are no numbers are left out.
            labels: `(N,)`, class numbers, negative for none.
        """
        told = ~logits.isnan().any(1)
        logits, labels = logits[told].float().clamp(-1e4, 1e4), labels[told]  # minus infinity: an unknown class
        if not bool((labels >= 0).any()) or logits.shape[1] != self.classes:  # which the loss refuses in words
            return False
        known = label_posterior(logits, labels, self.columns.temperature)
        self.confusions.copy_(known.confusions)
        self.temperature.fill_(known.temperature)
        self.wrong.fill_(known.wrong)
        return True

    def logits(self, signals: Signals) -> Features:
        """`(B, C)`, of the teacher: the first features; zeros where examples have not one class each, but words."""
        logits = torch.as_tensor(signals.teacher_logits[self.place]).to(signals.losses)
        shape = len(signals.losses), self.classes
        return logits if logits.shape == shape else signals.losses.new_zeros(shape)

    def share(self, observation: Observation) -> PerExample:
        """The label's share, `(B,)`; NaN where nothing is known."""
        logits, labels = observation.features[:, : self.classes], observation.features[:, -1]
        self.to(logits.device)
        beliefs = (logits / self.temperature).softmax(1)
        share = label_share(beliefs, self.confusions.to(beliefs), labels.clamp(min=0).long())
        return torch.where(labels >= 0, share, torch.nan)

    def moved(self, scores: Tensor, share: PerExample) -> Tensor:
        """Log shares, `(B, K)` or more columns: what label and teacher have together is divided by Bayes' rule,
        however it was divided at the start. That stays where nothing is known.
        """
        both = torch.stack([share, 1 - share]).clamp(min=SMALLEST_SHARE)
        label, teacher = (_log_shares(both) - self.started.to(both)[:, None]).nan_to_num(0.0)
        moves = torch.zeros_like(scores)
        moves[:, self.columns.label], moves[:, self.columns.teacher] = label, teacher
        return scores + moves


def _log_shares(both: Tensor) -> Tensor:
    """Of two that share something: 0 for equal ones."""
    return (both / both.mean(0)).log()
