"""One cell of the quality benchmark: train one student as one option of one run says, and measure it."""

import gc
import platform
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import transformers
from contenders import contenders
from datasets import concatenate_datasets
from phases import CLEAN, Phase, Phases, voted
from settings import RULES, Bench, Place, new_bench
from suspects import available, confidence
from teaching import corrupted_rows, make_clean_teacher, make_teacher
from training import Looks, answers, read, scores, train
from transformers import set_seed
from transformers.trainer_utils import EvalPrediction

from amal_hf import AMALTrainer
from amal_hf.metrics import auc
from amal_hf.rule_summary import rule_order, summarise_rules
from amal_hf.run_record import record_of
from amal_hf.shapes import TRUE_LABEL


TUNING_SEED = 100
"""Where dev chooses among options; not among the seeds that are reported."""


@dataclass(frozen=True)
class Cell:
    """What is trained, where."""

    place: Place
    run: str
    option: str

    @property
    def key(self) -> tuple[str, str, str, str, str, int]:
        """What makes it another cell."""
        place = self.place
        return place.data.name, place.student, place.setting, self.run, self.option, place.seed


@lru_cache(maxsize=1)
def bench_of(place: Place) -> Bench:
    """The bench of a place, kept for the next cell there."""
    bench = new_bench(place)
    gc.freeze()  # every run collects garbage once, and would look through all rows
    return bench


def prepare(place: Place) -> None:
    """Make the teachers of a place, so that cells find them."""
    make_teacher(bench_of(place))
    if place.setting != RULES:
        make_clean_teacher(bench_of(place))


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and measure. At the tuning seed the test set is not touched."""
    bench = bench_of(cell.place)
    started, busy = time.perf_counter(), time.process_time()
    trainer, looks, weights = run_phases(bench, contenders(cell.place.setting)[cell.run].options[cell.option])
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
    data, student, setting, run, option, seed = cell.key
    found = {
        "data": data,
        "student": student,
        "setting": setting,
        "run": run,
        "kind": contenders(setting)[run].kind,
        "option": option,
        "seed": seed,
        "metric": bench.metric,
        "dev": looks.best,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
    }
    if seed != TUNING_SEED:
        found |= {"test": test_scores(bench, trainer), "auc": detection(bench, cell, trainer, weights)}
    return found | circumstances(cell)


def run_phases(bench: Bench, phases: Phases) -> tuple[AMALTrainer, Looks, AMALTrainer | None]:
    """The trainer of the last phase, what was seen on dev, and the trainer of the last phase that weighed examples."""
    set_seed(bench.place.seed)
    student, looks = bench.body.student(bench.classes), Looks(bench.metric)
    weighed: AMALTrainer | None = None
    for phase, steps in zip(phases, steps_of(bench, phases), strict=True):
        seen = voted(bench) if phase.voted else bench
        trainer = train(
            seen,
            student,
            rows_of(seen, phase),
            steps,
            looks,
            learning_rate=phase.rate * bench.body.learning_rate,
            losses=phase.losses(seen),
            shares=None if phase.shares is None else list(phase.shares),
            method=None if phase.method is None else phase.method(seen),
            smoothing=phase.smoothing,
            arguments=phase.arguments,
        )
        weighed = weighed if phase.method is None else trainer
    return trainer, looks, weighed


def rows_of(bench: Bench, phase: Phase) -> Any:
    """The rows of a phase; clean ones have labels alone."""
    if phase.rows == CLEAN or "train" not in phase.rows:
        names = bench.clean if phase.rows == CLEAN else phase.rows
        return concatenate_datasets([read(bench, bench.splits[name]) for name in names])
    rows = bench.rows(phase.rows)
    if phase.kept is None:
        return rows
    kept = phase.kept(bench)
    return rows.select(np.flatnonzero(np.pad(kept, (0, len(rows) - len(kept)), constant_values=True)))


def steps_of(bench: Bench, phases: Phases) -> list[int]:
    """Steps of each phase, which add up to the budget; those that say how long they are get at most a third of it."""
    size = bench.body.batch_size
    budget = round(bench.body.epochs * -(-len(bench.splits["train"]) // size))
    asked = [
        None if p.epochs is None else min(-(-round(p.epochs * len(rows_of(bench, p))) // size), budget // 3)
        for p in phases
    ]
    open_phases = asked.count(None)
    left = budget - sum(steps or 0 for steps in asked)
    return [left // open_phases if steps is None else steps for steps in asked]


def test_scores(bench: Bench, trainer: AMALTrainer) -> dict[str, float]:
    """All scores on the test set."""
    rows = read(bench, bench.splits["test"])
    found = scores(EvalPrediction(predictions=answers(trainer, rows), label_ids=np.array(rows["label"])))
    return {name: round(value, 5) for name, value in found.items()}


def detection(bench: Bench, cell: Cell, trainer: AMALTrainer, weighed: AMALTrainer | None) -> dict[str, float]:
    """How well weights tell what is right: of labels, of the teacher, of votes; beside other ways to tell.

    All are AUCs but "rule order", Spearman's correlation of the rules' mean weights with their precision.
    """
    found: dict[str, float] = {}
    if weighed is not None:
        found |= _of_weights(bench, weighed)
    if bench.right is not None and cell.run == "labels only":
        found["loss"] = auc(-label_losses(bench, trainer), bench.right)
    if bench.right is not None and cell.run == "confident learning" and available():
        found["confident learning"] = auc(confidence(bench), bench.right)
    return {name: round(value, 4) for name, value in found.items()}


def label_losses(bench: Bench, trainer: AMALTrainer) -> np.ndarray:
    """`(N,)`: the loss of each training label under the student as it is."""
    rows = read(bench, bench.splits["train"])
    log_p = torch.from_numpy(answers(trainer, rows)).float().log_softmax(-1)
    return -log_p[np.arange(len(log_p)), rows["label"][:]].numpy()


def _of_weights(bench: Bench, weighed: AMALTrainer) -> dict[str, float]:
    table = weighed.example_weights().with_format("numpy")
    train = bench.splits["train"]
    found = {}
    if bench.right is not None and "labels" in table.column_names:
        found["label weight"] = auc(np.nan_to_num(table["labels"][: len(train)]), bench.right)
    if bench.place.setting == "teacher30" and "teacher" in table.column_names:
        sound = ~corrupted_rows(bench)[: len(train)]
        found["teacher weight"] = auc(np.nan_to_num(table["teacher"][: len(train)]), sound)
    if (rules := record_of(weighed).rules) is not None:
        votes, weights, shares = (part[: len(train)] for part in (rules.votes, rules.weights, rules.shares))
        truth, fired = np.array(train[TRUE_LABEL][:]), np.isfinite(weights)
        found["vote weight"] = auc(weights[fired], (votes == truth[:, None])[fired])
        order = rule_order(summarise_rules(votes, rules.names, truth, weights, shares))
        if np.isfinite(order):
            found["rule order"] = order
    return found


def circumstances(cell: Cell) -> dict[str, Any]:
    """What is needed to do it again."""
    place = cell.place
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    seed = "" if place.seed == TUNING_SEED else f" --seeds {place.seed}"
    return {
        "command": f"python benchmarks/quality.py --data ROOT/{place.data.name} --student {place.student} "
        f'--settings {place.setting} --runs "{cell.run}"{seed}',
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hardware": f"{name}, {torch.get_num_threads()} threads",
    }
