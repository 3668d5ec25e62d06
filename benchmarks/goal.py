"""The goal, and how far it is reached: nowhere below the best tuned control, and a point above it on the mean of the
settings with wrong labels or rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gains import ON_DEV, Runs, over_each, run_in, signed, standing
from groups import ERRORS, STUDENTS, WRONG_LABELS, Group, mean_by_seed
from markdown_tables import table


RULES = "rules"
RIGHT = "clean"
KINDS = {
    "wrong labels, rules": (*WRONG_LABELS, RULES),
    "and few clean rows, a wrong teacher": (*ERRORS, RULES),
    "nothing wrong": (RIGHT,),
}


@dataclass(frozen=True)
class Recipe:
    """What is done, by runs for each kind of setting, unless named those of ours that are best on dev.

    Attributes:
        students: that it is done with.
        wrong: beside labels or teachers with errors.
        rules: with rules.
        right: where nothing is wrong.
    """

    do: str
    students: tuple[str, ...]
    wrong: Runs = ON_DEV
    rules: Runs = ON_DEV
    right: Runs = ON_DEV

    def runs_in(self, group: Group) -> Runs:
        """Those for a setting."""
        return {RULES: self.rules, RIGHT: self.right}.get(group.setting, self.wrong)


SMOOTHED = "amal(), smoothed labels, then clean rows"
CLEAN_TEACHER = "amal(), clean teacher"
RULES_WITH_LAYERS = "amal(PerLossNetwork()), clean teacher, then clean rows"
TEACHER_OF_LABELS = ("amal(), noisy and clean rows", "amal(), noisy and clean, then clean rows", "amal()")
EITHER_TEACHER = (CLEAN_TEACHER, *TEACHER_OF_LABELS)
KEPT = "rows that label_weights() keeps"
TOLD = "an oracle, told which labels and votes are right"
RIGHT_VOTES = "right votes and clean teacher, then clean rows"
RECIPES = [
    Recipe(
        "`amal()` on smoothed labels; with rules beside a clean teacher; clean rows last",
        ("frozen",),
        wrong=SMOOTHED,
        rules="amal(), clean teacher, then clean rows",
        right=SMOOTHED,
    ),
    Recipe(
        "`amal()` beside a clean teacher; with rules `PerLossNetwork()`, clean rows last",
        ("2", "3"),
        wrong=CLEAN_TEACHER,
        rules=RULES_WITH_LAYERS,
        right=TEACHER_OF_LABELS,
    ),
    Recipe(
        "the same beside that teacher or one of the labels, which dev chooses",
        ("2", "3"),
        wrong=EITHER_TEACHER,
        rules=RULES_WITH_LAYERS,
        right=EITHER_TEACHER,
    ),
    Recipe(
        "or in their place the rows that `label_weights()` keeps, if dev chooses these",
        ("2",),
        wrong=(*EITHER_TEACHER, KEPT),
        rules=RULES_WITH_LAYERS,
        right=(*EITHER_TEACHER, KEPT),
    ),
    Recipe(ON_DEV, ("frozen", "2", "2@4e-4", "3")),
    Recipe(TOLD, ("frozen",), wrong="right labels", rules=RIGHT_VOTES, right=()),
    Recipe(TOLD, ("2", "2@4e-4"), wrong="rows with right labels", rules=RIGHT_VOTES, right=()),
]


def goal(groups: Sequence[Group]) -> str:
    """A line for each student and recipe: what it gains in each kind of settings, and where it is above and below."""
    rows = [
        [
            STUDENTS[student],
            recipe.do,
            *(_mean(gains, kind) for kind in KINDS.values()),
            standing(list(gains.values())),
        ]
        for student in STUDENTS
        for recipe in RECIPES
        if student in recipe.students
        and (gains := gains_of(recipe, [group for group in groups if group.student == student]))
    ]
    return table(["student", "run", *KINDS, "settings above, below"], rows)


def gains_of(recipe: Recipe, groups: Sequence[Group]) -> dict[Group, dict[int, float]]:
    """By seed, over the control that dev chooses, in every setting that a recipe was tried in."""
    found = {}
    for group, control in over_each(groups):
        run = run_in(recipe.runs_in(group), group)
        if run and group.whole(run):
            found[group] = group.gains(run, control)
    return found


def _mean(gains: dict[Group, dict[int, float]], kind: Sequence[str]) -> str:
    chosen = [by_seed for group, by_seed in gains.items() if group.setting in kind]
    return f"{signed(mean_by_seed(chosen))} ({len(chosen)})" if chosen else ""
