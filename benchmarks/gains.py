"""What learned weights gain over controls: in every data set and setting, and averaged over them."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from groups import CONTROLS, ERRORS, SETTINGS, STUDENTS, WRONG_LABELS, Group, best_of_all, mean_by_seed
from markdown_tables import table, without_empty_columns
from spread import half_width, spread


ON_DEV = "ours, best on dev"
"""That of ours which dev chooses in each setting, as it chooses among the controls."""
OURS = [
    ON_DEV,
    "amal()",
    "amal(), noisy and clean rows",
    "amal(), noisy and clean, then clean rows",
    "amal(), smoothed labels",
    "amal(), smoothed labels, then clean rows",
    "amal(), corrected labels, then clean rows",
    "amal(), clean teacher",
    "amal(), calibrated clean teacher",
    "amal(), clean teacher, equal shares",
    "bayes_mixture(), clean teacher",
    "bayes_mixture(), calibrated clean teacher",
    "amal(), no probe",
    "tuned recipe, amal()",
    "amal(), clean teacher, then clean rows",
    "amal(PerLossNetwork()), clean teacher, then clean rows",
    "amal(), majority and clean teacher, then clean rows",
]
SHORT = [
    ON_DEV,
    "amal()",
    "amal(), smoothed labels, then clean rows",
    "amal(), clean teacher",
    "amal(), calibrated clean teacher",
    "bayes_mixture(), clean teacher",
    "right labels",
]
Runs: TypeAlias = str | tuple[str, ...]
"""One, or several of which dev chooses in each setting."""
Compared: TypeAlias = list[tuple[Group, str]]
"""Settings, each with the control that a run is compared with."""


def over_each(groups: Sequence[Group], kinds: Sequence[str] = CONTROLS) -> Compared:
    """With the control that dev chooses in each."""
    return [(group, best) for group in groups if (best := group.best(kinds))]


def over_one(groups: Sequence[Group], kinds: Sequence[str] = CONTROLS) -> Compared:
    """With the one control that is best on dev on the mean of all; empty if none was run in all."""
    one = best_of_all(groups, kinds)
    return [(group, one) for group in groups] if one else []


def run_in(runs: Runs, group: Group) -> str | None:
    """The run of a setting; `None` where there is none to choose."""
    if runs == ON_DEV:
        return group.best(["ours"])
    return runs if isinstance(runs, str) else group.best_of(runs)


def in_each(runs: Runs, compared: Compared) -> list[dict[int, float]]:
    """By seed, for each setting; empty where a run was not made."""
    return [group.gains(run_in(runs, group) or "", control) for group, control in compared]


def mean_gain(runs: Runs, compared: Compared) -> dict[int, float]:
    """By seed, over several settings; empty for runs that lack one of them."""
    return mean_by_seed(in_each(runs, compared))


def signed(gains: dict[int, float]) -> str:
    """Mean over the seeds with its interval."""
    if not gains:
        return ""
    values = list(gains.values())
    width = half_width(values)
    return f"{np.mean(values):+.1f}" + ("" if width is None else f" ± {width:.1f}")


def standing(several: Sequence[dict[int, float]]) -> str:
    """In how many of the settings that a run has it is above its control, and below it, by more than the interval."""
    gains = [list(gains.values()) for gains in several]
    known = [(float(np.mean(values)), width) for values in gains if (width := half_width(values)) is not None]
    above, below = (sum(sign * mean > width for mean, width in known) for sign in (1, -1))
    return f"{above}, {below} of {len(known)}" if known else ""


def by_setting(groups: Sequence[Group]) -> str:
    """All of ours in every data set and setting: a table for each student, and one for rules."""
    parts = []
    for rules in (False, True):
        for student, name in STUDENTS.items():
            chosen = [g for g in groups if g.student == student and (g.setting == "rules") == rules]
            if chosen:
                parts.append(f"{name[0].upper()}{name[1:]}, {'rules' if rules else 'labels'}:\n\n{_gains(chosen)}")
    return "\n\n".join(parts)


def _gains(groups: Sequence[Group]) -> str:
    each = over_each(groups)
    places = [(group.title, str(len(group.cells[best])), best, [(group, best)]) for group, best in each]
    several = [(f"**{what}**", "", control, compared) for what, control, compared in _means(groups)]
    rows = [[*named, _score(compared), *_signed(compared)] for *named, compared in [*places, *several]]
    rows.append(["**above, below**", "", "of each", "", *(standing(in_each(run, each)) for run in OURS)])
    head = ["data, setting", "seeds", "best control on dev", "its test score", *map(code, OURS)]
    return table(*without_empty_columns(head, rows))


def _means(groups: Sequence[Group]) -> list[tuple[str, str, Compared]]:
    """What several settings are called, the control they are compared with, and they."""
    wrong = [group for group in groups if group.setting in WRONG_LABELS]
    faulty = [group for group in groups if group.setting in ERRORS]
    found = []
    if len(wrong) > 1:
        found.append((f"mean of the {len(wrong)} with wrong labels", "of each", over_each(wrong)))
    if len(faulty) > len(wrong):
        found.append((f"mean of the {len(faulty)} with errors", "of each", over_each(faulty)))
    if len(groups) > 1:
        found.append((f"mean of all {len(groups)}", "of each", over_each(groups)))
        if one := best_of_all(groups):
            found.append((f"mean of all {len(groups)}", one, over_one(groups)))
    return found


def _score(compared: Compared) -> str:
    scores = mean_by_seed([group.scores(control) for group, control in compared])
    return spread(list(scores.values())) if scores else ""


def _signed(compared: Compared, runs: Sequence[str] = OURS) -> list[str]:
    return [signed(mean_gain(run, compared)) for run in runs]


def code(run: str) -> str:
    """As a table shows it."""
    return f"`{run}`" if "()" in run else run


def in_short(groups: Sequence[Group]) -> str:
    """A few of ours: for each student a row a setting, averaged over its data sets, and rows for several settings."""
    head = ["student", "setting", "data", "control", *map(code, SHORT)]
    rows = []
    for student, name in STUDENTS.items():
        known = [group for group in groups if group.student == student and group.setting != "rules"]
        lines = {f"{SETTINGS[key]} (`{key}`)": [g for g in known if g.setting == key] for key in SETTINGS}
        lines["**all with wrong labels**"] = [group for group in known if group.setting in WRONG_LABELS]
        lines["**all with errors**"] = [group for group in known if group.setting in ERRORS]
        rows += [[name, what, *_short_row(over_each(line))] for what, line in lines.items() if line]
    return table(head, rows)


def _short_row(compared: Compared) -> list[str]:
    data = ", ".join(dict.fromkeys(group.data for group, _ in compared))
    return [data, _score(compared), *_signed(compared, SHORT)]
