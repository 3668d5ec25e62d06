"""What to do with what is at hand, and what that has gained."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gains import Runs, in_each, mean_gain, over_each, over_one, run_in, signed, standing
from goal import CLEAN_TEACHER, EITHER_TEACHER, KEPT, RULES_WITH_LAYERS, SMOOTHED
from groups import CONTROLS, DATA, ERRORS, SETTINGS, STUDENTS, WRONG_LABELS, Group, best_of_all
from markdown_tables import table
from spread import half_width


@dataclass(frozen=True)
class Advice:
    """What to do, and a run that has done it, or several of which dev chooses.

    Attributes:
        against: the kinds of runs that it is compared with.
        data: the sets that it is about.
    """

    at_hand: str
    do: str
    student: str
    settings: tuple[str, ...]
    runs: Runs
    against: Sequence[str] = CONTROLS
    data: Sequence[str] = tuple(DATA)


FEATURES = "a head over good features"
WRONG = "layers, labels partly wrong"
BOTH = f"{WRONG}, a teacher of the clean rows and one of the labels"
LAYERS = f"{WRONG}, a teacher of the clean rows that is good on dev"
EITHER = "`amal()` beside each; the student that is better on dev"
ON_SMOOTHED = "`amal()` on smoothed labels, the clean rows among them, and last"
BESIDE = "`amal()` beside it (`has_seen_labels=False`), the clean rows among the training rows"
CALIBRATED = "the same with `calibrated_at`, from dev"
MANY_CLASSES, FEW_CLASSES = f"{WRONG}, many classes", f"{WRONG}, few classes"
ALONE = "labels alone, smoothed, of the rows that `label_weights()` keeps and of the clean ones"
BY_FEATURES = "`{}` on all rows, beside a regression over features fitted to those that `label_weights()` keeps"
REGRESSION = "regression over rows that label_weights() keeps"
LABELS = tuple(name for name in SETTINGS if name != "rules")
ADVICE = [
    Advice(FEATURES, ON_SMOOTHED, "frozen", LABELS, SMOOTHED),
    Advice(f"{FEATURES}, labels or teacher partly wrong", ON_SMOOTHED, "frozen", ERRORS, SMOOTHED),
    Advice(
        f"{FEATURES}, rules",
        "`amal()` beside a teacher of the clean rows, these last",
        "frozen",
        ("rules",),
        "amal(), clean teacher, then clean rows",
    ),
    Advice(MANY_CLASSES, BY_FEATURES.format("amal()"), "2@4e-4", WRONG_LABELS, f"amal(), {REGRESSION}"),
    Advice(
        MANY_CLASSES, BY_FEATURES.format("bayes_mixture()"), "2@4e-4", WRONG_LABELS, f"bayes_mixture(), {REGRESSION}"
    ),
    Advice(MANY_CLASSES, ALONE, "2", WRONG_LABELS, KEPT, data=("banking77",)),
    Advice(MANY_CLASSES, ALONE, "2@4e-4", WRONG_LABELS, KEPT, data=("banking77",)),
    Advice(FEW_CLASSES, ALONE, "2", WRONG_LABELS, KEPT, data=("trec", "sst2")),
    Advice(BOTH, EITHER, "2", WRONG_LABELS, EITHER_TEACHER),
    Advice(BOTH, EITHER, "3", WRONG_LABELS, EITHER_TEACHER),
    Advice(LAYERS, BESIDE, "2", WRONG_LABELS, CLEAN_TEACHER),
    Advice(LAYERS, CALIBRATED, "2", WRONG_LABELS, "amal(), calibrated clean teacher"),
    Advice(LAYERS, BESIDE, "3", WRONG_LABELS, CLEAN_TEACHER),
    Advice(LAYERS, CALIBRATED, "3", WRONG_LABELS, "amal(), calibrated clean teacher"),
    Advice(
        f"{LAYERS}, and no meta set",
        "`bayes_mixture()` beside it",
        "2",
        WRONG_LABELS,
        "bayes_mixture(), clean teacher",
    ),
    Advice(
        f"{LAYERS}, and may have seen the labels",
        "`amal()` beside it",
        "2",
        WRONG_LABELS,
        "amal(), clean teacher, equal shares",
    ),
    Advice(
        "layers, right labels, a teacher that is wrong on 30 % of the rows",
        "a teacher of the clean rows in its place, calibrated",
        "2",
        ("teacher30",),
        "amal(), calibrated clean teacher",
    ),
    Advice(
        "layers, rules, a teacher of the clean rows",
        "`teacher_belief()`, the clean rows last",
        "2",
        ("rules",),
        "votes a clean teacher believes, then clean rows",
        ("control",),
    ),
    Advice(
        "layers, rules, a teacher of the clean rows",
        "`amal(PerLossNetwork())`, the clean rows last",
        "2",
        ("rules",),
        RULES_WITH_LAYERS,
    ),
    Advice(
        "layers, nothing wrong",
        "`amal()` beside the teacher of these labels, the clean rows among the training rows",
        "2",
        ("clean",),
        "amal(), noisy and clean rows",
    ),
]
"""The first line of each situation is what to try first."""


def advice(groups: Sequence[Group]) -> str:
    """A line each: what is at hand, what to do, and what that has gained."""
    head = [
        "at hand",
        "do",
        "measured on",
        "over the control that dev chooses in each",
        "settings above, below",
        "over the best single control",
    ]
    return table(head, [row for one in ADVICE if (row := _advice_row(one, groups))])


def _advice_row(one: Advice, groups: Sequence[Group]) -> list[str]:
    chosen = [
        group
        for group in groups
        if group.student == one.student
        and group.setting in one.settings
        and group.data in one.data
        and run_in(one.runs, group) in group.cells
    ]
    if not chosen:
        return []
    each, single = (_marked(mean_gain(one.runs, over(chosen, one.against))) for over in (over_each, over_one))
    best = best_of_all(chosen, one.against)
    data = list(dict.fromkeys(group.data for group in chosen))
    where = f"{STUDENTS[one.student]}; {', '.join(data)}: {len(chosen)} setting{'s' * (len(chosen) > 1)}"
    stands = standing(in_each(one.runs, over_each(chosen, one.against)))
    return [one.at_hand, one.do, where, each, stands, f"{single} ({best})" if best else ""]


def _marked(gains: dict[int, float]) -> str:
    """Bold where the interval is above nothing."""
    width = half_width(list(gains.values()))
    clear = width is not None and np.mean(list(gains.values())) > width
    return f"**{signed(gains)}**" if clear else signed(gains)
