"""The runs of the quality benchmark: each a few phases of training, with up to four options of which dev chooses.

Controls learn no weights; rules of thumb weigh by a fixed rule; learned ones have a meta step; an oracle is told what
nobody knows, to show what could be won. All take as many steps of the student as its body's epochs over the training
rows, whatever the phases.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

from phases import (
    ALL,
    CLEAN,
    Kept,
    NewMethod,
    Phase,
    Phases,
    aggregated,
    always,
    at_temperature,
    balanced,
    beside_votes,
    between_clean,
    corrected,
    corrected_by_bayes,
    every_row,
    everything,
    label_and_rules,
    labels_believed,
    labels_by_bayes,
    labels_by_calibrated_bayes,
    likely_right,
    mixed,
    robust,
    robust_majority,
    robust_with_teacher,
    rules_and_teacher,
    surely_right,
    suspects_to_teacher,
    then_clean,
    unsuspected,
    weighed_by,
    weighed_enough,
    with_any_teacher,
    with_calibrated_teacher,
    with_clean_teacher,
    with_regression,
    with_teacher,
    without_suspects,
    without_wrong_labels,
    without_wrong_votes,
    wrong_labels_to_teacher,
)
from rivals import BelievedLabels, Geometry, TeacherAgreement, TeacherConfidence

from amal_hf import (
    AnnealedWeights,
    LossNetwork,
    MeanOne,
    MetaWeightNet,
    Method,
    PerLossNetwork,
    SharedWeights,
    SmallLoss,
    amal,
    bayes_mixture,
    learning_to_reweight,
    meta_weight_net,
    random_weights,
    teacher_belief,
)


Kind: TypeAlias = Literal["control", "rule of thumb", "learned", "ours", "oracle"]


@dataclass(frozen=True)
class Contender:
    """A run.

    Attributes:
        kind: controls and rules of thumb are what learned weights must beat.
        options: by name; dev chooses at a seed of its own if there are several.
    """

    kind: Kind
    options: dict[str, Phases]


AMAL = Phase(with_teacher, method=always(amal))
AMAL_MEAN_ONE = Phase(with_teacher, method=always(lambda: amal(LossNetwork(normalisation=MeanOne()))))
WITHOUT_PROBE = Phase(with_teacher, method=always(lambda: amal(LossNetwork(probe=False))))
AMAL_ON_ALL = replace(AMAL, rows=ALL)
AMAL_SMOOTHED = Phase(method=always(amal), rows=ALL, smoothing=0.1)
AMAL_CORRECTED = replace(AMAL_SMOOTHED, losses=corrected_by_bayes)
AMAL_CLEAN_TEACHER = Phase(with_clean_teacher, method=always(amal), rows=ALL)
RIGHT = Phase(method=labels_by_bayes, rows=ALL, smoothing=0.1)
RIGHT_CALIBRATED = replace(RIGHT, method=labels_by_calibrated_bayes)
AMAL_CALIBRATED = replace(AMAL_CLEAN_TEACHER, losses=with_calibrated_teacher)
BAYES = replace(AMAL_CLEAN_TEACHER, method=always(bayes_mixture))
BAYES_CALIBRATED = replace(AMAL_CALIBRATED, method=always(bayes_mixture))
AMAL_ANY_TEACHER = replace(AMAL_CLEAN_TEACHER, losses=with_any_teacher)
AMAL_VOTES = Phase(everything, method=always(amal))
TEACHER = Phase(with_teacher, (0.0, 1.0))
CORRECTED = Phase(corrected, rows=ALL)
CORRECTED_BY_BAYES = Phase(corrected_by_bayes, rows=ALL)
BELIEVED = Phase(with_clean_teacher, method=weighed_by(BelievedLabels), rows=ALL)
BELIEVED_CALIBRATED = replace(BELIEVED, method=labels_believed)
CLEANED = Phase(rows=ALL, smoothing=0.1)
BY_ALL = Phase(with_regression("regression", every_row), (0.0, 1.0), rows=ALL)
BY_UNSUSPECTED = replace(BY_ALL, losses=with_regression("regression-unsuspected", unsuspected))
BY_KEPT = replace(BY_ALL, losses=with_regression("regression-kept", weighed_enough))
BESIDE_ALL, BESIDE_UNSUSPECTED, BESIDE_KEPT = (replace(by, shares=None) for by in (BY_ALL, BY_UNSUSPECTED, BY_KEPT))


def recipe(method: NewMethod | None) -> dict[str, Phases]:
    """All that a user would try, clean rows among the training rows: the same with and without learned weights."""
    teacher = Phase(with_teacher, method=method, rows=ALL)
    labels = Phase(method=method, rows=ALL, smoothing=0.1)
    return {
        "with teacher": (teacher,),
        "with teacher, then clean rows": then_clean(teacher, 0.25),
        "smoothed labels": (labels,),
        "smoothed labels, then clean rows": then_clean(labels, 0.25),
    }


def believed(phase: Phase) -> dict[str, Phases]:
    """Labels as they stand, smoothed, and with clean rows last."""
    smoothed = replace(phase, smoothing=0.1)
    return {"": (phase,), "smoothed": (smoothed,), "smoothed, then clean rows": then_clean(smoothed, 0.25)}


def cleaned(kept: Kept) -> dict[str, Phases]:
    """Smoothed labels of some rows in as many steps as all would take, and with clean rows last."""
    phase = replace(CLEANED, kept=kept)
    return {"": (phase,), "then clean rows": then_clean(phase, 0.25)}


def correcting(phase: Phase) -> dict[str, Phases]:
    """A corrected loss alone, and with clean rows last, smoothed too."""
    return {
        "": (phase,),
        "then clean rows": then_clean(phase, 0.25),
        "smoothed, then clean rows": then_clean(replace(phase, smoothing=0.1), 0.25),
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
        "control", {f"label {s}": (replace(mixed(s), rows=ALL),) for s in (1.0, 0.5, 0.1)}
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
    "gold loss correction": Contender("control", correcting(CORRECTED)),
    "labels corrected by Bayes' rule": Contender("control", correcting(CORRECTED_BY_BAYES)),
    "tuned recipe": Contender("control", recipe(None)),
    "labels a clean teacher believes": Contender("rule of thumb", believed(BELIEVED)),
    "labels a calibrated clean teacher believes": Contender("rule of thumb", believed(BELIEVED_CALIBRATED)),
    "labels as right as Bayes has them": Contender(
        "rule of thumb",
        {"smoothed": (RIGHT,), "smoothed, then clean rows": then_clean(RIGHT, 0.25)},
    ),
    "labels as right as calibrated Bayes has them": Contender(
        "rule of thumb",
        {"smoothed": (RIGHT_CALIBRATED,), "smoothed, then clean rows": then_clean(RIGHT_CALIBRATED, 0.25)},
    ),
    "rows that Bayes has right": Contender("rule of thumb", cleaned(likely_right)),
    "rows without suspects": Contender("rule of thumb", cleaned(unsuspected)),
    "regression over features": Contender("rule of thumb", {"all rows": (BY_ALL,), "no suspects": (BY_UNSUSPECTED,)}),
    "labels and regression over features": Contender(
        "rule of thumb", {"all rows": (BESIDE_ALL,), "no suspects": (BESIDE_UNSUSPECTED,)}
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
    "amal(), smoothed labels": Contender("ours", one(AMAL_SMOOTHED)),
    "amal(), smoothed labels, then clean rows": Contender("ours", one(*then_clean(AMAL_SMOOTHED, 0.25))),
    "amal(), corrected labels, then clean rows": Contender("ours", one(*then_clean(AMAL_CORRECTED, 0.25))),
    "amal(), clean teacher": Contender("ours", one(AMAL_CLEAN_TEACHER)),
    "amal(), calibrated clean teacher": Contender("ours", one(AMAL_CALIBRATED)),
    "bayes_mixture(), calibrated clean teacher": Contender("ours", one(BAYES_CALIBRATED)),
    "amal(), clean teacher, equal shares": Contender(
        "ours", {"": (AMAL_ANY_TEACHER,), "then clean rows": then_clean(AMAL_ANY_TEACHER, 0.25)}
    ),
    "bayes_mixture(), clean teacher": Contender("ours", {"": (BAYES,), "then clean rows": then_clean(BAYES, 0.25)}),
    "rows that label_weights() keeps": Contender("ours", one(replace(CLEANED, kept=weighed_enough))),
    "regression over rows that label_weights() keeps": Contender("ours", one(BY_KEPT)),
    "amal(), regression over rows that label_weights() keeps": Contender(
        "ours", one(replace(BESIDE_KEPT, method=always(amal)))
    ),
    "bayes_mixture(), regression over rows that label_weights() keeps": Contender(
        "ours", one(replace(BESIDE_KEPT, method=always(bayes_mixture)))
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
    "rows with right labels": Contender("oracle", cleaned(surely_right)),
}

# ---- rules ----

MAJORITY = Phase(aggregated("majority"))
VOICES = Phase(rules_and_teacher)
MAJORITY_AND_TEACHER = Phase(beside_votes, voted=True)
AMAL_MAJORITY = replace(MAJORITY_AND_TEACHER, method=always(amal))
AMAL_VOICES = replace(VOICES, method=always(amal))
AMAL_EACH_VOICE = replace(VOICES, method=always(lambda: amal(PerLossNetwork())))

VOTES: dict[str, Contender] = {
    "labels of L only": Contender("control", {f"rate {r}": (Phase(rows=("labelled",), rate=r),) for r in (1.0, 0.3)}),
    "clean rows only": Contender("control", {f"rate {r}": (Phase(rows=CLEAN, rate=r),) for r in (1.0, 0.3)}),
    "majority vote": Contender("control", {f"rate {r}": (replace(MAJORITY, rate=r),) for r in (1.0, 0.3)}),
    "label model": Contender("control", one(Phase(aggregated("label_model")))),
    "uniform mixture": Contender("control", one(Phase(label_and_rules))),
    "random weights": Contender("control", one(Phase(everything, method=always(random_weights)))),
    "majority and clean rows": Contender("control", one(replace(MAJORITY, rows=ALL))),
    "majority, then clean rows": Contender("control", {f"rate {r}": then_clean(MAJORITY, r) for r in CLEAN_RATES}),
    "clean teacher, then clean rows": Contender(
        "control", {f"rate {r}": then_clean(Phase(with_teacher), r) for r in CLEAN_RATES}
    ),
    "rules and clean teacher, then clean rows": Contender(
        "control", {f"rate {r}": then_clean(VOICES, r) for r in CLEAN_RATES}
    ),
    "majority and clean teacher, then clean rows": Contender(
        "control", {f"rate {r}": then_clean(MAJORITY_AND_TEACHER, r) for r in CLEAN_RATES}
    ),
    "majority between clean rows": Contender("control", one(*between_clean(MAJORITY))),
    "votes a clean teacher believes, then clean rows": Contender(
        "rule of thumb",
        {f"rate {r}": then_clean(replace(VOICES, method=always(teacher_belief)), r) for r in CLEAN_RATES},
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
    "amal(), majority and clean teacher, then clean rows": Contender(
        "ours", {f"rate {r}": then_clean(AMAL_MAJORITY, r) for r in CLEAN_RATES}
    ),
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
