"""Writes the tables of README.md, benchmarks/README.md and docs/: from the cells of the quality benchmark, and what it
costs.

    python benchmarks/tables.py          # rewrites what stands between the markers
    python benchmarks/tables.py --show   # prints it instead

No number there is written by hand: a test renders the tables again and compares.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import advice
import gains
import goal
import laws
import numpy as np
import overhead
import translation
import variants
import wrong_labels
from groups import KINDS, RESULTS, SETTINGS, STUDENTS, Group, groups_of, read_cells
from json_lines import read
from markdown_tables import table
from spread import spread


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SHORT_RULES = [
    "majority vote",
    "clean rows only",
    "clean teacher, then clean rows",
    "rules and clean teacher, then clean rows",
    "majority and clean teacher, then clean rows",
    "votes a clean teacher believes, then clean rows",
    "amal(PerLossNetwork()), clean teacher, then clean rows",
    "amal(), clean teacher, then clean rows",
    "amal(), majority and clean teacher, then clean rows",
    "right votes and clean teacher, then clean rows",
]
DETECTING = ["amal()", "amal(), clean teacher", "meta_weight_net()", "learning_to_reweight()", "geometry network"]


def main() -> None:
    """Rewrite the pages, or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    blocks = all_blocks(options.results)
    if options.show:
        print("\n\n".join(f"## {name}\n\n{text}" for name, text in blocks.items()))
        return
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), blocks), encoding="utf-8", newline="\n")


def all_blocks(folder: Path) -> dict[str, str]:
    """Every table by the name of its marker, those of quality from the cells in a folder."""
    groups = groups_of(read_cells(folder))
    return {
        "goal": goal.goal(groups),
        "advice": advice.advice(groups),
        "in short": gains.in_short(groups),
        "gains": gains.by_setting(groups),
        "all runs": everything(groups),
        "rules": _matrix([g for g in groups if (g.student, g.setting) == ("2", "rules")], SHORT_RULES),
        "wrong labels found": detection(groups),
        "wrong labels told": wrong_labels.short_table(read(wrong_labels.RESULTS)),
        "wrong labels told, by data": wrong_labels.results_table(read(wrong_labels.RESULTS)),
        "variants": variants.variants_table(variants.results_of(variants.FEATURES)),
        "clean rows": variants.clean_rows_table(variants.results_of(variants.FEATURES)),
        "translation in short": translation.short_table(read(translation.RESULTS)),
        "translation": translation.results_table(read(translation.RESULTS)),
        "translation, half wrong": translation.results_table(read(translation.RESULTS), 0.5, translation.ROBUST_LOSS),
        "overhead": overhead.table(),
        "tangents": overhead.tangents_table(),
        "laws": laws.table(laws.points()),
    }


def filled(page: str, blocks: dict[str, str]) -> str:
    """A page with the text between its markers replaced."""
    for name, text in blocks.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        page = re.sub(pattern, lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page, flags=re.DOTALL)  # type: ignore[misc]
    return page


def everything(groups: list[Group]) -> str:
    """Every run in every setting, and the mean of its ranks: a table for each student and kind of setting."""
    parts = []
    for student in STUDENTS:
        for rules in (False, True):
            chosen = [g for g in groups if g.student == student and (g.setting == "rules") == rules]
            if chosen:
                what = "learning from rules" if rules else "labels and a teacher"
                parts.append(f"{STUDENTS[student][0].upper()}{STUDENTS[student][1:]}, {what}:\n\n{_matrix(chosen)}")
    return "\n\n".join(parts)


def _matrix(groups: list[Group], shown: Sequence[str] = ()) -> str:
    """Some of the runs, or all; ranks are among all, and means and ranks of runs that are whole in all settings."""
    kinds = {run: kind for group in groups for run, kind in group.kinds.items()}
    runs = sorted(kinds, key=lambda run: KINDS.index(kinds[run]))
    ranks = mean_ranks(groups, runs)
    rows = []
    for run in [run for run in runs if run in (shown or runs)]:
        scores = [spread(values) if (values := group.tests(run)) else "" for group in groups]
        rows.append([run, kinds[run], *scores, *(_means(groups, run, ranks[run]) if run in ranks else ["", "", ""])])
    return table(["run", "kind", *(group.title for group in groups), "mean", "mean on dev", "mean rank"], rows)


def _means(groups: list[Group], run: str, rank: float) -> list[str]:
    test = np.mean([np.mean(group.tests(run)) for group in groups])
    dev = 100 * np.mean([group.dev_scores([group.kinds[run]])[run] for group in groups])
    return [f"{test:.1f}", f"{dev:.1f}", f"{rank:.1f}"]


def mean_ranks(groups: list[Group], runs: list[str]) -> dict[str, float]:
    """Mean over the settings of a run's rank by mean test score, ties sharing; for runs that are whole in all."""
    complete = [run for run in runs if all(group.whole(run) for group in groups)]
    ranks: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        means = np.array([np.mean(group.tests(run)) for run in complete])
        for run, mean in zip(complete, means, strict=True):
            ranks[run].append(float((means > mean).sum() + ((means == mean).sum() + 1) / 2))
    return {run: float(np.mean(values)) for run, values in ranks.items()}


def detection(groups: list[Group]) -> str:
    """AUC of learned weights, of the loss alone and of confident learning; of votes for rules."""
    rows = []
    for group in groups:
        for name in ("label weight", "teacher weight", "vote weight"):
            learned = {run: group.aucs(run, name) for run in DETECTING if run in group.cells}
            if any(learned.values()):
                others = [group.aucs("labels only", "loss"), group.aucs("confident learning", "confident learning")]
                shown = others if name == "label weight" else [[], []]
                values = [*(learned.get(run, []) for run in DETECTING), *shown]
                cells = [spread(value, 2) if value else "" for value in values]
                rows.append([f"{group.data}, {SETTINGS[group.setting]}", STUDENTS[group.student], name, *cells])
    head = ["data, setting", "student", "what", *(f"`{run}`" if "()" in run else run for run in DETECTING)]
    return table([*head, "loss alone", "confident learning"], rows)


if __name__ == "__main__":
    main()
