"""How much a target gains from its source: a wrong translation gains nothing, long before its loss tells it apart."""

from dataclasses import replace

from torch import Tensor

from amal_hf.cross_entropy import CrossEntropy
from amal_hf.policies.heuristics import SmallLoss
from amal_hf.policies.policy import Signals
from amal_hf.shapes import WITHOUT_SOURCE, Features, Logits, PerExample
from amal_hf.task import Task


class SourceGain(SmallLoss):
    """The pairs whose source tells most of their target and no others, for students that translate or sum up.

    As `SmallLoss`, by the gain in the place of the loss. A loss says how hard a target is; most of that is fluency,
    which wrong targets share. What the decoder alone would pay less what it pays with the source says how much of
    the target is in the source, and tells wrong pairs many epochs before the loss does. One more forward pass of the
    decoder a step.

    Args:
        forgotten: share that is left out in the end, in [0, 1); about that of wrong pairs.
        ramp: share of training until then, in (0, 1]. With a half the surest go first, and hard pairs have time
            to be learned; a tenth was worse, where it was tried (`benchmarks/LOG.md`).
        among: of how many of the latest pairs that share is; `None` for those of the micro-batch.

    Raises:
        ValueError: a number out of its range; at the start of training, a student that is no encoder-decoder.

    References:
        The mean of these gains is the cross-mutual information of Bugliarello et al. 2020, arXiv:2005.02354.
    """

    needs_source_gain = True

    def __init__(self, forgotten: float = 0.2, ramp: float = 0.5, among: int | None = 1000) -> None:
        super().__init__(forgotten, ramp, among)

    def observe(self, signals: Signals) -> Features:
        """What the highest are kept of is the smallest feature, as for losses: the negative gain, `(B, 1)`."""
        return -source_gain(signals)[:, None]


def source_gain(signals: Signals) -> PerExample:
    """`(B,)`: by how much the mean log-probability of the target's tokens is higher with the source, in nats."""
    without: PerExample = signals.batch[WITHOUT_SOURCE]
    return (without - target_cost(signals.logits, signals.batch["labels"], signals.task)).detach()


def target_cost(logits: Logits, labels: Tensor, task: Task) -> PerExample:
    """`(B,)`: cross-entropy of the targets, never smoothed."""
    plain = CrossEntropy()
    plain.bind(replace(task, label_smoothing=0.0))
    return plain.of_logits(logits, labels)
