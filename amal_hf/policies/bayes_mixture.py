"""The mixture of labels and a teacher that has not seen them, by Bayes' rule."""

import torch
from torch import Tensor

from amal_hf.class_counts import class_of
from amal_hf.policies.bayes_share import MOST_CLASSES, BayesShare
from amal_hf.policies.policy import Observation, Policy, Signals, Sizes
from amal_hf.shapes import Features, Logits, LossTable, PerExample


class BayesMixture(Policy):
    """The label's share is what makes its mixture with the teacher as sure of it as one may be; see `label_share`.

    Nothing is learned while training, and no meta set is needed. The teacher is asked about up to 10,000 training
    rows, drawn at random, before the first step. An example without a label follows its teacher.

    Raises:
        ValueError: when a trainer is made, other losses than the label's and one teacher's that has not seen the
            labels, or too many classes; at the first step, a training set that has no rows to draw from, as a stream,
            or labels that are not one class each.

    References: Khetan et al. 2018, arXiv:1712.04577.
    """

    learns = False

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """The initial mixture is of no interest.

        Raises:
            ValueError: losses or classes it is not for.
        """
        del initial
        if sizes.losses != 2 or not BayesShare.fits(sizes):
            raise ValueError(
                f"BayesMixture: is for two losses, CrossEntropy() and Distillation(..., has_seen_labels=False), and 2 "
                f"to {MOST_CLASSES} classes; got {list(sizes.names)}, {'a' if sizes.independent else 'no'} teacher "
                f"that has not seen the labels and gives all its logits, and {sizes.classes} classes. "
                f"Use amal() for others."
            )
        self.bayes = BayesShare(sizes)
        self.citation = self.bayes.citation
        self.told = False

    @property
    def rows_wanted(self) -> int:
        """Those that Bayes' rule asks for."""
        return self.bayes.rows_wanted

    def note_labels(self, logits: Logits, labels: PerExample) -> None:
        """For Bayes' rule."""
        self.bayes.note(logits, labels)

    def observe(self, signals: Signals) -> Features:
        """`(B, C + 1)`: what Bayes' rule asks of, the number of the class."""
        logits = self.bayes.logits(signals)
        return torch.cat([logits, class_of(signals.batch, len(logits), logits.device)[:, None]], 1)

    def weights(self, observation: Observation) -> LossTable:
        """`(B, 2)`, in the order of the losses.

        Raises:
            ValueError: nothing is known of the labels.
        """
        self.told = self.told or not self.rows_wanted  # asked once: a GPU would be waited for
        if not self.told:
            raise ValueError(
                "BayesMixture: was shown no labels. It needs labels of one class each, in a training set whose rows "
                "can be drawn by number, which those of a stream or of a data loader of your own cannot. Use amal(), "
                "which does without."
            )
        share = self.bayes.share(observation).nan_to_num(0.5).where(observation.features[:, -1] >= 0, 0.0)
        columns = {self.bayes.columns.label: share, self.bayes.columns.teacher: 1 - share}
        return torch.stack([columns[0], columns[1]], 1)

    def figures(self) -> dict[str, float]:
        """`wrong_labels_by_teacher`: the share of training labels that are wrong."""
        return {"wrong_labels_by_teacher": float(self.bayes.wrong)}

    def describe(self) -> str:
        """At what temperature the teacher is read."""
        return f"BayesMixture, teacher at temperature {float(self.bayes.temperature):g}"
