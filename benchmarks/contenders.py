"""The runs of the quality benchmark: each a few phases of training, with up to four options of which dev chooses.

Controls learn no weights; rules of thumb weigh by a fixed rule; learned ones have a meta step; an oracle is told what
nobody knows, to show what could be won. All take as many steps of the student as its body's epochs over the training
rows, whatever the phases.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from rivals import (
    BelievedLabels,
    Geometry,
    GivenWeights,
    TeacherAgreement,
    TeacherBelief,
    TeacherConfidence,
    right_votes,
)
from settings import Bench
from suspects import kept_rows
from teaching import clean_teacher_logits, teacher_logits

from amal_hf import (
    AnnealedWeights,
    ClassProportional,
    CrossEntropy,
    Distillation,
    GeneralizedCrossEntropy,
    Loss,
    LossNetwork,
    MeanOne,
    MetaWeightNet,
    Method,
    PerLossNetwork,
    Policy,
    RuleLosses,
    SharedWeights,
    SmallLoss,
    amal,
    learning_to_reweight,
    meta_weight_net,
    random_weights,
)


Losses: TypeAlias = Callable[[Bench], list[Loss]]
NewMethod: TypeAlias = Callable[[Bench], Method]
Kind: TypeAlias = Literal["control", "rule of thumb", "learned", "ours", "oracle"]

CLEAN = ("clean",)
"""Stands for all splits with labels known to be right."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        losses: what is learned from.
        shares: their initial mixture; equal by default.
        method: how weights are learned; fixed by default.
        rows: splits to train on.
        epochs: over these rows; `None` takes what the other phases leave of the budget.
        rate: share of the body's learning rate.
        smoothing: of labels.
    """

    losses: Losses = lambda bench: [CrossEntropy()]
    shares: tuple[float, ...] | None = None
    method: NewMethod | None = None
    rows: tuple[str, ...] = ("train",)
    epochs: float | None = None
    rate: float = 1.0
    smoothing: float = 0.0


Phases: TypeAlias = tuple[Phase, ...]


@dataclass(frozen=True)
class Contender:
    """A run.

    Attributes:
        kind: controls and rules of thumb are what learned weights must beat.
        options: by name; dev chooses at a seed of its own if there are several.
    """

    kind: Kind
    options: dict[str, Phases]


# ---- parts ----


def with_teacher(bench: Bench, temperature: float = 2.0) -> list[Loss]:
    """The label, and the teacher."""
    logits = teacher_logits(bench).to("cuda" if torch.cuda.is_available() else "cpu")
    return [CrossEntropy(), Distillation(lambda batch: logits[batch["example_id"]], temperature)]


def with_clean_teacher(bench: Bench) -> list[Loss]:
    """The label, and a teacher that has seen the clean rows alone."""
    logits = clean_teacher_logits(bench).to("cuda" if torch.cuda.is_available() else "cpu")
    return [CrossEntropy(), Distillation(lambda batch: logits[batch["example_id"]])]


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


def always(make: Callable[[], Method]) -> NewMethod:
    """A method that does not depend on where it is used."""
    return lambda bench: make()


def weighed_by(make: Callable[[], Policy], name: str = "fixed_rule") -> NewMethod:
    """A method that is nothing but a policy."""
    return lambda bench: Method(name, make())


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


ALL = ("train", "meta")
AMAL = Phase(with_teacher, method=always(amal))
AMAL_MEAN_ONE = Phase(with_teacher, method=always(lambda: amal(LossNetwork(normalisation=MeanOne()))))
WITHOUT_PROBE = Phase(with_teacher, method=always(lambda: amal(LossNetwork(probe=False))))
AMAL_ON_ALL = replace(AMAL, rows=ALL)
AMAL_CLEAN_TEACHER = Phase(with_clean_teacher, method=always(amal), rows=ALL)
AMAL_VOTES = Phase(everything, method=always(amal))
TEACHER = Phase(with_teacher, (0.0, 1.0))
BELIEVED = Phase(with_clean_teacher, method=weighed_by(BelievedLabels), rows=ALL)


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
        replace(phase, rows=("train", "meta")),
        Phase(rows=CLEAN, epochs=5, rate=0.25),
    )


def recipe(method: NewMethod | None) -> dict[str, Phases]:
    """All that a user would try, clean rows among the training rows: the same with and without learned weights."""
    teacher = Phase(with_teacher, method=method, rows=("train", "meta"))
    labels = Phase(method=method, rows=("train", "meta"), smoothing=0.1)
    return {
        "with teacher": (teacher,),
        "with teacher, then clean rows": then_clean(teacher, 0.25),
        "smoothed labels": (labels,),
        "smoothed labels, then clean rows": then_clean(labels, 0.25),
    }


def one(*phases: Phase) -> dict[str, Phases]:
    """Nothing to choose."""
    return {"": phases}


CLEAN_RATES = (0.1, 0.25, 1.0)

# ---- labels and a teacher ----

DISTILLATION: dict[str, Contender] = {
    "labels only": Contender("control", {f"rate {r}": (Phase(rate=r),) for r in (1.0, 0.3)}),
    "teacher only": Contender(
        "control", {f"temperature {t}": (replace(TEACHER, losses=at_temperature(t)),) for t in (1.0, 2.0, 4.0)}
    ),
    "fixed mixture": Contender("control", {f"label {s}": (mixed(s),) for s in (0.1, 0.3, 0.5, 0.7)}),
    "random weights": Contender("control", one(Phase(with_teacher, method=always(random_weights)))),
    "clean rows only": Contender("control", {f"rate {r}": (Phase(rows=CLEAN, rate=r),) for r in (1.0, 0.3)}),
    "noisy and clean rows": Contender(
        "control", {f"label {s}": (replace(mixed(s), rows=("train", "meta")),) for s in (1.0, 0.5, 0.1)}
    ),
    "noisy, then clean rows": Contender(
        "control", {f"label {s}, rate {r}": then_clean(mixed(s), r) for s in (1.0, 0.5) for r in (0.25, 1.0)}
    ),
    "teacher, then clean rows": Contender("control", {f"rate {r}": then_clean(TEACHER, r) for r in CLEAN_RATES}),
    "clean teacher": Contender(
        "control",
        {
            "alone": (Phase(with_clean_teacher, (0.0, 1.0), rows=ALL),),
            "with labels": (Phase(with_clean_teacher, rows=ALL),),
            "with labels, then clean rows": then_clean(Phase(with_clean_teacher, rows=ALL), 0.25),
        },
    ),
    "tuned recipe": Contender("control", recipe(None)),
    "labels a clean teacher believes": Contender(
        "rule of thumb",
        {
            "": (BELIEVED,),
            "smoothed": (replace(BELIEVED, smoothing=0.1),),
            "smoothed, then clean rows": then_clean(replace(BELIEVED, smoothing=0.1), 0.25),
        },
    ),
    "confidence-weighted": Contender(
        "rule of thumb",
        {
            "teacher's confidence": (Phase(with_teacher, method=weighed_by(TeacherConfidence)),),
            "teacher's belief in the label": (Phase(with_teacher, method=weighed_by(TeacherAgreement)),),
        },
    ),
    "annealed mixture": Contender(
        "rule of thumb",
        {
            "to the label": (replace(TEACHER, method=weighed_by(lambda: AnnealedWeights([1, 0]))),),
            "half way to the label": (replace(TEACHER, method=weighed_by(lambda: AnnealedWeights([0.5, 0.5]))),),
            "to the teacher": (Phase(with_teacher, (1.0, 0.0), weighed_by(lambda: AnnealedWeights([0, 1]))),),
        },
    ),
    "small-loss selection": Contender(
        "rule of thumb",
        {
            "0.2": (Phase(method=weighed_by(lambda: SmallLoss(0.2))),),
            "0.4": (Phase(method=weighed_by(lambda: SmallLoss(0.4))),),
            "0.2, with teacher": (Phase(with_teacher, method=weighed_by(lambda: SmallLoss(0.2))),),
            "0.4, with teacher": (Phase(with_teacher, method=weighed_by(lambda: SmallLoss(0.4))),),
        },
    ),
    "balanced classes": Contender(
        "rule of thumb",
        {
            "labels": (Phase(method=balanced(1)),),
            "labels, root": (Phase(method=balanced(0.5)),),
            "with teacher": (Phase(with_teacher, method=balanced(1)),),
            "with teacher, root": (Phase(with_teacher, method=balanced(0.5)),),
        },
    ),
    "label smoothing": Contender("rule of thumb", {str(s): (Phase(smoothing=s),) for s in (0.1, 0.3)}),
    "generalised cross-entropy": Contender(
        "rule of thumb",
        {
            "q 0.3": (Phase(robust(0.3)),),
            "q 0.7": (Phase(robust(0.7)),),
            "q 0.7, with teacher": (Phase(robust_with_teacher),),
        },
    ),
    "confident learning": Contender(
        "rule of thumb",
        {
            "suspects left out": (Phase(method=without_suspects),),
            "suspects to the teacher": (Phase(with_teacher, method=suspects_to_teacher),),
        },
    ),
    "meta_weight_net()": Contender(
        "learned",
        {
            "1e-3": (Phase(with_teacher, method=always(meta_weight_net)),),
            "1e-2": (
                Phase(
                    with_teacher,
                    method=always(lambda: replace(meta_weight_net(), policy=MetaWeightNet(learning_rate=1e-2))),
                ),
            ),
        },
    ),
    "learning_to_reweight()": Contender("learned", one(Phase(with_teacher, method=always(learning_to_reweight)))),
    "geometry network": Contender(
        "learned",
        {
            str(r): (Phase(with_teacher, method=weighed_by(partial(Geometry, learning_rate=r), "geometry")),)
            for r in (3e-3, 1e-2)
        },
    ),
    "amal()": Contender("ours", one(AMAL)),
    "amal(), then clean rows": Contender("ours", {f"rate {r}": then_clean(AMAL, r) for r in CLEAN_RATES}),
    "amal(), noisy and clean rows": Contender("ours", one(AMAL_ON_ALL)),
    "amal(), noisy and clean, then clean rows": Contender(
        "ours", {f"rate {r}": then_clean(AMAL_ON_ALL, r) for r in CLEAN_RATES}
    ),
    "amal(), clean teacher": Contender(
        "ours", {"": (AMAL_CLEAN_TEACHER,), "then clean rows": then_clean(AMAL_CLEAN_TEACHER, 0.25)}
    ),
    "amal(), no probe": Contender("ours", one(WITHOUT_PROBE)),
    "amal(), no probe, noisy and clean rows": Contender("ours", one(replace(WITHOUT_PROBE, rows=ALL))),
    "amal(), mean one": Contender("ours", one(AMAL_MEAN_ONE)),
    "tuned recipe, amal()": Contender("ours", recipe(always(amal))),
    "right labels": Contender(
        "oracle",
        {
            "alone": (Phase(method=without_wrong_labels),),
            "teacher for the others": (Phase(with_teacher, method=wrong_labels_to_teacher),),
        },
    ),
}

# ---- rules ----

MAJORITY = Phase(aggregated("majority"))
VOICES = Phase(rules_and_teacher)
AMAL_VOICES = replace(VOICES, method=always(amal))
AMAL_EACH_VOICE = replace(VOICES, method=always(lambda: amal(PerLossNetwork())))

VOTES: dict[str, Contender] = {
    "labels of L only": Contender("control", {f"rate {r}": (Phase(rows=("labelled",), rate=r),) for r in (1.0, 0.3)}),
    "clean rows only": Contender("control", {f"rate {r}": (Phase(rows=CLEAN, rate=r),) for r in (1.0, 0.3)}),
    "majority vote": Contender("control", {f"rate {r}": (replace(MAJORITY, rate=r),) for r in (1.0, 0.3)}),
    "label model": Contender("control", one(Phase(aggregated("label_model")))),
    "uniform mixture": Contender("control", one(Phase(label_and_rules))),
    "random weights": Contender("control", one(Phase(everything, method=always(random_weights)))),
    "majority and clean rows": Contender("control", one(replace(MAJORITY, rows=("train", "meta")))),
    "majority, then clean rows": Contender("control", {f"rate {r}": then_clean(MAJORITY, r) for r in CLEAN_RATES}),
    "clean teacher, then clean rows": Contender(
        "control", {f"rate {r}": then_clean(Phase(with_teacher), r) for r in CLEAN_RATES}
    ),
    "rules and clean teacher, then clean rows": Contender(
        "control", {f"rate {r}": then_clean(VOICES, r) for r in CLEAN_RATES}
    ),
    "majority between clean rows": Contender("control", one(*between_clean(MAJORITY))),
    "votes a clean teacher believes, then clean rows": Contender(
        "rule of thumb",
        {f"rate {r}": then_clean(replace(VOICES, method=weighed_by(TeacherBelief)), r) for r in CLEAN_RATES},
    ),
    "small-loss selection": Contender(
        "rule of thumb",
        {str(s): (replace(MAJORITY, method=weighed_by(partial(SmallLoss, s))),) for s in (0.2, 0.4)},
    ),
    "label smoothing": Contender("rule of thumb", {str(s): (replace(MAJORITY, smoothing=s),) for s in (0.1, 0.3)}),
    "generalised cross-entropy": Contender(
        "rule of thumb", {f"q {q}": (Phase(robust_majority(q)),) for q in (0.3, 0.7)}
    ),
    "meta_weight_net()": Contender("learned", one(Phase(label_and_rules, method=always(meta_weight_net)))),
    "learning_to_reweight()": Contender("learned", one(Phase(label_and_rules, method=always(learning_to_reweight)))),
    "weights of rules": Contender(
        "learned",
        one(Phase(label_and_rules, method=always(lambda: Method("shared_weights", SharedWeights(), interval=4)))),
    ),
    "amal()": Contender("ours", one(AMAL_VOTES)),
    "amal(), then clean rows": Contender("ours", {f"rate {r}": then_clean(AMAL_VOTES, r) for r in CLEAN_RATES}),
    "amal(), clean teacher, then clean rows": Contender(
        "ours", {f"rate {r}": then_clean(AMAL_VOICES, r) for r in CLEAN_RATES}
    ),
    "amal(PerLossNetwork()), clean teacher, then clean rows": Contender(
        "ours", {f"rate {r}": then_clean(AMAL_EACH_VOICE, r) for r in CLEAN_RATES}
    ),
    "right votes and clean teacher, then clean rows": Contender(
        "oracle", {f"rate {r}": then_clean(replace(VOICES, method=without_wrong_votes), r) for r in CLEAN_RATES}
    ),
}


def contenders(setting: str) -> dict[str, Contender]:
    """The runs of a setting."""
    return VOTES if setting == "rules" else DISTILLATION
