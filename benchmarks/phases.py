"""Stretches of training, and what they are made of: losses, methods that weigh them, rows.

A run of the quality benchmark is one phase or a few (contenders.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from correction import corruption_matrix
from datasets import DatasetDict
from first_weights import kept_by_weights
from numpy.typing import NDArray
from rivals import BelievedLabels, GivenWeights, right_votes
from settings import TRUSTED, Bench
from suspects import kept_rows
from teaching import clean_teacher_calibration, clean_teacher_logits, regression_logits, teacher_logits

from amal_hf import (
    ClassProportional,
    CorrectedCrossEntropy,
    CrossEntropy,
    Distillation,
    GeneralizedCrossEntropy,
    Loss,
    Method,
    Policy,
    RuleLosses,
    label_posterior,
)
from amal_hf.aggregation import label_by_votes, majority_vote


Losses: TypeAlias = Callable[[Bench], list[Loss]]
NewMethod: TypeAlias = Callable[[Bench], Method]
Kept: TypeAlias = Callable[[Bench], NDArray[np.bool_]]

CLEAN = ("clean",)
"""Stands for all splits with labels known to be right."""

ALL = ("train", "meta")
"""Clean rows among the training rows."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        losses: what is learned from.
        shares: their initial mixture; equal by default.
        method: how weights are learned; fixed by default.
        rows: splits to train on.
        kept: which rows of `train` are; the others are left out, and those that are kept are seen more often. All by
            default.
        epochs: over these rows; `None` takes what the other phases leave of the budget.
        rate: share of the body's learning rate.
        smoothing: of labels.
        voted: whether the majority's vote is the label of rows that have none.
        arguments: of the trainer, beside those that all phases have.
    """

    losses: Losses = lambda bench: [CrossEntropy()]
    shares: tuple[float, ...] | None = None
    method: NewMethod | None = None
    rows: tuple[str, ...] = ("train",)
    kept: Kept | None = None
    epochs: float | None = None
    rate: float = 1.0
    smoothing: float = 0.0
    voted: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


Phases: TypeAlias = tuple[Phase, ...]


def placed(values: torch.Tensor) -> torch.Tensor:
    """Where students are trained."""
    return values.to("cuda" if torch.cuda.is_available() else "cpu")


def beside(logits: torch.Tensor, temperature: float = 2.0, **known_of_it: Any) -> list[Loss]:
    """The label, and the teacher that gave these logits."""
    known = placed(logits)
    return [CrossEntropy(), Distillation(lambda batch: known[batch["example_id"]], temperature, **known_of_it)]


def with_teacher(bench: Bench, temperature: float = 2.0) -> list[Loss]:
    """The label, and the teacher."""
    return beside(teacher_logits(bench), temperature)


def with_clean_teacher(bench: Bench) -> list[Loss]:
    """The label, and a teacher of which it is known that it has seen the clean rows alone."""
    return beside(clean_teacher_logits(bench), has_seen_labels=False)


def with_calibrated_teacher(bench: Bench) -> list[Loss]:
    """And how sure it may be."""
    at = clean_teacher_calibration(bench)
    return beside(clean_teacher_logits(bench), has_seen_labels=False, calibrated_at=at)


def with_regression(name: str, kept: Kept) -> Losses:
    """The label, and regressions over features that were fitted to some other rows, and are as sure as they may be."""
    return lambda bench: beside(
        regression_logits(bench, name, kept(bench)), 1.0, has_seen_labels=False, calibrated_at=1.0
    )


def with_any_teacher(bench: Bench) -> list[Loss]:
    """The same one, as if nothing was known of what it has seen."""
    return beside(clean_teacher_logits(bench))


def corrected(bench: Bench) -> list[Loss]:
    """The label, as one that may be another class's."""
    train, meta = bench.splits["train"], bench.splits["meta"]
    matrix = corruption_matrix(teacher_logits(bench)[len(train) :], torch.tensor(meta["label"][:]))
    return [CorrectedCrossEntropy(matrix, trusted=TRUSTED)]


def corrected_by_bayes(bench: Bench) -> list[Loss]:
    """The same, as wrong as Bayes' rule has it beside a teacher that is as sure as it may be."""
    labels = torch.tensor(bench.splits["train"]["label"][:])
    logits, at = clean_teacher_logits(bench)[: len(labels)], clean_teacher_calibration(bench)
    return [CorrectedCrossEntropy(label_posterior(logits, labels, at).confusions, trusted=TRUSTED)]


def at_temperature(temperature: float) -> Losses:
    """With a teacher of another softness."""
    return lambda bench: with_teacher(bench, temperature)


def robust(q: float, column: str = "labels") -> Losses:
    """Generalised cross-entropy to one column of labels."""
    return lambda bench: [GeneralizedCrossEntropy(q, column=column, name=column)]


def robust_with_teacher(bench: Bench) -> list[Loss]:
    """Generalised cross-entropy, and the teacher."""
    return [GeneralizedCrossEntropy(), with_teacher(bench)[1]]


def aggregated(column: str) -> Losses:
    """The label where there is one, and the votes made into one label."""
    return lambda bench: [CrossEntropy(), CrossEntropy(column, column=column)]


def robust_majority(q: float) -> Losses:
    """The label, and generalised cross-entropy to the majority."""
    return lambda bench: [CrossEntropy(), GeneralizedCrossEntropy(q, "majority", "majority")]


def label_and_rules(bench: Bench) -> list[Loss]:
    """The label where there is one, and every rule that fired."""
    return [CrossEntropy(), RuleLosses(bench.rules)]


def everything(bench: Bench) -> list[Loss]:
    """The label, the majority, and every rule that fired."""
    return [CrossEntropy(), CrossEntropy("majority", column="majority"), RuleLosses(bench.rules)]


def rules_and_teacher(bench: Bench) -> list[Loss]:
    """The label where there is one, every rule that fired, and a teacher that was trained on the clean rows."""
    return [*label_and_rules(bench), with_teacher(bench)[1]]


def beside_votes(bench: Bench) -> list[Loss]:
    """What the majority says, and a teacher of the clean rows, which has not seen it."""
    return beside(teacher_logits(bench), has_seen_labels=False)


def voted(bench: Bench) -> Bench:
    """With the majority's vote as the label of rows that have none."""
    train = label_by_votes(bench.splits["train"], majority_vote, bench.classes, bench.place.seed)
    return replace(bench, splits=DatasetDict({**bench.splits, "train": train}))


def always(make: Callable[[], Method]) -> NewMethod:
    """A method that does not depend on where it is used."""
    return lambda bench: make()


def weighed_by(make: Callable[[], Policy], name: str = "fixed_rule") -> NewMethod:
    """A method that is nothing but a policy."""
    return lambda bench: Method(name, make())


def rightness(bench: Bench, calibrated_at: float | None = None) -> torch.Tensor:
    """`(N,)`: the probability of each training label, by Bayes' rule and the clean teacher."""
    labels = torch.tensor(bench.splits["train"]["label"][:])
    known = label_posterior(clean_teacher_logits(bench)[: len(labels)], labels, calibrated_at)
    return known.classes.gather(1, labels[:, None])[:, 0]


def likely_right(bench: Bench) -> NDArray[np.bool_]:
    """`(N,)`: the labels that are more likely right than wrong, by that rule."""
    return (rightness(bench) > 0.5).numpy()


def every_row(bench: Bench) -> NDArray[np.bool_]:
    """`(N,)`: all of them."""
    return np.ones(len(bench.splits["train"]), dtype=bool)


def unsuspected(bench: Bench) -> NDArray[np.bool_]:
    """`(N,)`: the labels that confident learning does not suspect."""
    return kept_rows(bench)


def weighed_enough(bench: Bench) -> NDArray[np.bool_]:
    """`(N,)`: the labels to which `amal()` gives weight over frozen features."""
    return kept_by_weights(bench)


def surely_right(bench: Bench) -> NDArray[np.bool_]:
    """`(N,)`: the labels that are right."""
    return right_labels(bench).bool().numpy()


def labels_by_bayes(bench: Bench, calibrated_at: float | None = None) -> Method:
    """Labels alone, each as much as Bayes' rule has it that it is right, one on average; clean ones are."""
    right = torch.cat([rightness(bench, calibrated_at), torch.ones(len(bench.splits["meta"]))])
    return Method("labels_by_bayes", GivenWeights((right / right.mean()).float()[:, None]))


def labels_by_calibrated_bayes(bench: Bench) -> Method:
    """The same by a teacher that is as sure as it may be."""
    return labels_by_bayes(bench, clean_teacher_calibration(bench))


def labels_believed(bench: Bench) -> Method:
    """Labels alone, each as much as a teacher believes it that is as sure as it may be."""
    return Method("labels_believed", BelievedLabels(clean_teacher_calibration(bench)))


def without_suspects(bench: Bench) -> Method:
    """Labels that confident learning suspects have no weight; the others make up for it."""
    kept = torch.from_numpy(kept_rows(bench)).float()
    return Method("without_suspects", GivenWeights(kept[:, None] / kept.mean()))


def suspects_to_teacher(bench: Bench) -> Method:
    """Suspected labels have no weight, and their teacher has all."""
    kept = torch.from_numpy(kept_rows(bench)).float()
    return Method("suspects_to_teacher", GivenWeights(torch.stack([kept, 1 - kept], 1)))


def right_labels(bench: Bench) -> torch.Tensor:
    """`(N,)`: 1 for right labels, 0 for wrong ones."""
    return torch.ones(len(bench.splits["train"])) if bench.right is None else torch.from_numpy(bench.right).float()


def without_wrong_labels(bench: Bench) -> Method:
    """Right labels alone; the others make up for wrong ones."""
    right = right_labels(bench)
    return Method("without_wrong_labels", GivenWeights(right[:, None] / right.mean()))


def wrong_labels_to_teacher(bench: Bench) -> Method:
    """Right labels, and the teacher in the place of wrong ones."""
    right = right_labels(bench)
    return Method("wrong_labels_to_teacher", GivenWeights(torch.stack([right, 1 - right], 1)))


def without_wrong_votes(bench: Bench) -> Method:
    """As a fixed mixture, had nobody voted wrong."""
    return Method("without_wrong_votes", GivenWeights(right_votes(bench)))


def balanced(power: float) -> NewMethod:
    """Examples of rare classes count more."""

    def method(bench: Bench) -> Method:
        counts = np.bincount(bench.splits["train"]["label"][:], minlength=bench.classes)
        return Method("balanced_classes", ClassProportional(counts.tolist(), power))

    return method


def mixed(label: float) -> Phase:
    """A fixed mixture of label and teacher."""
    return Phase(with_teacher, (label, 1 - label))


def then_clean(phase: Phase, rate: float) -> Phases:
    """A phase, and five short passes over the clean rows."""
    return (phase, Phase(rows=CLEAN, epochs=5, rate=rate))


def between_clean(phase: Phase) -> Phases:
    """Clean rows first and last; in between all rows, clean ones among them."""
    return (
        Phase(rows=CLEAN, epochs=10),
        replace(phase, rows=ALL),
        Phase(rows=CLEAN, epochs=5, rate=0.25),
    )
