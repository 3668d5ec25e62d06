"""The teachers of the quality benchmark: trained once, kept as logits in a file.

Each setting has a teacher of its labels as they stand, and a clean one, of the clean rows alone. With rules there are
labels on clean rows alone, and the two are one. How sure a clean teacher may be is read from dev. Regressions over
frozen embeddings are teachers of seconds.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bodies import CACHE, FrozenBody, LayeredBody
from datasets import concatenate_datasets
from kept_arrays import kept_array
from numpy.typing import NDArray
from settings import CLEAN_ROWS, OTHER_ROWS, TAUGHT_AS, Bench, Place, new_bench, over_features
from torch import Tensor
from training import Looks, answers, read, train
from transformers import set_seed

from amal_hf import calibrated_temperature, out_of_fold_logits


CORRUPTED = 0.3
FEWEST_STEPS = 150
"""Of a teacher, however few rows it is trained on."""


def clean_teacher_logits(bench: Bench) -> Tensor:
    """Logits `(N + M, C)` of the clean teacher."""
    return torch.from_numpy(np.load(make_clean_teacher(bench))[: _rows_to_train_on(bench)])


def clean_teacher_calibration(bench: Bench) -> float:
    """The temperature at which the clean teacher's probabilities are right, by dev."""
    logits = np.load(make_clean_teacher(bench))[_rows_to_train_on(bench) :]
    return calibrated_temperature(logits, bench.splits["validation"]["label"][:])


def teacher_logits(bench: Bench) -> Tensor:
    """Logits `(N + M, C)` on the rows of train and then meta; in the setting `teacher30` some are another row's."""
    logits = np.load(make_teacher(bench))[: _rows_to_train_on(bench)]
    if bench.place.setting == "teacher30":
        sound = ~corrupted_rows(bench)
        rows = np.flatnonzero(~sound)
        logits[rows] = logits[np.roll(rows, 1)]
    return torch.from_numpy(logits)


def regression_logits(bench: Bench, name: str, kept: NDArray[np.bool_]) -> Tensor:
    """Logits `(N + M, C)` of regressions over frozen embeddings, of rows that they were not fitted to.

    They are fitted to some training rows, `(N,)`, and the clean ones, and as sure as they may be by these. Kept in a
    file of this name.
    """
    place = bench.place
    file = CACHE / name / f"{place.data.name}-{place.setting}-{place.seed}.npy"
    return torch.from_numpy(kept_array(file, lambda: _by_regression(bench, kept)))


def _by_regression(bench: Bench, kept: NDArray[np.bool_]) -> NDArray[np.float32]:
    own, table = over_features(bench.place)
    rows = concatenate_datasets([read(own, own.splits[name]) for name in ("train", "meta")])
    clean = torch.tensor(own.splits["meta"]["label"][:])
    labels = torch.tensor(rows["label"][:])
    labels[: len(kept)][~torch.from_numpy(kept)] = -1
    logits = out_of_fold_logits(table[np.array(rows["row"][:])], labels, classes=bench.classes)
    return (logits / calibrated_temperature(logits[len(kept) :], clean)).numpy()


def corrupted_rows(bench: Bench) -> NDArray[np.bool_]:
    """`(N + M,)`: on which rows the teacher of `teacher30` is another row's; never on clean ones."""
    count = len(bench.splits["train"])
    wrong = np.zeros(count + len(bench.splits["meta"]), dtype=bool)
    wrong[np.random.default_rng(bench.place.seed).permutation(count)[: round(CORRUPTED * count)]] = True
    return wrong


def teacher_file(place: Place) -> Path:
    """Where the logits of a place's teacher are kept; settings may share one."""
    return _file(place, TAUGHT_AS.get(place.setting, place.setting))


def clean_teacher_file(place: Place) -> Path:
    """Where those of its clean teacher are; most settings have the same rows."""
    return _file(place, f"{place.setting if place.setting in OTHER_ROWS else 'all'}-clean-rows")


def make_teacher(bench: Bench) -> Path:
    """The file of a teacher's logits, made if it is not there."""
    place, file = bench.place, teacher_file(bench.place)
    if not file.exists():
        setting = TAUGHT_AS.get(place.setting, place.setting)
        own = bench if setting == place.setting else new_bench(replace(place, setting=setting))
        _make(own, file, own.clean if own.rules else ("train",))
    return file


def make_clean_teacher(bench: Bench) -> Path:
    """The same for a teacher of the clean rows."""
    file = clean_teacher_file(bench.place)
    if not file.exists():
        _make(bench, file, bench.clean, max(bench.body.clean_steps_a_class * bench.classes, FEWEST_STEPS))
    return file


def _rows_to_train_on(bench: Bench) -> int:
    """N + M; logits of dev follow."""
    return len(bench.splits["train"]) + len(bench.splits["meta"])


def _file(place: Place, taught_by: str) -> Path:
    kind = FrozenBody.kind if place.student == FrozenBody.kind else LayeredBody.kind
    size = "" if place.clean_rows == CLEAN_ROWS else f"-{place.clean_rows}"
    return CACHE / "teachers" / f"{place.data.name}-{kind}-{taught_by}-{place.seed}{size}.npy"


def _make(bench: Bench, file: Path, splits: tuple[str, ...], fewest: int = FEWEST_STEPS) -> None:
    kept_array(file, lambda: _taught(bench, splits, fewest))


def _taught(bench: Bench, splits: tuple[str, ...], fewest: int) -> NDArray[np.float32]:
    set_seed(bench.place.seed)
    body = bench.body
    rows = concatenate_datasets([read(bench, bench.splits[name]) for name in splits])
    steps = max(body.teacher_epochs * -(-len(rows) // body.batch_size), fewest)
    teacher = body.teacher(bench.classes)
    trainer = train(bench, teacher, rows, steps, Looks(bench.metric), learning_rate=body.teacher_rate)
    asked = ("train", "meta", "validation")
    parts = [answers(trainer, read(bench, bench.splits[name])) for name in asked]
    return np.concatenate(parts).astype(np.float32)
