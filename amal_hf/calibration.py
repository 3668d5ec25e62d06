"""How sure a model may be: the temperature at which its probabilities are right."""

from typing import Any

from torch import Tensor

from amal_hf.predicted import read_predicted


CITATION = """@inproceedings{guo2017calibration,
  title = {On Calibration of Modern Neural Networks},
  author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle = {International Conference on Machine Learning},
  year = {2017},
  eprint = {1706.04599},
}"""

WIDEST = 1e4
"""Temperatures are looked for between the spread of the logits over this, and times this."""

HALVINGS = 60
"""Of that range, on a scale of ratios: to the last digit."""


def calibrated_temperature(logits: Any, labels: Any) -> float:
    """The temperature at which rows with right labels, that a model was not trained on, are most probable.

    As if there were one row more, labelled by chance: a model that errs on none of few rows is not for ever sure.

    Args:
        logits: `(N, C)`, the `predictions` of `Trainer.predict`; array or tensor.
        labels: `(N,)`, the `label_ids` of the same call, right ones; a negative one is none.

    Raises:
        TypeError: what is no array of numbers, as the several outputs of one model are.
        ValueError: other shapes, logits that are not finite, a label that is no class or no label at all; logits that
            speak against the labels.

    References: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
    """
    scores, given = read_predicted("calibrated_temperature", logits, labels)
    scores, given = scores[given >= 0], given[given >= 0].long()
    spread = float((scores - scores.mean(1, keepdim=True)).abs().max())
    if spread == 0 or _too_sure(0.0, scores, given) >= 0:
        hit = float((scores.argmax(1) == given).double().mean())
        raise ValueError(
            f"calibrated_temperature: on average logits must be higher for the label than for other classes; over "
            f"{len(given)} rows they are not (the highest is that of the label on {hit:.0%}). Has the model its "
            f"classes in another order, or learned nothing? Look at its accuracy, and leave the calibration out."
        )
    low, high = 1 / (WIDEST * spread), WIDEST / spread  # of the inverse, in which the likelihood has one maximum
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if _too_sure(middle, scores, given) > 0 else (middle, high)
    return float(1 / (low * high) ** 0.5)


def _too_sure(inverse: float, scores: Tensor, labels: Tensor) -> float:
    """By how much expected logits are above those of the labels: the slope of the log loss by the inverse."""
    expected = ((inverse * scores).softmax(1) * scores).sum(1)
    labelled = scores.gather(1, labels[:, None])[:, 0]
    return float((expected - labelled).sum() + (expected - scores.mean(1)).mean())
