"""What learned weights cost: time and peak memory of a training step, as ratios to a fixed mixture of the same losses.

    python benchmarks/overhead.py                    # the whole table; about a quarter of an hour on two cores
    python benchmarks/overhead.py --lengths 32 --rounds 3
    python benchmarks/tables.py                      # writes the table into the README

Every variant is a process of its own that trains a 3-layer BERT (hidden size 384, the vocabulary of MiniLM) with
`AMALTrainer`, batch 32, with logits of the teacher at hand. Epochs with the fixed mixture and with the method take
turns within the run, so that a machine that gets slower slows both down; of several rounds the median counts. Where
slopes ask for eager attention, the fixed mixture beside them has it too.
Nothing else may run meanwhile.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import markdown_tables
import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback, set_seed

from amal_hf import (
    AMALArguments,
    AMALTrainer,
    CommentaryNetwork,
    CrossEntropy,
    Distillation,
    DoubleBackward,
    ExampleTable,
    FixedWeights,
    ForwardMode,
    LabelBlend,
    LastLayer,
    Method,
    StateNetwork,
    Tangent,
    TokenMask,
    amal,
    amal_as_published,
    bayes_mixture,
    commentaries,
    deep_interactions,
    learning_to_reweight,
    meta_weight_net,
    teacher_belief,
)
from amal_hf.policies.policy import Sizes


RESULTS = Path(__file__).parent / "results" / "overhead.json"
STEPS_PER_EPOCH, PAIRS = 16, 3
ROWS = 32 * STEPS_PER_EPOCH


@dataclass(frozen=True)
class Load:
    """What is trained: `losses` are the label's and those of one teacher less."""

    length: int = 32
    layers: int = 3
    losses: int = 2
    meta_batch: int = AMALArguments.meta_batch_size
    interval: int | None = None
    attention: str = "sdpa"
    has_seen_labels: bool = True


@dataclass(frozen=True)
class Variant:
    """What is measured.

    Attributes:
        make: the method; `None` for the fixed mixture.
        what: it does, for the table.
        interval: `meta_interval`; by default the method's own.
        attention: of the student.
        has_seen_labels: as of `Distillation`.
    """

    make: Callable[[], Method | None]
    what: str = ""
    interval: int | None = None
    attention: str = "sdpa"
    has_seen_labels: bool = True


VARIANTS = {
    "fixed mixture": Variant(lambda: None),
    "amal()": Variant(amal, "one meta gradient for 2 of 8 steps"),
    "amal(), every step": Variant(amal, "`meta_interval=1`", interval=1),
    "amal(ExampleTable())": Variant(lambda: amal(ExampleTable()), "a meta step at every step"),
    "bayes_mixture()": Variant(bayes_mixture, "shares in closed form", has_seen_labels=False),
    "teacher_belief()": Variant(teacher_belief, "the teacher asked about every label"),
    "amal(), clean teacher": Variant(amal, "as `amal()`, from such shares", has_seen_labels=False),
    "amal_as_published()": Variant(amal_as_published, "a phase every 10 epochs"),
    "learning_to_reweight()": Variant(learning_to_reweight, "a meta step at every step"),
    "meta_weight_net()": Variant(meta_weight_net, "a meta step at every step"),
    "deep_interactions()": Variant(deep_interactions, "back through all steps, 5 at a time"),
    "deep_interactions(window=16)": Variant(
        lambda: deep_interactions(StateNetwork((), likelihoods=True, memory=True), window=16),
        "every step judged, a meta gradient at every 16th",
    ),
    "commentaries(CommentaryNetwork())": Variant(
        lambda: commentaries(CommentaryNetwork(torch.randn(ROWS, 384), 6)),
        "every step, two terms of the Neumann series",
    ),
    "commentaries(LabelBlend())": Variant(lambda: commentaries(LabelBlend(6)), "the same"),
    "commentaries(TokenMask())": Variant(lambda: commentaries(TokenMask(torch.randn(30522, 384), [0])), "the same"),
}


SLOPED: dict[str, Callable[..., Method]] = {
    "amal()": amal,
    "amal(ExampleTable())": partial(amal, ExampleTable()),
    "learning_to_reweight()": learning_to_reweight,
    "meta_weight_net()": meta_weight_net,
}
"""Methods whose slopes may be measured in any way; the others say how."""
TANGENTS: dict[str, Callable[[], Tangent]] = {
    "LastLayer()": LastLayer,
    "ForwardMode()": ForwardMode,
    "DoubleBackward()": DoubleBackward,
}
"""Ways to measure slopes beside `FiniteDifference()`, the default."""


def with_tangent(method: str, tangent: str) -> str:
    """A method's call with another way to measure slopes."""
    separator = "" if method.endswith("()") else ", "
    return f"{method[:-1]}{separator}tangent={tangent})"


VARIANTS |= {
    with_tangent(method, tangent): Variant(
        partial(make, tangent=kind()), attention="sdpa" if kind is LastLayer else "eager"
    )
    for method, make in SLOPED.items()
    for tangent, kind in TANGENTS.items()
}


def main() -> None:
    """Measure all variants, or in a process of its own one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--one", choices=list(VARIANTS))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.lengths[0])))
        return
    names = list(dict.fromkeys(["fixed mixture", *options.variants]))
    cells = [compare(length, options.rounds, names) for length in options.lengths]
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "machine": machine}
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else []
    for cell in cells:
        # What was measured before stays, unless it was measured again.
        old: dict[str, Any] = next((o for o in kept if o["length"] == cell["length"]), {"variants": {}})
        cell["variants"] = {**old["variants"], **cell["variants"]}
        cell["rounds"] = [*old.get("rounds", []), *cell["rounds"]]
    kept = [cell for cell in kept if cell["length"] not in options.lengths]
    RESULTS.write_text(json.dumps({**versions, "cells": kept + cells}, indent=1) + "\n")


def compare(length: int, rounds: int, names: list[str]) -> dict[str, Any]:
    """Some variants at one length: medians over the rounds."""
    turns = [{name: spawn(__file__, "--one", name, "--lengths", str(length)) for name in names} for _ in range(rounds)]
    runs = {
        name: {part: float(np.median([turn[name][part] for turn in turns])) for part in turns[0][name]}
        for name in names
    }
    print(f"\nlength {length}: a step with the fixed mixture takes {runs['fixed mixture']['plain']:.3f} s")
    print("| variant | time | peak memory |\n| --- | --- | --- |")
    for run in runs.values():
        run["memory"] = run["bytes"] / runs["fixed mixture"]["bytes"]
    for name, run in runs.items():
        print(f"| {name} | {run['time']:.2f} | {run['memory']:.2f} |", flush=True)
    return {"length": length, "variants": runs, "rounds": turns}


def table() -> str:
    """What each variant does and costs; peak memory is that at the first length."""
    cells = sorted(json.loads(RESULTS.read_text())["cells"], key=lambda cell: cell["length"])
    heads = ["variant", "what", *(f"time, length {cell['length']}" for cell in cells), "peak memory"]
    rows = []
    for name, variant in VARIANTS.items():
        found = [cell["variants"].get(name) for cell in cells]
        if variant.what and found[0]:
            times = [f"{one['time']:.2f}" if one else "" for one in found]
            rows.append([f"`{name}`", variant.what, *times, f"{found[0]['memory']:.2f}"])
    return markdown_tables.table(heads, rows)


def tangents_table() -> str:
    """Methods by ways to measure slopes: times at all lengths that were measured, and peak memory at the first."""
    cells = sorted(json.loads(RESULTS.read_text())["cells"], key=lambda cell: cell["length"])

    def cost(name: str) -> str:
        found = [cell["variants"][name] for cell in cells if name in cell["variants"]]
        times = ", ".join(f"{one['time']:.2f}" for one in found)
        return f"{times} ({found[0]['memory']:.2f})" if found else ""

    rows = [
        [f"`{method}`", cost(method), *(cost(with_tangent(method, tangent)) for tangent in TANGENTS)]
        for method in SLOPED
    ]
    return markdown_tables.table(["method", "`FiniteDifference()`", *(f"`{name}`" for name in TANGENTS)], rows)


def spawn(*command: str) -> dict[str, float]:
    """A script in a fresh process, whose last line is JSON."""
    output = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


class TakingTurns(TrainerCallback):
    """Lets epochs with the fixed mixture and with the method take turns, and notes when each step was over."""

    def __init__(self, losses: int = 2) -> None:
        self.losses = losses
        self.ticks: list[float] = []
        self.trainer: AMALTrainer | None = None

    def on_train_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        """Keep what the run has made."""
        trainer = self.trainer
        if trainer is None:
            raise RuntimeError("TakingTurns needs its trainer.")
        fixed = FixedWeights()
        fixed.reset(Sizes(self.losses, (1,), None), torch.full((self.losses,), 1 / self.losses))
        changes = trainer.method.batch_policy
        self.turns = [(fixed, None, None), (trainer.mixture.policy, trainer._learner, changes)]

    def on_epoch_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        """Change over."""
        trainer: Any = self.trainer
        turn = round(trainer.state.epoch or 0) % 2
        trainer.mixture.policy, trainer._learner, trainer._inputs.batch_policy = self.turns[turn]
        trainer._labels_shown = turn == 0  # a fixed mixture wants none; the method has once been shown them
        self.tick()

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        """A meta step comes before `on_step_begin`, so that a step is what lies between two ends."""
        self.tick()

    def tick(self) -> None:
        """Take the time."""
        self.ticks.append(time.perf_counter())


def measure(name: str, length: int) -> dict[str, float]:
    """Ratio of times, seconds of a fixed-mixture step, and the process's peak bytes."""
    variant = VARIANTS[name]
    method = variant.make()
    phase_epochs = method.phase_epochs if method else 0
    # A phase is measured after one epoch, and spread over as many as lie between two.
    shortened = replace(method, phase_epochs=1) if method and phase_epochs else method
    load = Load(
        length, interval=variant.interval, attention=variant.attention, has_seen_labels=variant.has_seen_labels
    )
    trainer, ticks = turns_of(shortened, load)
    if method is not None and method.trajectory is not None:
        plain, learned = whole_epochs(ticks)
    else:
        learner = None if phase_epochs else trainer._learner
        every, window = (learner.interval, learner.method.window) if learner else (STEPS_PER_EPOCH, 1)
        plain, learned = typical_steps(ticks, every, window, max(phase_epochs, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"time": learned / plain, "plain": plain, "bytes": peak}


def turns_of(method: Method | None, load: Load) -> tuple[AMALTrainer, list[float]]:
    """Train by turns with the fixed mixture and with the method; when each epoch began and each step ended."""
    set_seed(0)
    rows = random_rows(ROWS * int(os.environ.get("WORLD_SIZE", "1")), load.length)
    logits = torch.randn(len(rows), 6)
    turns = TakingTurns(load.losses)
    teachers = [
        Distillation(
            lambda batch: logits[batch["example_id"]], name=f"teacher_{place}", has_seen_labels=load.has_seen_labels
        )
        for place in range(load.losses - 1)
    ]
    trainer = turns.trainer = AMALTrainer(
        model=student(load.layers, load.attention),
        args=AMALArguments(
            output_dir=".cache/overhead",
            per_device_train_batch_size=32,
            num_train_epochs=2 * PAIRS,
            meta_interval=load.interval,
            meta_batch_size=load.meta_batch,
            save_strategy="no",
            write_figures=False,
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows,
        meta_dataset=random_rows(300, load.length),
        losses=[CrossEntropy(), *teachers],
        method=method,
        callbacks=[turns],
    )
    trainer.train()
    return trainer, turns.ticks


def typical_steps(ticks: list[float], every: int, window: int = 1, periods: int = 1) -> tuple[float, float]:
    """Seconds of a step with the fixed mixture and with the method.

    Of every `every` steps of the method the first has a meta gradient and the first `window` are judged; in a whole
    run only every `periods`-th time.
    """
    plain, without, judged, within = kinds_of_steps(ticks, every, window)
    more = within - without + (min(window, every) - 1) * (judged - without)
    return plain, without + more / (every * periods)


def kinds_of_steps(ticks: list[float], every: int, window: int = 1) -> tuple[float, float, float, float]:
    """Seconds of a step with the fixed mixture, and of those of the method.

    These do not learn, or are only judged, or have a meta gradient as well. Medians, which leave out disturbed steps;
    of a kind that there is not, those of the fixed mixture.
    """
    # The first step of an epoch begins with the change-over: left out, unless it learns.
    seconds, place = step_seconds(ticks), np.arange(STEPS_PER_EPOCH) % every
    fixed = float(np.median(seconds[:, 0, 1:]))
    kinds = (place >= window, (place > 0) & (place < window), place == 0)
    without, judged, within = (float(np.median(seconds[:, 1, kind])) if kind.any() else fixed for kind in kinds)
    return fixed, without, judged, within


def whole_epochs(ticks: list[float]) -> tuple[float, float]:
    """Seconds of a step with the fixed mixture and with the method, over whole epochs: trajectories do not fit one."""
    fixed, learned = np.median(step_seconds(ticks)[:, :, 1:].mean(2), 0)
    return float(fixed), float(learned)


def step_seconds(ticks: list[float]) -> np.ndarray:
    """Seconds of every step, by pair of epochs and turn, from when an epoch begins and when each of its steps ends."""
    return np.diff(np.reshape(ticks, (PAIRS, 2, STEPS_PER_EPOCH + 1)))


def student(layers: int = 3, attention: str = "sdpa") -> BertForSequenceClassification:
    """Layers of MiniLM's size."""
    config = BertConfig(hidden_size=384, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=1536)
    config.num_labels = 6
    config._attn_implementation = attention
    return BertForSequenceClassification(config)


def random_rows(count: int, length: int) -> Dataset:
    """Token ids of one length."""
    generator = np.random.default_rng(count)
    ids = generator.integers(1000, 20000, (count, length))
    columns = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": generator.integers(0, 6, count)}
    return Dataset.from_dict({name: values.tolist() for name, values in columns.items()})


if __name__ == "__main__":
    main()
