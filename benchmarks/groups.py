"""Cells of the quality benchmark that are compared with one another, and what dev chooses among them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from json_lines import Record, read


RESULTS = Path(__file__).parent / "results" / "quality"

KINDS = ("control", "rule of thumb", "learned", "ours", "oracle")
CONTROLS = KINDS[:2]
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
WRONG_LABELS = ("flipped20", "flipped40", "background40", "instance40")
"""With clean rows enough for a teacher; `few` has too few."""
ERRORS = (*WRONG_LABELS, "few", "teacher30")
STUDENTS = {
    "frozen": "head over frozen MiniLM",
    "2": "2-layer MiniLM",
    "2@4e-4": "2-layer MiniLM, twice the learning rate",
    "3": "3-layer MiniLM",
    "6": "MiniLM",
}
METRICS = {"accuracy": "", "macro_f1": ", macro F1", "f1": ", F1"}


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

    def scores(self, run: str) -> dict[int, float]:
        """Test scores in %, by seed."""
        return {seed: 100 * cell["test"][self.metric] for seed, cell in self.cells.get(run, {}).items()}

    def tests(self, run: str) -> list[float]:
        """The same without the seeds."""
        return list(self.scores(run).values())

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

    def best_of(self, runs: Sequence[str]) -> str | None:
        """The same among some runs."""
        dev = self.dev_scores(KINDS)
        return max((run for run in runs if run in dev), key=lambda run: dev[run], default=None)

    def gains(self, run: str, other: str) -> dict[int, float]:
        """By how many points a run is better on the test set, for each of the seeds that both have."""
        ours, theirs = self.scores(run), self.scores(other)
        return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def read_cells(folder: Path) -> list[Record]:
    """The reported cells: those that have seen the test set."""
    return [record for file in sorted(folder.glob("*.jsonl")) for record in read(file) if "test" in record]


def groups_of(records: Iterable[Record]) -> list[Group]:
    """Cells that are compared with one another; places without any control yet are left out."""
    found: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        found[record["data"], record["student"], record["setting"]].append(record)
    groups = [group for group in map(Group, found.values()) if group.best(CONTROLS)]
    return sorted(groups, key=lambda group: group.order)


def best_of_all(groups: Sequence[Group], kinds: Sequence[str] = CONTROLS) -> str | None:
    """The run that has the best dev score on the mean of several settings; `None` if none has them all."""
    dev = [group.dev_scores(kinds) for group in groups]
    shared = set.intersection(*(set(one) for one in dev))
    return max(sorted(shared), key=lambda run: float(np.mean([one[run] for one in dev])), default=None)


def mean_by_seed(several: Sequence[dict[int, float]]) -> dict[int, float]:
    """Over settings, of the seeds that all have; empty for no settings."""
    shared = sorted(set.intersection(*(set(one) for one in several))) if several else []
    return {seed: float(np.mean([one[seed] for one in several])) for seed in shared}
