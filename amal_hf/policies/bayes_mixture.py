"""The mixture of label and teacher that Bayes' rule gives."""

import torch
from torch import Tensor

from amal_hf.class_counts import one_class_labels
from amal_hf.noisy_labels import LabelPosterior, label_share
from amal_hf.policies.policy import Observation, Policy, Signals, Sizes
from amal_hf.shapes import Features, LossTable


class BayesMixture(Policy):
    """The label's share is what makes its mixture with the teacher as sure of it as one may be; see `label_share`.

    Nothing is learned while training, and no meta set is needed. An example without a label follows its teacher.

    Args:
        known: of the training labels, `label_posterior(teacher_logits, labels)`.

    Raises:
        ValueError: when a trainer is made, other losses than the label's and one teacher's, or other classes; at the
            first batch, labels that are not one class each.
    """

    learns = False
    confusions: Tensor

    def __init__(self, known: LabelPosterior) -> None:
        super().__init__()
        self.register_buffer("confusions", known.confusions.float())
        self.temperature = known.temperature
        self.wrong = known.wrong

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """The initial mixture is of no interest.

        Raises:
            ValueError: losses or classes it is not for.
        """
        del initial
        classes = len(self.confusions)
        if sizes.losses != 2 or len(sizes.teachers) != 1 or sizes.classes != classes:
            raise ValueError(
                f"BayesMixture: is for two losses, CrossEntropy() and one Distillation(...), and {classes} classes; "
                f"got {list(sizes.names)}, {len(sizes.teachers)} of them of teachers, and {sizes.classes} classes. "
                f"Use amal() for other losses, and logits of the student's classes."
            )
        self.teacher_first = sizes.teachers == (0,)

    def observe(self, signals: Signals) -> Features:
        """The label's share, `(B, 1)`."""
        (logits,) = signals.teacher_logits
        beliefs = (torch.as_tensor(logits).float() / self.temperature).softmax(-1)
        self.confusions = self.confusions.to(beliefs.device)
        labels = one_class_labels(signals.batch, len(beliefs), "BayesMixture").to(beliefs.device)
        share = label_share(beliefs, self.confusions, labels.clamp(min=0).long())
        return share.where(labels >= 0, 0.0)[:, None]

    def weights(self, observation: Observation) -> LossTable:
        """`(B, 2)`, in the order of the losses."""
        share = observation.features
        pair = [1 - share, share] if self.teacher_first else [share, 1 - share]
        return torch.cat(pair, 1)

    def update(self, observation: Observation, slopes: LossTable) -> None:
        """Nothing to learn."""

    def figures(self) -> dict[str, float]:
        """`wrong_labels`: the share of training labels that are wrong."""
        return {"wrong_labels": self.wrong}

    def describe(self) -> str:
        """At what temperature the teacher is read."""
        return f"BayesMixture, teacher at temperature {self.temperature:g}"
