"""Figures in the sentences of the pages are those of the results, as those in the tables are."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import advice  # noqa: E402
import contenders  # noqa: E402
import gains  # noqa: E402
import goal  # noqa: E402
import groups  # noqa: E402
import phases  # noqa: E402
import quality  # noqa: E402


CLEAN_TEACHER = "amal(), clean teacher"
RESULTS_PAGE = "docs/results.md"


@pytest.fixture(scope="module")
def cells():
    """Those of the quality benchmark, by student, setting and data set."""
    found = groups.groups_of(groups.read_cells(groups.RESULTS))
    return {(group.student, group.setting, group.data): group for group in found}


def passage(page, start):
    """A paragraph or point of a page that begins with these words, in one line."""
    text = (ROOT / page).read_text()
    return " ".join(re.split(r"\n\n|\n- |\n\|", text[text.index(start) :])[0].split())


def figure(by_seed):
    """A mean gain as sentences have it."""
    return gains.signed(by_seed).replace("-", "−")


def test_settings_in_which_students_of_layers_are_below_are_named(cells):
    """Beside a clean teacher: each setting that is below dev's control by more than the interval, with its figure.
    Beside the teacher of wrong labels: from the least to the most that is lost where 40 % are wrong.
    """
    told = passage(RESULTS_PAGE, "- **Where it is below.**")
    each = gains.over_each([group for group in cells.values() if group.student in ("2", "3")])
    below = [
        figure(by_seed)
        for group, control in each
        if (by_seed := group.gains(CLEAN_TEACHER, control)) and gains.standing([by_seed]).startswith("0, 1")
    ]
    assert [one for one in below if one not in told] == []
    lost = [
        -sum(by_seed.values()) / len(by_seed)
        for setting in ("flipped40", "instance40")
        for data in ("banking77", "sst2")
        for group in [cells["2", setting, data]]
        for by_seed in [group.gains("amal()", group.best(groups.CONTROLS))]
    ]
    assert f"by {min(lost):.0f} to {max(lost):.0f} points in the four settings" in told


def test_what_the_probe_is_worth_where_errors_follow_a_pattern(cells):
    """Its gain where it is above nothing by more than the interval, and that of the recipe over dev's control there;
    the others are said to be level.
    """
    told = passage(RESULTS_PAGE, "- **Errors that follow a pattern**")
    pattern = [cells["frozen", name, data] for name in ("background40", "instance40") for data in groups.DATA[:3]]
    probe = [group.gains("amal()", "amal(), no probe") for group in pattern]
    recipe = gains.in_each(goal.SMOOTHED, gains.over_each(pattern))
    clear = [by_seed for by_seed in probe + recipe if gains.standing([by_seed]) == "1, 0 of 1"]
    assert len(clear) == 4 and [one for one in map(figure, clear) if one.strip("+") not in told] == []
    assert gains.standing(probe + recipe) == "4, 0 of 12" and "level in the five others" in told


def test_where_dev_does_not_say_which_use_of_clean_rows_is_better(cells):
    """TREC, 2 layers, rows that are kept and a clean teacher: dev prefers the one that is better on test but in one
    setting, whose dev scores are told.
    """
    told = passage(RESULTS_PAGE, "- **Steps are better spent on good rows")
    trec = [cells["2", setting, "trec"] for setting in groups.WRONG_LABELS]
    dev = {group.setting: [group.dev_scores(["ours"])[run] for run in (goal.KEPT, CLEAN_TEACHER)] for group in trec}
    gained = {group.setting: sum(group.gains(goal.KEPT, CLEAN_TEACHER).values()) for group in trec}
    misled = [name for name, (kept, beside) in dev.items() if (kept > beside) != (gained[name] > 0)]
    assert misled == ["flipped20"]
    kept, beside = (100 * score for score in dev["flipped20"])
    assert f"dev says so but with 20 % wrong, where the two are level on it ({kept:.1f} and {beside:.1f})" in told


def test_of_how_many_controls_and_seeds_gains_are(cells):
    """Over features, from the fewest that dev chooses of to the most; and every line of advice is of five seeds."""
    told = passage(RESULTS_PAGE, "A *setting* is")
    features = [group for (student, name, _), group in cells.items() if student == "frozen" and name != goal.RULES]
    counts = [len(group.dev_scores(groups.CONTROLS)) for group in features]
    assert f"{min(counts)} to {max(counts)} of them for labels over features" in told and "over 5 seeds" in told
    for one in advice.ADVICE:
        asked = [
            group
            for group in cells.values()
            if (group.student, group.setting in one.settings, group.data in one.data) == (one.student, True, True)
        ]
        seeds = {
            len(group.gains(run, group.best(one.against)))
            for group in asked
            if (run := gains.run_in(one.runs, group)) in group.cells
        }
        assert seeds == {5}, one.runs


def test_dev_would_choose_no_run_with_fewer_seeds(cells):
    """Of controls, of all ours, and of those beside either teacher, with layers: on the seeds that all have."""
    for (student, *_), group in cells.items():
        if student != "frozen":
            for kinds, runs in ((groups.CONTROLS, None), (["ours"], None), (groups.KINDS, goal.EITHER_TEACHER)):
                asked = [run for run, kind in group.kinds.items() if kind in kinds and run in (runs or group.cells)]
                assert not would_take_fewer_seeds(group, asked), (group, asked)
    assert "dev prefers none of them, and none of ours with 3" in passage(
        "benchmarks/README.md", "- **Where 5 seeds meet 3.**"
    )


def would_take_fewer_seeds(group, runs):
    """Whether dev has a run with two to four seeds before the best that has all."""
    best = group.best_of(runs)
    fewer = [run for run in runs if not group.whole(run) and len(group.cells[run]) > 1]
    if best is None or not fewer:
        return False
    other = max(fewer, key=lambda run: np.mean([cell["dev"] for cell in group.cells[run].values()]))
    theirs, ours = (np.mean([group.cells[run][seed]["dev"] for seed in group.cells[other]]) for run in (other, best))
    return theirs > ours


def test_what_runs_reach_at_twice_the_learning_rate(cells):
    """banking77, by the settings that each was run in; what `amal()` gains over dev's control and the kept rows."""
    groups_there = [cells["2@4e-4", setting, "banking77"] for setting in ("flipped20", "flipped40", "instance40")]
    beside = f"amal(), {advice.REGRESSION}"
    told = passage(RESULTS_PAGE, "- **Tune the learning rate") + passage(RESULTS_PAGE, "- **At that rate no row")
    for run in (
        goal.KEPT,
        "rows without suspects",
        beside,
        f"bayes_mixture(), {advice.REGRESSION}",
        "regression over features",
        "labels and regression over features",
        "clean teacher",
    ):
        *first, last = [f"{np.mean(tests):.1f}" for group in groups_there if (tests := group.tests(run))]
        assert f"{', '.join(first)} and {last}" in told, run
    over_kept = [group.gains(beside, goal.KEPT) for group in groups_there]
    over_control = gains.in_each(beside, gains.over_each(groups_there))
    assert f"{figure(groups.mean_by_seed(over_kept))} over these rows alone" in told
    assert f"{figure(groups.mean_by_seed(over_control))} over dev's control" in told
    assert gains.standing(over_control) == "2, 0 of 3"
    ours = goal.gains_of(goal.Recipe(goal.ON_DEV, ("2@4e-4",)), groups_there)
    gained = figure(groups.mean_by_seed(list(ours.values()))).removeprefix("+")
    assert f"and there ours gain {gained} points" in passage(RESULTS_PAGE, "With 2 layers, what is nowhere below")
    told = passage("README.md", "- **Tune the learning rate")
    assert f"Ours are then {gained} points above the control" in told
    without_tuning = [cells["2", group.setting, "banking77"] for group in groups_there]
    gains_of_rate = [
        np.mean(group.tests(run)) - np.mean(usual.tests(run))
        for run in (goal.KEPT, "rows without suspects")
        for group, usual in zip(groups_there, without_tuning, strict=True)
    ]
    assert f"{round(min(gains_of_rate))} to {round(max(gains_of_rate))} points better" in told


def test_means_over_settings_are_of_all_that_there_are(cells):
    """`amal()` beside a clean teacher over its neighbours, and the recipe over features with three of rules."""
    layers = passage("benchmarks/README.md", "- **Layers.**")
    wrong = [cells.get(("2", name, data)) for name in groups.WRONG_LABELS for data in groups.DATA]
    for other, settings in (("bayes_mixture(), clean teacher", "ten"), (f"{CLEAN_TEACHER}, equal shares", "eight")):
        known = [group.gains(CLEAN_TEACHER, other) for group in wrong if group and other in group.cells]
        assert len(known) == {"ten": 10, "eight": 8}[settings]
        gained = re.escape(figure(groups.mean_by_seed(known)))
        assert re.search(rf"{gained} over [^,]*\({settings} settings\)", layers)
    recipe = goal.gains_of(goal.RECIPES[0], [group for (student, *_), group in cells.items() if student == "frozen"])
    faulty = [by_seed for group, by_seed in recipe.items() if group.setting in (*groups.ERRORS, goal.RULES)]
    told = passage("benchmarks/README.md", "- **Features.**")
    assert f"for the 17 with errors {figure(groups.mean_by_seed(faulty))}." in told


def test_how_much_of_what_is_to_be_had_ours_get(cells):
    """Over dev's control, wrong labels and rules: what the oracle of each student gains and what ours do, on the mean
    and by data.
    """
    features, layers = (
        passage("README.md", f"- **A {student}").replace("−", "-")
        for student in ("head over", "student of two layers")
    )
    ours = {"frozen": goal.RECIPES[0], "2": next(one for one in goal.RECIPES if goal.KEPT in one.wrong)}
    gained = {}
    for student, told in (("frozen", features), ("2", layers)):
        oracle = next(one for one in goal.RECIPES if one.do == goal.TOLD and student in one.students)
        tried = [group for (named, *_), group in cells.items() if named == student]
        both = [goal.gains_of(recipe, tried) for recipe in (ours[student], oracle)]
        faulty = [group for group in both[1] if group.setting in goal.KINDS["wrong labels, rules"]]
        gained[student] = {group: [np.mean(list(by_seed[group].values())) for by_seed in both] for group in faulty}
        mean_of_ours, of_oracle = (
            gains.signed(groups.mean_by_seed([by_seed[group] for group in faulty])).strip("+") for by_seed in both
        )
        assert f"gains {mean_of_ours}** on the mean of {len(faulty)}" in told
        assert re.search(rf"(are right gains|of the) {of_oracle}", told)
    parts = {
        "nearly all of it on banking77": [],
        "less than half of it on TREC": [],
        "nothing on SST-2": [],
        "nor with rules": [],
    }
    places = dict(zip(("banking77", "trec", "sst2", goal.RULES), parts, strict=True))
    for group, pair in gained["2"].items():
        parts[places[goal.RULES if group.setting == goal.RULES else group.data]].append(pair)
    for where, pairs in parts.items():
        got, there = np.mean(pairs, 0)
        assert f"{where} ({got:+.1f} for {there:+.1f})" in layers


def test_what_drawn_pairs_gain():
    """Over the best control, in BLEU, with 30 % and 50 % of the pairs wrong: as `docs/results.md` has it."""
    table = passage(RESULTS_PAGE, "| `deep_interactions(), source gain, drawn").split("|")
    told = passage("README.md", "- **Pairs to translate**")
    assert [cell.strip(" +") in told for cell in (table[3], table[5])] == [True, True]


def test_what_the_best_single_control_with_layers_is(cells):
    """A teacher of the clean rows, with labels as the tuning seed has it: in all but two of ten settings."""
    told = passage(RESULTS_PAGE, "- **With layers, ")
    wrong = [group for (student, name, _), group in cells.items() if student == "2" and name in groups.WRONG_LABELS]
    options = [cell["option"] for group in wrong for cell in list(group.cells["clean teacher"].values())[:1]]
    assert groups.best_of_all(wrong) == "clean teacher" and (len(options), options.count("alone")) == (10, 2)
    assert "in two of ten settings, where dev has it so, that teacher alone" in told


def test_what_very_many_examples_cost():
    """The table of `docs/scaling.md` has what `table_scale.py` measured: bytes and seconds."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "table_scale.json").read_text())["rows"]
    sizes = [rows[str(10**power)] for power in (6, 7, 8)]
    told = (ROOT / "docs" / "scaling.md").read_text()
    lines = {
        "the process's own memory": [f"{size['memory_mb']['own']:.0f} MB" for size in sizes],
        "pages of the file, which the system may take back": [
            f"{size['memory_mb']['mapped']:.0f} MB" for size in sizes
        ],
        "an update of 64 rows": [f"{size['update_ms']:.2g} ms" for size in sizes],
        "a checkpoint after 6,400 more rows: new bytes, seconds": [
            f"{size['later_checkpoint']['new_bytes'] / 1e6:.1f} MB, {size['later_checkpoint']['seconds']:.1g} s"
            for size in sizes
        ],
        "a checkpoint when every row has been written": [
            f"{amount}, {seconds(size['whole_checkpoint']['seconds'])} s"
            for amount, size in zip(("20 MB", "200 MB", "2 GB"), sizes, strict=True)
        ],
        "reading it when resuming": [f"{seconds(size['resume_seconds'])} s" for size in sizes],
    }
    assert [name for name, cells in lines.items() if f"| {name} | {' | '.join(cells)} |" not in told] == []


def seconds(value):
    """One digit of short ones."""
    return f"{value:.0f}" if value >= 1 else f"{value:.1g}"


def test_runs_that_have_clean_rows_among_their_training_rows_are_named():
    """By words in their names with labels, each by its name with rules."""
    told = passage("benchmarks/README.md", "`settings.py` says")
    words, names = re.findall(r"training rows too of runs whose names have (.*?); with rules of (.*?) alone", told)[0]
    pattern = "|".join(re.findall('"(.*?)"', words)).replace("rows ...", "^rows ")
    for runs, named in (
        (contenders.DISTILLATION, pattern),
        (contenders.VOTES, "|".join(re.findall("`(.*?)`", names))),
    ):
        for name, run in runs.items():
            among = {any(set(phases.ALL) <= set(phase.rows) for phase in option) for option in run.options.values()}
            assert among == {bool(re.search(named, name))}, name


def test_what_runs_need_is_told():
    """Each run that is left out without a package, and the package."""
    told = passage("benchmarks/README.md", "`settings.py` says").split(". ")[-1]
    assert [one for pair in quality.NEEDS.items() for one in pair if one not in told] == []
