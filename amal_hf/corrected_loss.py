"""A loss to labels whose errors are known: answers, made as wrong as labels are, should look like these."""

from typing import Any

import torch
from torch import Tensor

from amal_hf.cross_entropy import CrossEntropy
from amal_hf.shapes import IGNORED, Batch, Logits, PerExample
from amal_hf.task import at_least_fp32
from amal_hf.tokens import token_means


CITATION = """@inproceedings{patrini2017making,
  title = {Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach},
  author = {Patrini, Giorgio and Rozza, Alessandro and Krishna Menon, Aditya and Nock, Richard and Qu, Lizhen},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  year = {2017},
  eprint = {1609.03683},
}"""

ROUNDING = 1e-3
"""By which the sum of probabilities may miss 1."""


class CorrectedCrossEntropy(CrossEntropy):
    """`−log Σ_c p_c M[c, y]`: the cost of the label y where a row of class c is given it in M[c, y] of the cases.

    A student that is right about classes then has the least loss, however labels go wrong, as long as they do so by
    class and not by text. Of tokens the mean over an example's labelled ones. Label smoothing mixes in the mean of
    `−log p_c`, as with cross-entropy. Evaluation stays plain.

    Args:
        confusions: M, `(C, C)`: how often a row of each class is given each label. `label_posterior(...).confusions`
            finds it beside a teacher that has not seen the labels.
        trusted: column of the training set, `(B,)`, yes or no: whose labels are right and cost what they always do.
            By default no row's.
        name: column name.
        column: where the labels are, as for `CrossEntropy`.

    Raises:
        ValueError: confusions of another shape, or whose rows are not probabilities.

    References:
        Forward correction, Patrini et al. 2017, arXiv:1609.03683; rows with right labels beside the others as in
        Hendrycks et al. 2018, "Using Trusted Data to Train Deep Networks on Labels Corrupted by Severe Noise",
        arXiv:1802.05300.
    """

    citation = CITATION

    def __init__(
        self, confusions: Any, trusted: str | None = None, name: str = "labels", column: str = "labels"
    ) -> None:
        super().__init__(name, column)
        self.log_confusions = _log_of(torch.as_tensor(confusions))
        self.trusted = trusted
        self.columns += () if trusted is None else (trusted,)

    def describe(self) -> str:
        """How often labels are right, each class counting once."""
        right = float(self.log_confusions.diagonal().exp().mean())
        return f"CorrectedCrossEntropy, {len(self.log_confusions)} classes, of which {right:.0%} keep their label"

    def check(self, rows: Any, classes: int) -> None:
        """One of the student's classes for every row.

        Raises:
            ValueError: several yes/no labels, numbers, probabilities, or another number of classes.
        """
        del rows
        if self.task.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"CorrectedCrossEntropy: is for one class a row, and the student's problem_type is "
                f"'{self.task.problem_type}'. Use CrossEntropy()."
            )
        if classes != len(self.log_confusions):
            raise ValueError(
                f"CorrectedCrossEntropy: the confusions are of {len(self.log_confusions)} classes, and the student "
                f"has {classes}. Pass those of its classes, in their order."
            )

    def __call__(self, outputs: Any, batch: Batch) -> PerExample:
        """`(B,)`."""
        return self.of_teacher(outputs.logits, batch)

    def of_teacher(self, logits: Logits, batch: Batch) -> PerExample:
        """`(B,)`: the same for a teacher."""
        costs = self.of_logits(logits, batch[self.column])
        if self.trusted is None:
            return costs
        return torch.where(batch[self.trusted].bool(), super().of_logits(logits, batch[self.column]), costs)

    def of_logits(self, logits: Logits, labels: Tensor) -> PerExample:
        """`(B,)`: of labels none of which is trusted.

        Raises:
            ValueError: probabilities in place of classes.
        """
        if labels.is_floating_point():
            raise ValueError(
                f"CorrectedCrossEntropy: column '{self.column}' holds {labels.dtype}, and a label must be one class. "
                f"Use CrossEntropy() for probabilities."
            )
        if logits.ndim == 3:
            targets = self.task.targets(labels)
            flat = targets.flatten()
            return token_means(lambda picked, places: self._costs(picked, flat[places]), logits, targets != IGNORED)
        return torch.where(labels != IGNORED, self._costs(logits, labels.clamp(min=0)), 0.0)

    def _costs(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = at_least_fp32(logits).log_softmax(-1)
        # Kept there: a GPU would be waited for at every step.
        self.log_confusions = self.log_confusions.to(log_p.device)
        reached = (log_p + self.log_confusions[:, labels].T).logsumexp(-1)
        smoothing = self.task.label_smoothing  # at 0 an impossible class must not count: 0 times infinity is no number
        return torch.lerp(-reached, -log_p.mean(-1), smoothing) if smoothing else -reached


def _log_of(confusions: Tensor) -> Tensor:
    """In float32; a probability of 0 stays a number, as a label that no class is given must have a loss."""
    wrong = _what_is_wrong(confusions)
    if wrong:
        raise ValueError(
            f"CorrectedCrossEntropy: confusions must be (C, C), and every row the probabilities of the labels that a "
            f"class is given; got {wrong}. Take those of label_posterior(...)."
        )
    return confusions.float().clamp(min=torch.finfo(torch.float32).tiny).log()


def _what_is_wrong(confusions: Tensor) -> str | None:
    if confusions.ndim != 2 or len(confusions) != confusions.shape[1] or len(confusions) < 2:
        return f"the shape {tuple(confusions.shape)}"
    if (confusions < 0).any():
        return "numbers below 0"
    sums = confusions.sum(1)
    return None if ((sums - 1).abs() < ROUNDING).all() else f"rows that add up to {sums.tolist()}"
