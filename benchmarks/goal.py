"""The goal, and how far it is reached: nowhere below the best tuned control, and a point above it on the mean of the
settings with wrong labels or rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gains import ON_DEV, in_each, over_each, signed, standing
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
    """What is done, by a run for each kind of setting.

    Attributes:
        students: that it is done with.
        wrong: beside labels or teachers with errors.
        rules: with rules.
        right: where nothing is wrong.
    """

    do: str
    students: tuple[str, ...]
    wrong: str
    rules: str
    right: str

    def run_in(self, setting: str) -> str:
        """The run of a setting."""
        return {RULES: self.rules, RIGHT: self.right}.get(setting, self.wrong)


RECIPES = [
    Recipe(
        "`amal()` on smoothed labels; with rules beside a clean teacher; clean rows last",
        ("frozen",),
        wrong="amal(), smoothed labels, then clean rows",
        rules="amal(), clean teacher, then clean rows",
        right="amal(), smoothed labels, then clean rows",
    ),
    Recipe(
        "`amal()` beside a clean teacher; with rules `PerLossNetwork()`, clean rows last",
        ("2", "3"),
        wrong="amal(), clean teacher",
        rules="amal(PerLossNetwork()), clean teacher, then clean rows",
        right="amal(), noisy and clean rows",
    ),
    Recipe(ON_DEV, ("frozen", "2", "3"), wrong=ON_DEV, rules=ON_DEV, right=ON_DEV),
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
        (gains,) = in_each(recipe.run_in(group.setting), [(group, control)])
        if gains:
            found[group] = gains
    return found


def _mean(gains: dict[Group, dict[int, float]], kind: Sequence[str]) -> str:
    chosen = [by_seed for group, by_seed in gains.items() if group.setting in kind]
    return f"{signed(mean_by_seed(chosen))} ({len(chosen)})" if chosen else ""
