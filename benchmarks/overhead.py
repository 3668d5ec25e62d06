"""What learned weights cost: time and peak memory of a training step, as ratios to a fixed mixture of the same losses.

    python benchmarks/overhead.py                    # the whole table; about ten minutes on two cores
    python benchmarks/overhead.py --lengths 32 --rounds 1

Every measurement is a process of its own that trains a 3-layer BERT (hidden size 384, the vocabulary of MiniLM) with
`AMALTrainer`, batch 32, with logits of the teacher at hand. Rounds run all variants in turn; a ratio compares within a
round, so that a machine that gets slower does not matter. Nothing else may run meanwhile.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback, set_seed

from amal_hf import (
    AMALArguments,
    AMALTrainer,
    CrossEntropy,
    Distillation,
    ExampleTable,
    LastLayer,
    Method,
    amal,
    amal_as_published,
)


RESULTS = Path(__file__).parent / "results" / "overhead.json"
WARM_UP, EPOCHS, STEPS_PER_EPOCH = 4, 3, 12

VARIANTS: dict[str, tuple[Callable[[], Method | None], int | None]] = {
    "fixed mixture": (lambda: None, None),
    "amal()": (amal, None),
    "amal(), every step": (amal, 1),
    "amal(ExampleTable())": (lambda: amal(ExampleTable()), None),
    "amal(tangent=LastLayer())": (lambda: amal(tangent=LastLayer()), None),
    "amal_as_published()": (amal_as_published, None),
}


def main() -> None:
    """Measure all variants, or in a process of its own one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=list(VARIANTS))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.lengths[0])))
        return
    cells = [compare(length, options.rounds) for length in options.lengths]
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "machine": machine}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**versions, "cells": cells}, indent=1) + "\n")


def compare(length: int, rounds: int) -> dict[str, object]:
    """Ratios at one length: the median over rounds."""
    runs = [{name: spawn(name, length) for name in VARIANTS} for _ in range(rounds)]
    plain = np.median([run["fixed mixture"][0] for run in runs])
    print(f"\nlength {length}: a step with the fixed mixture takes {plain:.3f} s")
    print("| variant | time | peak memory |\n| --- | --- | --- |")
    ratios = {}
    for name in VARIANTS:
        time_ratio, memory_ratio = (
            float(np.median([run[name][part] / run["fixed mixture"][part] for run in runs])) for part in (0, 1)
        )
        ratios[name] = {"time": time_ratio, "memory": memory_ratio}
        print(f"| {name} | {time_ratio:.2f} | {memory_ratio:.2f} |", flush=True)
    return {"length": length, "ratios": ratios, "seconds_and_bytes": runs}


def spawn(name: str, length: int) -> tuple[float, int]:
    """Seconds a step and peak bytes of one variant, in a fresh process."""
    command = [sys.executable, __file__, "--one", name, "--lengths", str(length)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, peak = json.loads(output.splitlines()[-1])
    return seconds, peak


class Clock(TrainerCallback):
    """When each step began."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        """Take the time."""
        self.ticks.append(time.perf_counter())


def measure(name: str, length: int) -> tuple[float, int]:
    """Train a few epochs: typical seconds of a step, meta steps spread over all, and the process's peak bytes."""
    set_seed(0)
    make, interval = VARIANTS[name]
    method = make()
    phase_epochs = method.phase_epochs if method else 0
    rows = random_rows(32 * STEPS_PER_EPOCH, length)
    logits = torch.randn(len(rows), 6)
    clock = Clock()
    trainer = AMALTrainer(
        model=student(),
        args=AMALArguments(
            output_dir=".cache/overhead",
            per_device_train_batch_size=32,
            num_train_epochs=EPOCHS,
            meta_interval=interval,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows,
        meta_dataset=random_rows(300, length),
        losses=[CrossEntropy(), Distillation(lambda batch: logits[batch["example_id"]])],
        # A phase is measured after one epoch, and spread over as many as lie between two.
        method=replace(method, phase_epochs=1) if method and phase_epochs else method,
        callbacks=[clock],
    )
    trainer.train()
    every = STEPS_PER_EPOCH if phase_epochs else interval or getattr(trainer._learner, "interval", 1)
    seconds = typical_step(np.diff(clock.ticks), every, max(phase_epochs, 1))
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def typical_step(seconds: np.ndarray, every: int, periods: int) -> float:
    """Mean of the median plain step and the median step with learning in it, in their shares.

    Every `every`-th step learns; in a whole run only every `periods`-th of those does. Medians leave out disturbed
    steps.
    """
    places = np.arange(len(seconds))
    measured = places >= WARM_UP
    learning = places % every == 0
    with_learning = float(np.median(seconds[measured & learning]))
    if every == 1:
        return with_learning
    plain = float(np.median(seconds[measured & ~learning]))
    return plain + (with_learning - plain) / (every * periods)


def student() -> BertForSequenceClassification:
    """Three layers of MiniLM's size."""
    config = BertConfig(hidden_size=384, num_hidden_layers=3, num_attention_heads=12, intermediate_size=1536)
    config.num_labels = 6
    return BertForSequenceClassification(config)


def random_rows(count: int, length: int) -> Dataset:
    """Token ids of one length."""
    generator = np.random.default_rng(count)
    ids = generator.integers(1000, 20000, (count, length))
    columns = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": generator.integers(0, 6, count)}
    return Dataset.from_dict({name: values.tolist() for name, values in columns.items()})


if __name__ == "__main__":
    main()
