"""What noisy labels and a teacher that has not seen them say together, by Bayes' rule.

1. The teacher, made softer or sharper, says how probable each class is, given the text.
2. How often a row of each class is given each label is estimated from the labels themselves, by expectation
   maximisation: no truth is needed.
3. The teacher is read at the temperature that is known (`calibration.py`), or else at that which makes labels most
   probable which were not counted.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from amal_hf.predicted import read_predicted
from amal_hf.random_numbers import generator_of


CITATION = """@inproceedings{khetan2018learning,
  title = {Learning From Noisy Singly-labeled Data},
  author = {Khetan, Ashish and Lipton, Zachary C. and Anandkumar, Anima},
  booktitle = {International Conference on Learning Representations},
  year = {2018},
  eprint = {1712.04577},
}"""

TEMPERATURES = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
"""Teachers of few clean rows are too sure, or not sure enough: all of these were chosen. With larger ones to choose
from wrong labels passed for right ones (`benchmarks/LOG.md`)."""

PRIOR_ROWS = 10.0
"""Of each class: a table of 77 classes has about as many entries as there are labels. Where labels choose the
temperature, these rows are labelled as rows are on the whole: with 1 of them the wrong one was chosen for TREC, with 1
and with 100 for banking77, and where labels go wrong evenly too soft a one when they were labelled right. Where the
temperature is known they are labelled right, but for as many as labels are found wrong, which are labelled as rows are
on the whole (`benchmarks/LOG.md`)."""

MOST_ROWS_TO_CHOOSE = 10_000
"""Of one temperature more rows say no more."""

ITERATIONS, TOLERANCE = 100, 1e-6


class LabelPosterior(NamedTuple):
    """What is known of N labels; all tensors are float64, on the CPU.

    Attributes:
        classes: `(N, C)`, how probable each class is, given text and label; given the text where there is no label.
        confusions: `(C, C)`, how often a row of a class is given each label.
        temperature: by which the teacher's logits are divided.
        wrong: the share of labels that is wrong; an estimate, too high where classes have few rows.
    """

    classes: Tensor
    confusions: Tensor
    temperature: float
    wrong: float


def label_posterior(logits: Any, labels: Any, temperature: float | None = None) -> LabelPosterior:
    """Read labels by a teacher, and the teacher by labels.

    Labels are taken to go wrong by class and not by text. Where their errors follow a pattern in the texts, the result
    is too sure, and still better than the teacher (`benchmarks/LOG.md`). The teacher must not have been trained on
    these labels: it would take them for right.

    Args:
        logits: `(N, C)` of the teacher on the training rows, the `predictions` of `Trainer.predict`; array or tensor.
        labels: `(N,)`, the `label_ids` of the same call: class numbers, those of the logits; a negative one is none.
        temperature: at which the teacher's probabilities are right, see `calibrated_temperature`. By default one of
            eight is chosen by these labels, which cannot tell a teacher that is wrong and sure of it from labels that
            are wrong.

    Raises:
        TypeError: what is no array of numbers, as the several outputs of one model are.
        ValueError: other shapes, logits that are not finite, a label that is no class, or no label at all; a
            temperature that is not positive and finite.

    References:
        Dawid and Skene 1979, with a classifier in the place of the frequencies of classes as in Khetan et al. 2018,
        "Learning From Noisy Singly-labeled Data", arXiv:1712.04577.
    """
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ValueError(
            f"label_posterior: temperature must be positive and finite, got {temperature}. Leave it out, or take that "
            f"of calibrated_temperature(...)."
        )
    scores, given = read_predicted("label_posterior", logits, labels)
    labelled = given >= 0
    known, numbers = scores[labelled], given[labelled].long()
    is_calibrated = temperature is not None
    if temperature is None:
        temperature = _best_temperature(known, numbers)
    classes = (scores / temperature).softmax(1)
    beliefs = classes[labelled]
    confusions = _confusions(beliefs, numbers, is_calibrated)
    classes[labelled] = _posterior(beliefs, confusions, numbers)
    wrong = 1 - classes[labelled].gather(1, numbers[:, None]).mean()
    return LabelPosterior(classes, confusions, temperature, float(wrong))


def label_share(beliefs: Tensor, confusions: Tensor, labels: Tensor) -> Tensor:
    """The label's share s, `(B,)`, so that `s · label + (1 − s) · teacher` gives the label its posterior probability.

    `q (r − o) / (q r + (1 − q) o)`, where the teacher gives the label q, r of the rows of its class have it, and so do
    o of those of the other classes, as the teacher expects them here. Where all others have it alike, as when labels
    go wrong evenly, the mixture is the whole posterior. 0 where a label speaks against its class.

    Args:
        beliefs: `(B, C)`, the teacher's probabilities.
        confusions: `(C, C)`, how often a row of a class is given each label.
        labels: `(B,)`, class numbers.
    """
    # No mask picks elements here: a GPU would be waited for, to know how many there are.
    own, given = labels[:, None], confusions[:, labels].T
    fit, hit = beliefs.gather(1, own)[:, 0], given.gather(1, own)[:, 0]
    others = beliefs.scatter(1, own, 0.0)
    missed = (others * given).sum(1)
    tiny = torch.finfo(beliefs.dtype).tiny
    gain = fit * (hit - missed / others.sum(1).clamp(min=tiny))
    return (gain / (fit * hit + missed).clamp(min=tiny)).clamp(0, 1)


def _best_temperature(scores: Tensor, labels: Tensor) -> float:
    """Under which each half of the labels is most probable, given the other half."""
    order = torch.randperm(len(labels), generator=generator_of(0))[:MOST_ROWS_TO_CHOOSE]
    halves = order[::2], order[1::2]

    def log_likelihood(temperature: float) -> float:
        beliefs = (scores / temperature).softmax(1)
        found = 0.0
        for seen, unseen in (halves, halves[::-1]):
            confusions = _confusions(beliefs[seen], labels[seen])
            found += float(_joint(beliefs[unseen], confusions, labels[unseen]).sum(1).log().sum())
        return found

    return max(TEMPERATURES, key=log_likelihood) if len(order) > 1 else 1.0


def _confusions(beliefs: Tensor, labels: Tensor, is_calibrated: bool = False) -> Tensor:
    """`(C, C)`, by expectation maximisation."""
    usual = (labels.bincount(minlength=beliefs.shape[1]).to(beliefs) / len(labels)).expand(beliefs.shape[1], -1)
    right = torch.eye(len(usual)).to(usual)
    table, posterior = usual, beliefs
    for _ in range(ITERATIONS):
        wrong = 1 - posterior.gather(1, labels[:, None]).mean() if is_calibrated else 1.0
        prior = PRIOR_ROWS * right.lerp(usual, wrong)
        counts = torch.zeros_like(table).index_add(0, labels, posterior).T + prior
        before = table
        table = counts / counts.sum(1, keepdim=True)
        if (table - before).abs().max() < TOLERANCE:
            break
        posterior = _posterior(beliefs, table, labels)
    return table


def _joint(beliefs: Tensor, confusions: Tensor, labels: Tensor) -> Tensor:
    """`(B, C)`: how probable class and label are together."""
    return (beliefs * confusions[:, labels].T).clamp(min=torch.finfo(beliefs.dtype).tiny)


def _posterior(beliefs: Tensor, confusions: Tensor, labels: Tensor) -> Tensor:
    joint = _joint(beliefs, confusions, labels)
    return joint / joint.sum(1, keepdim=True)
