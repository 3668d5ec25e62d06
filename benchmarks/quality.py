"""Does learned mixing help, against tuned controls? A matrix of data sets, settings, runs and seeds, a cell at a time.

    python benchmarks/quality.py --data PATH/trec PATH/sst2 --student frozen --seeds 0 1 2
    python benchmarks/quality.py --data PATH/trec --student 2 --workers 16 --minutes 9 --results OUT
    python benchmarks/quality.py --merge OUT
    python benchmarks/tables.py

What is wrong with the data is in settings.py, the runs in contenders.py, the phases they are made of in phases.py, how
one is trained in cell.py. Every finished cell is a line of JSON in `benchmarks/results/quality/DATA-STUDENT.jsonl` and
is not run again. A run with several options is tuned first: each option once, at a seed that is not reported, and the
best on dev is what the other seeds take; a large student may take what was best for a smaller one. The test set is
looked at once a cell, and never while tuning.
"""

import argparse
import json
import logging
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from bodies import FrozenBody
from cell import TUNING_SEED, Cell, prepare, run_cell
from contenders import contenders
from groups import STUDENTS
from json_lines import Record, append, read
from settings import CLEAN_ROWS, FEW_A_CLASS, RULES, SETTINGS, SPOILT, Place
from teaching import clean_teacher_file, teacher_file


RESULTS = Path(__file__).parent / "results" / "quality"
NEEDS = {
    "label model": "snorkel",
    "confident learning": "cleanlab",
    "rows without suspects": "cleanlab",
    "regression over features": "cleanlab",
    "labels and regression over features": "cleanlab",
}


def main() -> None:
    """Run the cells that were asked for and are not there."""
    options = parse()
    if options.merge:
        merge(options.merge)
        return
    for run, module in NEEDS.items():
        if not find_spec(module):
            print(f"left out, as {module} is not installed: {run}")
    matrix = Matrix(options)
    matrix.go("teachers", prepare, matrix.untaught())
    matrix.go("options", run_cell, matrix.tuning())
    matrix.go("cells", run_cell, matrix.cells())


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="folders of data sets")
    parser.add_argument("--student", choices=STUDENTS, default=FrozenBody.kind)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, help="by default all that the data have")
    parser.add_argument("--runs", nargs="+", help="by default all of a setting")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tuned-student", choices=STUDENTS, help="whose options are taken; by default its own")
    parser.add_argument("--model", type=Path, help="folder of MiniLM; that of the demo package by default")
    parser.add_argument("--workers", type=int, default=1, help="processes that run cells")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no new cell is begun")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder that new cells are written to")
    parser.add_argument("--merge", type=Path, help="take over the cells of a folder written elsewhere, and stop")
    return parser.parse_args()


class Matrix:
    """The cells of one call, and what is known of them.

    Args:
        options: the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.deadline = time.monotonic() + 60 * options.minutes
        self.records = {key_of(record): record for record in read_records(RESULTS, options.results)}

    def places(self) -> list[Place]:
        """Every data set, setting and seed, that where options are tried first."""
        options = self.options
        places = [
            Place(data, options.student, setting, seed, options.model)
            for data in options.data
            for setting in options.settings or known_settings(data)
            for seed in dict.fromkeys([TUNING_SEED, *options.seeds])
        ]
        return [self.tuning_place(place) if place.seed == TUNING_SEED else place for place in places]

    def tuning_place(self, place: Place) -> Place:
        """Where the options of a place are tried."""
        return replace(place, seed=TUNING_SEED, student=self.options.tuned_student or place.student)

    def untaught(self) -> list[Place]:
        """One place for every teacher that is not there yet."""
        places = self.places()
        files = {teacher_file(place): place for place in places}
        files |= {clean_teacher_file(place): place for place in places if place.setting != RULES}
        return list(dict.fromkeys(place for file, place in files.items() if not file.exists()))

    def tuning(self) -> Iterator[Cell]:
        """All options of runs that have several, at the tuning seed."""
        for place in self.places():
            for run in self.runs(place):
                choices = contenders(place.setting)[run].options
                if place.seed == TUNING_SEED and len(choices) > 1:
                    yield from (Cell(place, run, option) for option in choices)

    def cells(self) -> Iterator[Cell]:
        """Every run at every seed, with the option that did best on dev; not before all of them have been tried."""
        for place in self.places():
            for run in self.runs(place):
                option = self.chosen(place, run)
                if place.seed != TUNING_SEED and option is not None:
                    yield Cell(place, run, option)

    def runs(self, place: Place) -> list[str]:
        """The runs that were asked for and can be run here."""
        names = list(contenders(place.setting))
        wanted = [name for name in names if name in (self.options.runs or names)]
        return [name for name in wanted if name not in NEEDS or find_spec(NEEDS[name])]

    def chosen(self, place: Place, run: str) -> str | None:
        """The option of a run; `None` while they have not all been tried."""
        choices = list(contenders(place.setting)[run].options)
        if len(choices) == 1:
            return choices[0]
        tried = [self.records.get(Cell(self.tuning_place(place), run, option).key) for option in choices]
        if None in tried:
            return None
        return choices[max(range(len(choices)), key=lambda number: tried[number]["dev"])]  # type: ignore[index]

    def go(self, title: str, work: Callable[[Any], Record | None], asked: Iterable[Any]) -> None:
        """Do what is not done, in several processes, until the time is up."""
        todo = [one for one in asked if not (isinstance(one, Cell) and one.key in self.records)]
        print(f"{title}: {len(todo)}", flush=True)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            self.options.workers, context, initializer=quiet, initargs=(self.options.workers,)
        ) as pool:
            waiting, running = iter(todo), set[Future[Record | None]]()
            while True:
                while len(running) < self.options.workers and time.monotonic() < self.deadline:
                    one = next(waiting, None)
                    if one is None:
                        break
                    running.add(pool.submit(work, one))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    self.keep(future)

    def keep(self, future: Future[Record | None]) -> None:
        """Write a finished cell down; one that failed is reported, and is tried again by the next call."""
        try:
            record = future.result()
        except Exception:  # noqa: BLE001  # the other cells go on
            traceback.print_exc()
            return
        if record is None:
            return
        if self.options.tuned_student:
            record["command"] += f" --tuned-student {self.options.tuned_student}"
        self.records[key_of(record)] = record
        self.options.results.mkdir(parents=True, exist_ok=True)
        append(file_of(record, self.options.results), record)
        test = record.get("test", {}).get(record["metric"])
        shown = "" if test is None else f"test {test:.3f}"
        names = ("data", "setting", "run", "option", "seed")
        print(
            *(record[name] for name in names), f"dev {record['dev']:.3f}", shown, f"{record['seconds']} s", flush=True
        )


def quiet(workers: int) -> None:
    """What every process begins with."""
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    logging.getLogger("amal_hf").setLevel(logging.ERROR)
    if workers > 1:
        torch.set_num_threads(1)


def known_settings(data: Path) -> list[str]:
    """Rules where rules voted; planted errors where there are enough rows; `few` where ten a class are fewer."""
    classes = len(json.loads((data / "label.json").read_text()))
    voted = (data / "train.json").is_file()
    planted = [name for name in SPOILT if name != "few" or FEW_A_CLASS * classes < CLEAN_ROWS]
    small = data.name in ("youtube", "sms")
    return ([] if small else planted) + ([RULES] if voted else [])


def key_of(record: Record) -> tuple[str, str, str, str, str, int]:
    """As `Cell.key`."""
    return record["data"], record["student"], record["setting"], record["run"], record["option"], record["seed"]


def file_of(record: Record, folder: Path) -> Path:
    """Where a finished cell is kept."""
    return folder / f"{record['data']}-{record['student']}.jsonl"


def read_records(*folders: Path) -> Iterator[Record]:
    """All finished cells of some folders."""
    for file in sorted({file for folder in folders for file in folder.glob("*.jsonl")}):
        yield from read(file)


def merge(folder: Path) -> None:
    """Add cells that were run elsewhere to those that are here."""
    known = {key_of(record) for record in read_records(RESULTS)}
    new = [record for record in read_records(folder) if key_of(record) not in known]
    for record in new:
        append(file_of(record, RESULTS), record)
    print(f"{len(new)} new cells")


if __name__ == "__main__":
    main()
