"""Writes the tables of README.md and benchmarks/README.md: from the cells of the quality benchmark, and what it costs.

    python benchmarks/tables.py          # rewrites what stands between the markers
    python benchmarks/tables.py --show   # prints it instead

No number there is written by hand: a test renders the tables again and compares.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import laws
import numpy as np
import overhead
from spread import half_width, spread


ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "quality"
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md"]

KINDS = ["control", "rule of thumb", "learned", "ours", "oracle"]
CONTROLS = KINDS[:2]
OURS = [
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
    "amal(PerLossNetwork()), clean teacher, then clean rows",
    "amal(), majority and clean teacher, then clean rows",
]
BESIDE = "amal(), clean teacher"
"""Where this was run, a clean teacher was at hand."""
SHORT = [
    "fixed mixture",
    "noisy, then clean rows",
    "clean teacher",
    "amal()",
    "amal(), smoothed labels, then clean rows",
    "amal(), clean teacher",
    "right labels",
]
SHORT_RULES = [
    "majority vote",
    "clean rows only",
    "clean teacher, then clean rows",
    "rules and clean teacher, then clean rows",
    "majority and clean teacher, then clean rows",
    "votes a clean teacher believes, then clean rows",
    "amal(PerLossNetwork()), clean teacher, then clean rows",
    "amal(), majority and clean teacher, then clean rows",
    "right votes and clean teacher, then clean rows",
]
DETECTING = ["amal()", BESIDE, "meta_weight_net()", "learning_to_reweight()", "geometry network"]
DATA = ["trec", "banking77", "sst2", "youtube", "sms"]
SETTINGS = {
    "clean": "nothing wrong",
    "flipped20": "20 % wrong labels",
    "flipped40": "40 % wrong labels",
    "few": "40 % wrong, few clean rows",
    "background40": "40 % swallowed by one class",
    "instance40": "40 % wrong, alike in like texts",
    "teacher30": "wrong teacher on 30 %",
    "imbalance": "imbalance 1:20",
    "rules": "rules",
}
WITHOUT_ERRORS = ("clean", "imbalance")
STUDENTS = {"frozen": "head over frozen MiniLM", "2": "2-layer MiniLM", "3": "3-layer MiniLM", "6": "MiniLM"}
METRICS = {"accuracy": "", "macro_f1": ", macro F1", "f1": ", F1"}

Record = dict[str, Any]


class Group:
    """All reported cells of one data set, student and setting.

    Args:
        records: these cells.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.data, self.student, self.setting = (records[0][name] for name in ("data", "student", "setting"))
        self.metric = records[0]["metric"]
        self.kinds = {record["run"]: record["kind"] for record in records}
        self.cells: dict[str, dict[int, Record]] = defaultdict(dict)
        for record in sorted(records, key=lambda record: record["seed"]):
            self.cells[record["run"]][record["seed"]] = record

    @property
    def title(self) -> str:
        """For the head of a column."""
        return f"{self.data}, {SETTINGS[self.setting]}{METRICS[self.metric]}"

    @property
    def order(self) -> tuple[int, ...]:
        """Students, data sets and settings in the order of the lists above."""
        places = (list(STUDENTS), self.student), (DATA, self.data), (list(SETTINGS), self.setting)
        return tuple(names.index(name) for names, name in places)

    def tests(self, run: str) -> list[float]:
        """Test scores in %, by seed."""
        return [100 * cell["test"][self.metric] for cell in self.cells.get(run, {}).values()]

    def aucs(self, run: str, name: str) -> list[float]:
        """How well a run tells right from wrong, by seed."""
        return [cell["auc"][name] for cell in self.cells.get(run, {}).values() if name in cell["auc"]]

    def whole(self, run: str) -> bool:
        """Whether a run has as many seeds as any control: others are left out where runs are put in an order."""
        seeds = (len(cells) for other, cells in self.cells.items() if self.kinds[other] in CONTROLS)
        return len(self.cells.get(run, {})) >= max(seeds, default=1)

    def dev_scores(self, kinds: Sequence[str]) -> dict[str, float]:
        """The mean dev score of every run of some kinds."""
        return {
            run: float(np.mean([cell["dev"] for cell in cells.values()]))
            for run, cells in self.cells.items()
            if self.kinds[run] in kinds and self.whole(run)
        }

    def best(self, kinds: Sequence[str]) -> str | None:
        """The run that is best on dev, on average."""
        dev = self.dev_scores(kinds)
        return max(dev, key=lambda run: dev[run]) if dev else None

    def best_control(self) -> str | None:
        """That of the runs without learned weights."""
        return self.best(CONTROLS)

    def gains(self, run: str, other: str) -> dict[int, float]:
        """By how many points a run is better on the test set, for each of the seeds that both have."""
        ours, theirs = self.cells.get(run, {}), self.cells[other]
        return {
            seed: 100 * (ours[seed]["test"][self.metric] - theirs[seed]["test"][self.metric])
            for seed in ours
            if seed in theirs
        }


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
        page.write_text(filled(page.read_text(), blocks))


def all_blocks(folder: Path) -> dict[str, str]:
    """Every table by the name of its marker, those of quality from the cells in a folder."""
    return {**rendered(groups_of(read_cells(folder))), "overhead": overhead.table(), "laws": laws.table(laws.points())}


def read_cells(folder: Path) -> list[Record]:
    """The reported cells: those that have seen the test set."""
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    return [record for record in map(json.loads, lines) if "test" in record]


def groups_of(records: Iterable[Record]) -> list[Group]:
    """Cells that are compared with one another."""
    found: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        found[record["data"], record["student"], record["setting"]].append(record)
    return sorted((Group(cells) for cells in found.values()), key=lambda group: group.order)


def rendered(groups: list[Group]) -> dict[str, str]:
    """The tables of quality by the name of their marker; settings without any control yet are left out."""
    groups = [group for group in groups if group.best_control()]
    return {
        "in short": in_short([g for g in groups if g.setting != "rules" and set(SHORT) & set(OURS) & set(g.cells)]),
        "against controls": summary(groups),
        "all runs": everything(groups),
        "rules": _matrix([g for g in groups if (g.student, g.setting) == ("2", "rules")], SHORT_RULES),
        "wrong labels found": detection(groups),
    }


def filled(page: str, blocks: dict[str, str]) -> str:
    """A page with the text between its markers replaced."""
    for name, text in blocks.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        page = re.sub(pattern, lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page, flags=re.DOTALL)  # type: ignore[misc]
    return page


def in_short(groups: list[Group]) -> str:
    """Test scores of a few runs: a row a setting, averaged over its data sets, and a row for all with errors."""
    rows = []
    for student in STUDENTS:
        known = [group for group in groups if group.student == student]
        lines = {name: [group for group in known if group.setting == name] for name in SETTINGS}
        titled = {f"{SETTINGS[name]} (`{name}`)": line for name, line in lines.items() if line}
        if len(titled) > 2:
            titled["**all with errors**"] = [group for group in known if group.setting not in WITHOUT_ERRORS]
        rows += [_short_row(title, line) for title, line in titled.items()]
    head = ["setting", "student", "data", "best control of each on dev", *(f"`{run}`" for run in SHORT[:-1])]
    return table([*head, f"`{SHORT[-1]}` known"], rows)


def _short_row(title: str, groups: list[Group]) -> list[str]:
    data = ", ".join(name for name in DATA if any(group.data == name for group in groups))
    best = [group.best_control() or "" for group in groups]
    runs = [best, *([run] * len(groups) for run in SHORT)]
    return [title, STUDENTS[groups[0].student], data, *(_average(groups, chosen) for chosen in runs)]


def _average(groups: list[Group], runs: list[str]) -> str:
    """Mean over the groups of one run's test score in each, for the seeds that all have; empty where one has none."""
    scores = [
        {seed: 100 * cell["test"][group.metric] for seed, cell in group.cells.get(run, {}).items()}
        for group, run in zip(groups, runs, strict=True)
    ]
    shared = sorted(set.intersection(*(set(one) for one in scores)))
    return spread([float(np.mean([one[seed] for one in scores])) for seed in shared]) if shared else ""


def summary(groups: list[Group]) -> str:
    """What learned weights gain over the best control of each setting, and on average where there are errors."""
    head = [
        "data, setting",
        "student",
        "seeds",
        "best control on dev",
        "its test score",
        "ours, best on dev",
        *(f"`{run}`" for run in OURS),
    ]
    compared = [(g, best) for g in groups if (best := g.best_control()) and any(run in g.cells for run in OURS)]
    rows = [_summary_row(group, best) for group, best in compared]
    for student in STUDENTS:
        faulty = [(g, best) for g, best in compared if g.student == student and g.setting not in WITHOUT_ERRORS]
        voted = [(group, best) for group, best in faulty if group.setting == "rules"]
        taught = [(group, best) for group, best in faulty if group.setting != "rules"]
        either = [group for group, _ in compared if group.student == student and group.setting != "rules"]
        beside = [(group, best) for group, best in taught if BESIDE in group.cells]
        means = {"errors": taught, "errors and a clean teacher": beside, "rules": voted}
        for what, chosen in means.items():
            if len(chosen) > 1 and (what == "errors" or chosen != taught):
                rows.append(_mean_row(f"**mean of the {len(chosen)} with {what}**", student, chosen))
        if len(either) > 2 and (one := best_of_all(either)):
            rows.append(_mean_row(f"**mean of all {len(either)}, over {one}**", student, [(g, one) for g in either]))
    return table(head, rows)


def best_of_all(groups: list[Group]) -> str | None:
    """The control that has the best dev score on the mean of several settings; `None` if none has them all."""
    dev = [group.dev_scores(CONTROLS) for group in groups]
    shared = set.intersection(*(set(one) for one in dev))
    return max(sorted(shared), key=lambda run: float(np.mean([one[run] for one in dev])), default=None)


def own_runs(group: Group) -> list[str]:
    """That of ours which dev chooses, as it chooses among the controls, and those that are shown."""
    return [group.best(["ours"]) or "", *OURS]


def _summary_row(group: Group, best: str) -> list[str]:
    gains = [_signed(group.gains(run, best)) for run in own_runs(group)]
    seeds = str(len(group.cells[best]))
    return [group.title, STUDENTS[group.student], seeds, best, spread(group.tests(best)), *gains]


def _mean_row(title: str, student: str, faulty: list[tuple[Group, str]]) -> list[str]:
    """Over several settings; empty for a run that lacks one of them."""
    means = []
    for runs in zip(*(own_runs(group) for group, _ in faulty), strict=True):
        gains = [group.gains(run, best) for (group, best), run in zip(faulty, runs, strict=True)]
        seeds = set.intersection(*(set(one) for one in gains))
        means.append(_signed({seed: float(np.mean([one[seed] for one in gains])) for seed in seeds}))
    return [title, STUDENTS[student], "", "", "", *means]


def _signed(gains: dict[int, float]) -> str:
    """Mean over the seeds with its interval."""
    if not gains:
        return ""
    values = list(gains.values())
    width = half_width(values)
    return f"{np.mean(values):+.1f}" + ("" if width is None else f" ± {width:.1f}")


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
    """Some of the runs, or all; ranks are among all."""
    kinds = {run: kind for group in groups for run, kind in group.kinds.items()}
    runs = sorted(kinds, key=lambda run: KINDS.index(kinds[run]))
    ranks = mean_ranks(groups, runs)
    rows = []
    for run in [run for run in runs if run in (shown or runs)]:
        scores = [spread(values) if (values := group.tests(run)) else "" for group in groups]
        rank = f"{ranks[run]:.1f}" if run in ranks else ""
        rows.append([run, kinds[run], *scores, rank])
    return table(["run", "kind", *(group.title for group in groups), "mean rank"], rows)


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


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
