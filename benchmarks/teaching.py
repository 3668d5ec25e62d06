"""The teachers of the quality benchmark: trained once on the labels as they stand, kept as logits in a file.

With rules there are labels on clean rows alone; a teacher is trained on these, and says what it thinks of all others.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bodies import CACHE, FrozenBody, LayeredBody
from datasets import concatenate_datasets
from numpy.typing import NDArray
from settings import TAUGHT_AS, Bench, Place, new_bench
from torch import Tensor
from training import Looks, read, train
from transformers import set_seed


CORRUPTED = 0.3
FEWEST_STEPS = 150
"""Of a teacher, however few rows it is trained on."""


def teacher_logits(bench: Bench) -> Tensor:
    """Logits `(N + M, C)` on the rows of train and then meta; in the setting `teacher30` some are another row's."""
    logits = np.load(make_teacher(bench))
    if bench.place.setting == "teacher30":
        sound = ~corrupted_rows(bench)
        rows = np.flatnonzero(~sound)
        logits[rows] = logits[np.roll(rows, 1)]
    return torch.from_numpy(logits)


def corrupted_rows(bench: Bench) -> NDArray[np.bool_]:
    """`(N + M,)`: on which rows the teacher of `teacher30` is another row's; never on clean ones."""
    count = len(bench.splits["train"])
    wrong = np.zeros(count + len(bench.splits["meta"]), dtype=bool)
    wrong[np.random.default_rng(bench.place.seed).permutation(count)[: round(CORRUPTED * count)]] = True
    return wrong


def teacher_file(place: Place) -> Path:
    """Where the logits of a place's teacher are kept; settings may share one."""
    kind = FrozenBody.kind if place.student == FrozenBody.kind else LayeredBody.kind
    return CACHE / "teachers" / f"{place.data.name}-{kind}-{_taught_in(place)}-{place.seed}.npy"


def make_teacher(bench: Bench) -> Path:
    """The file of a teacher's logits, made if it is not there."""
    place, file = bench.place, teacher_file(bench.place)
    if not file.exists():
        setting = _taught_in(place)
        own = bench if setting == place.setting else new_bench(replace(place, setting=setting))
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{np.random.default_rng().integers(10**9)}.npy")
        np.save(unfinished, _taught(own))
        unfinished.rename(file)  # whole or not at all, whoever else is at it
    return file


def _taught_in(place: Place) -> str:
    return TAUGHT_AS.get(place.setting, place.setting)


def _taught(bench: Bench) -> NDArray[np.float32]:
    set_seed(bench.place.seed)
    body = bench.body
    labelled = bench.clean if bench.rules else ("train",)
    rows = concatenate_datasets([read(bench, bench.splits[name]) for name in labelled])
    steps = max(body.teacher_epochs * -(-len(rows) // body.batch_size), FEWEST_STEPS)
    teacher = body.teacher(bench.classes)
    trainer = train(bench, teacher, rows, steps, Looks(bench.metric), learning_rate=body.teacher_rate)
    parts = [trainer.predict(read(bench, bench.splits[name])).predictions for name in ("train", "meta")]
    return np.concatenate(parts).astype(np.float32)
