"""The tables of the quality benchmark: rendered from cells, gains by hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import advice  # noqa: E402
import contenders  # noqa: E402
import gains  # noqa: E402
import goal  # noqa: E402
import groups  # noqa: E402
import tables  # noqa: E402


def record_of(setting, run, seed, dev, test, data="trec", student="frozen"):
    """A cell that has seen the test set."""
    place = {"data": data, "student": student, "setting": setting, "run": run, "seed": seed}
    kind = contenders.contenders(setting)[run].kind
    return place | {"kind": kind, "metric": "accuracy", "dev": dev, "auc": {}, "test": {"accuracy": test}}


def columns(table, title):
    """The one row of a Markdown table that has a cell with these words, by the heads of the columns."""
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    (row,) = [row for row in rows if title in row]
    return dict(zip(head, row, strict=True))


def four_settings(student="frozen"):
    """By hand: `amal()` gains 1, 2 and 3 points in one setting and 3 in each seed of another; with few clean rows -2,
    1 and 4, with right labels 30.
    """
    partly = "amal(), noisy and clean rows"
    return [
        record
        for seed in range(3)
        for setting, gain in (
            ("flipped20", 0.01 * (1 + seed)),
            ("flipped40", 0.03),
            ("few", 0.03 * seed - 0.02),
            ("clean", 0.3),
        )
        for record in (
            record_of(setting, "teacher only", seed, 0.6, 0.5, student=student),
            record_of(setting, "labels only", seed, 0.5, 0.9, student=student),
            record_of(setting, "amal()", seed, 0.7, 0.5 + gain, student=student),
            *([record_of(setting, partly, seed, 0.6, 0.6, student=student)] if setting == "flipped40" else []),
        )
    ]


def test_gains_are_paired_and_over_the_control_that_dev_chooses():
    """By hand: dev prefers the teacher; gains of 1, 2 and 3 points have the mean 2 and the half-width 2.5."""
    (group,) = groups.groups_of(
        record
        for seed in range(3)
        for record in (
            record_of("flipped40", "labels only", seed, 0.5, 0.99),
            record_of("flipped40", "teacher only", seed, 0.6, 0.80 + 0.05 * seed),
            record_of("flipped40", "amal()", seed, 0.7, 0.81 + 0.06 * seed),
        )
    )
    assert group.best(groups.CONTROLS) == "teacher only"
    assert group.gains("amal()", "teacher only") == pytest.approx({0: 1.0, 1: 2.0, 2: 3.0})
    table = gains.by_setting([group]).split(":\n\n")[1]
    row = columns(table, "trec, 40 % wrong labels")
    assert row["best control on dev"] == "teacher only"
    assert row["its test score"] == "85.0 ± 12.4"
    assert row["`amal()`"] == row["ours, best on dev"] == "+2.0 ± 2.5"
    assert "amal(), clean teacher" not in table  # no empty columns
    ranks = {"labels only": 1.0, "amal()": 2.0, "teacher only": 3.0}
    assert tables.mean_ranks([group], list(ranks)) == ranks


def test_gains_are_averaged_over_settings():
    """2, 2.5 and 3 points on the mean of two settings with wrong labels, 2/3, 2 and 10/3 with few clean rows too; with
    right labels 8, 9 and 10, over the control of each as over the only one of all. A run that lacks one has no mean.
    """
    table = gains.by_setting(groups.groups_of(four_settings())).split(":\n\n")[1]
    wrong = columns(table, "**mean of the 2 with wrong labels**")
    assert wrong["`amal()`"] == "+2.5 ± 1.2"
    assert wrong["`amal(), noisy and clean rows`"] == ""
    assert columns(table, "**mean of the 3 with errors**")["`amal()`"] == "+2.0 ± 3.3"
    *_, each, one, counts = table.splitlines()
    assert each.startswith("| **mean of all 4** |  | of each | 50.0 ± 0.0 | +9.0 ± 2.5 |")
    assert one.startswith("| **mean of all 4** |  | teacher only | 50.0 ± 0.0 | +9.0 ± 2.5 |")
    assert counts.startswith("| **above, below** |  | of each |  | 2, 0 of 4 |")


def test_settings_above_and_below_are_counted_by_their_intervals():
    """Of gains of 3, 3, 3 and 1, 2, 3 and -1, -1, -2 points the first is above nothing, the last, -1.3 ± 1.4, just not
    below, and -1, -1, -1 is; of two seeds nothing can be said, and a setting that a run lacks does not count.
    """
    gained = {"clean": (3, 3, 3), "flipped20": (1, 2, 3), "flipped40": (-1, -1, -2), "few": (-1, -1, -1)}
    cells = [
        record
        for setting, points in (gained | {"background40": (5, 5), "instance40": ()}).items()
        for seed in range(3)
        for record in (
            record_of(setting, "labels only", seed, 0.5, 0.5),
            *(record_of(setting, "amal()", seed, 0.5, 0.5 + 0.01 * gain) for gain in points[seed : seed + 1]),
        )
    ]
    compared = gains.over_each(groups.groups_of(cells))
    assert gains.standing(gains.in_each("amal()", compared)) == "1, 1 of 4"
    assert gains.standing(gains.in_each("amal(), no probe", compared)) == ""


def test_a_run_is_compared_with_one_control_too():
    """By hand: dev prefers another control in each of two settings, and on their mean the one that is worse in the
    first: 60 to 50 % there, 40 to 30 % in the other, so that `amal()` with 60 and 50 % gains 5 and 10 points.
    """
    cells = groups.groups_of(
        record_of(setting, run, seed, dev, test)
        for seed in range(3)
        for setting, run, dev, test in (
            ("flipped20", "teacher only", 0.6, 0.6),
            ("flipped20", "labels only", 0.5, 0.5),
            ("flipped40", "teacher only", 0.4, 0.3),
            ("flipped40", "labels only", 0.6, 0.4),
            ("flipped20", "amal()", 0.5, 0.6),
            ("flipped40", "amal()", 0.5, 0.5),
        )
    )
    assert groups.best_of_all(cells) == "labels only"
    assert gains.mean_gain("amal()", gains.over_each(cells)) == pytest.approx({0: 5.0, 1: 5.0, 2: 5.0})
    assert gains.mean_gain("amal()", gains.over_one(cells)) == pytest.approx({0: 10.0, 1: 10.0, 2: 10.0})


def test_no_control_is_best_of_all_where_none_has_all_settings():
    """A matrix that is not finished has tables all the same."""
    cells = groups.groups_of(
        record_of(*place, 0, 0.6, 0.5) for place in (("clean", "labels only"), ("few", "teacher only"))
    )
    assert groups.best_of_all(cells) is None
    assert groups.groups_of([record_of("clean", "amal()", 0, 0.6, 0.5)]) == []  # nothing to compare with
    assert gains.over_one(cells) == []
    assert gains.mean_gain("amal()", []) == {}


def test_short_table_averages_over_data_sets():
    """By hand: 65 to 75 % are 1 to 3 points above the controls that dev chooses in each, whose means are 64, 68, 72 %;
    a run that lacks a data set has no mean.
    """
    table = gains.in_short(
        groups.groups_of(
            record_of("flipped40", run, seed, dev, test, data)
            for seed in range(3)
            for data, run, dev, test in (
                ("trec", "fixed mixture", 0.6, 0.78 + 0.08 * seed),
                ("trec", "labels only", 0.5, 0.1),
                ("trec", "amal()", 0.9, 0.8 + 0.1 * seed),
                ("trec", "amal(), clean teacher", 0.5, 0.9),
                ("sst2", "fixed mixture", 0.5, 0.9),
                ("sst2", "labels only", 0.6, 0.5),
                ("sst2", "amal()", 0.6, 0.5),
            )
        )
    )
    row = columns(table, "40 % wrong labels (`flipped40`)")
    assert row["data"] == "trec, sst2"
    assert row["control"] == "68.0 ± 9.9"
    assert row["`amal()`"] == "+2.0 ± 2.5"
    assert row["`amal(), clean teacher`"] == ""


def test_means_are_of_runs_that_all_settings_have():
    """By hand: 60 and 50 % have the mean 55, 70 and 44 on dev 57; a run that lacks a setting has no mean."""
    table = tables.everything(
        groups.groups_of(
            record_of(setting, run, seed, dev, test)
            for seed in range(3)
            for setting, run, dev, test in (
                ("flipped20", "teacher only", 0.7, 0.6),
                ("flipped40", "teacher only", 0.44, 0.5),
                ("flipped20", "amal()", 0.7, 0.9),
            )
        )
    ).split(":\n\n")[1]
    whole, partly = columns(table, "teacher only"), columns(table, "amal()")
    assert [whole[name] for name in ("mean", "mean on dev", "mean rank")] == ["55.0", "57.0", "1.0"]
    assert [partly[name] for name in ("mean", "mean on dev", "mean rank")] == ["", "", ""]


def test_advice_says_what_it_has_gained(monkeypatch):
    """The mean over the settings of its student that have its run, in bold where it is above nothing; without a run
    there is no line. Of several runs it is the one that dev chooses in each setting.
    """

    def line(do, run, settings=groups.WRONG_LABELS):
        return advice.Advice("labels", do, "frozen", settings, run)

    lines = [
        line("first", "amal()"),
        line("second", "amal(), no probe"),
        line("third", "amal()", ("few",)),
        line("fourth", "amal(), noisy and clean rows"),
        line("fifth", ("amal(), noisy and clean rows", "amal(), no probe", "amal()")),
    ]
    monkeypatch.setattr(advice, "ADVICE", lines)
    table = advice.advice(groups.groups_of(four_settings() + four_settings("2")))
    first, third, fourth, fifth = (columns(table, do) for do in ("first", "third", "fourth", "fifth"))
    assert first["measured on"] == "head over frozen MiniLM; trec: 2 settings"
    assert first["over the control that dev chooses in each"] == "**+2.5 ± 1.2**"
    assert first["settings above, below"] == "1, 0 of 2"
    assert first["over the best single control"] == "**+2.5 ± 1.2** (teacher only)"
    assert third["over the control that dev chooses in each"] == "+1.0 ± 7.5"
    assert fourth["measured on"] == "head over frozen MiniLM; trec: 1 setting"
    assert fifth | {"do": "first"} == first
    assert len(table.splitlines()) == 2 + 4


def test_goal_is_the_mean_over_the_settings_of_a_kind(monkeypatch):
    """Each kind of setting with its own run: gains of 1, 2, 3 and 3, 3, 3 points with wrong labels and 4, 4, 4 with
    rules are 8/3, 3, 10/3; with few clean rows, -2, 1, 4, they are 1.5, 2.5, 3.5; two of the five are not above. Of
    several runs it is the one that is best on dev, whichever is named first.
    """
    run = "amal(), then clean rows"
    rules = [
        record
        for seed in range(3)
        for record in (
            record_of("rules", "majority vote", seed, 0.6, 0.5),
            record_of("rules", "amal()", seed, 0.6, 0.9),
            record_of("rules", run, seed, 0.7, 0.54),
        )
    ]
    once, either = "amal()", ("amal(), noisy and clean rows", "amal()")
    recipes = [
        goal.Recipe("made", ("frozen",), wrong=once, rules=run, right=once),
        goal.Recipe("chosen on dev", ("frozen",), wrong=either, rules=("amal()", run), right=either),
        goal.Recipe("chosen among all", ("frozen", "2")),
        goal.Recipe("not made", ("frozen", "2"), *3 * ["amal(), mean one"]),
    ]
    monkeypatch.setattr(goal, "RECIPES", recipes)
    table = goal.goal(groups.groups_of(four_settings() + rules))
    for title in ("made", "chosen on dev", "chosen among all"):
        row = columns(table, title)
        assert row["wrong labels, rules"] == "+3.0 ± 0.8 (3)"
        assert row["and few clean rows, a wrong teacher"] == "+2.5 ± 2.5 (4)"
        assert row["nothing wrong"] == "+30.0 ± 0.0 (1)"
        assert row["settings above, below"] == "3, 0 of 5"
    assert len(table.splitlines()) == 2 + 3


def test_runs_in_the_tables_are_contenders():
    """A run that is renamed would leave an empty column, or a line of advice out."""
    known = {*contenders.DISTILLATION, *contenders.VOTES}
    named = {*gains.OURS, *gains.SHORT, *tables.SHORT_RULES, *tables.DETECTING}
    recipes = [runs for recipe in goal.RECIPES for runs in (recipe.wrong, recipe.rules, recipe.right)]
    for runs in (*recipes, *(line.runs for line in advice.ADVICE)):
        named |= {runs} if isinstance(runs, str) else {*runs}
    assert named - {gains.ON_DEV} <= known


def test_tables_in_the_pages_are_those_of_the_cells():
    """No number there is written by hand."""
    blocks = tables.all_blocks(groups.RESULTS)
    found = set()
    for page in tables.PAGES:
        text = page.read_text()
        found |= {name for name in blocks if f"<!-- {name} -->" in text}
        assert tables.filled(text, blocks) == text
    assert found == set(blocks)


def test_pages_are_utf_8_wherever_tables_are_made(tmp_path):
    """A system that reads text as ASCII, as Windows does in an encoding of its own, leaves a page as it was."""
    page = tmp_path / "README.md"
    page.write_bytes((tables.ROOT / "README.md").read_bytes())
    script = f"import tables; tables.PAGES = [tables.Path({str(page)!r})]; tables.main()"
    paths = os.pathsep.join([str(tables.ROOT), str(tables.ROOT / "benchmarks")])
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths, **ascii_alone}, check=True)
    assert page.read_bytes() == (tables.ROOT / "README.md").read_bytes()
