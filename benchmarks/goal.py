"""The goal, and how far it is reached: nowhere below the best tuned control, and a point above it on the mean of the
settings with wrong labels or rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gains import ON_DEV, over_each, signed, standing
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
    """What is done, by runs for each kind of setting: of several dev chooses, of none named among all of ours.

    Attributes:
        students: that it is done with.
        wrong: beside labels or teachers with errors.
        rules: with rules.
        right: where nothing is wrong.
    """

    do: str
    students: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    right: tuple[str, ...] = ()

    def run_in(self, group: Group) -> str | None:
        """The run of a setting; `None` where none was made."""
        runs = {RULES: self.rules, RIGHT: self.right}.get(group.setting, self.wrong)
        return group.best_of(runs) if runs else group.best(["ours"])


SMOOTHED = ("amal(), smoothed labels, then clean rows",)
RULES_WITH_LAYERS = ("amal(PerLossNetwork()), clean teacher, then clean rows",)
TEACHER_OF_LABELS = ("amal(), noisy and clean rows", "amal()")
RECIPES = [
    Recipe(
        "`amal()` on smoothed labels; with rules beside a clean teacher; clean rows last",
        ("frozen",),
        wrong=SMOOTHED,
        rules=("amal(), clean teacher, then clean rows",),
        right=SMOOTHED,
    ),
    Recipe(
        "`amal()` beside a clean teacher; with rules `PerLossNetwork()`, clean rows last",
        ("2", "3"),
        wrong=("amal(), clean teacher",),
        rules=RULES_WITH_LAYERS,
        right=TEACHER_OF_LABELS,
    ),
    Recipe(
        "the same beside that teacher or one of the labels, which dev chooses",
        ("2", "3"),
        wrong=("amal(), clean teacher", *TEACHER_OF_LABELS),
        rules=RULES_WITH_LAYERS,
        right=("amal(), clean teacher", *TEACHER_OF_LABELS),
    ),
    Recipe(ON_DEV, ("frozen", "2", "3")),
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
        run = recipe.run_in(group)
        if run:
            found[group] = group.gains(run, control)
    return found


def _mean(gains: dict[Group, dict[int, float]], kind: Sequence[str]) -> str:
    chosen = [by_seed for group, by_seed in gains.items() if group.setting in kind]
    return f"{signed(mean_by_seed(chosen))} ({len(chosen)})" if chosen else ""
