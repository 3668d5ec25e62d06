"""Kill a training process at random moments, resume it, and compare with a run that nobody killed.

    python benchmarks/kills.py                 # 50 kills; some minutes on two cores
    python benchmarks/kills.py --kills 6

A tiny random BERT trains with a table of weights in memory, with one in a file, and with a network. It saves every
few steps, so that many kills (signal 9, from outside) fall into a save. Every next life resumes from the newest whole
checkpoint. What the last life ends with (student, optimizer, scheduler, random numbers, the method's state, all rows
of weights) must be bit for bit that of the run that was not killed.
"""

import argparse
import json
import multiprocessing
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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
    LossNetwork,
    Method,
    amal,
    last_checkpoint,
)
from amal_hf.checkpoints import fault


RESULTS = Path(__file__).parent / "results" / "kills.json"
STEPS, SAVE_STEPS, ROWS, LONGEST_LIFE = 190, 4, 400, 4.0  # the end lies within an epoch

RUNS: dict[str, tuple[Callable[[], Method], bool]] = {
    "table in memory": (lambda: amal(ExampleTable()), False),
    "table in a file": (lambda: amal(ExampleTable()), True),
    "network": (lambda: amal(LossNetwork()), False),
}
"""Methods, and whether their weights are in a file."""


def main() -> None:
    """Kill and resume until all kills are used up; print and keep the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    counts = dict.fromkeys(["kills", "resumptions", "torn_checkpoints", "runs", "differing", "lost_rows"], 0)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        for number, name in enumerate(RUNS):
            share = options.kills * (number + 1) // len(RUNS) - options.kills * number // len(RUNS)
            expected = Path(work, name, "expected")
            finish(name, expected)
            while share > 0:
                share -= one_run(name, Path(work, name, "run"), expected, moments, share, counts)
                print(name, counts, flush=True)
    counts["seconds"] = round(time.perf_counter() - started)
    machine = f"{platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}"
    RESULTS.write_text(json.dumps({**counts, "steps": STEPS, "machine": machine}, indent=1) + "\n")


def one_run(
    name: str, folder: Path, expected: Path, moments: random.Random, kills: int, counts: dict[str, int]
) -> int:
    """One run from beginning to end with at most so many kills; gives how many there were."""
    shutil.rmtree(folder, ignore_errors=True)
    used = 0
    while used < kills and killed(name, folder, moments.uniform(0.0, LONGEST_LIFE)):
        used += 1
        counts["kills"] += 1
        counts["torn_checkpoints"] += sum(fault(path) is not None for path in folder.glob("checkpoint-*"))
        counts["resumptions"] += last_checkpoint(folder) is not None
    if not (folder / "end.pt").exists():
        finish(name, folder)
    counts["runs"] += 1
    ours, theirs = (torch.load(path / "end.pt") for path in (folder, expected))
    counts["differing"] += not same(ours, theirs)
    counts["lost_rows"] += ROWS - sum(same(a, b) for a, b in zip(ours["weights"], theirs["weights"], strict=True))
    return used


def killed(name: str, folder: Path, seconds: float) -> bool:
    """Start a life and kill it so long after its first steps; whether it was still alive then."""
    mine, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=live, args=(name, folder, theirs))
    process.start()
    theirs.close()
    try:
        mine.recv()
        process.join(seconds)
    except EOFError:  # nothing was left to train
        process.join()
    alive = process.is_alive()
    process.kill()
    process.join()
    if not alive and process.exitcode:
        raise RuntimeError(
            f"A life of '{name}' ended by itself with exit code {process.exitcode}; its error is above."
        )
    return alive


def finish(name: str, folder: Path) -> None:
    """A life that nobody ends."""
    killed(name, folder, seconds=3600.0)


class Begun(TrainerCallback):
    """Says when a life has done a step, and there is a checkpoint to resume from."""

    def __init__(self, connection: Connection) -> None:
        self.connection: Connection | None = connection

    def on_step_end(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        """Once."""
        if self.connection is not None and state.global_step > SAVE_STEPS:
            self.connection.send(True)
            self.connection = None


def live(name: str, folder: Path, connection: Connection) -> None:
    """A life: resume if there is anything to resume from, train to the end, keep what came out."""
    trainer = new_trainer(name, folder, Begun(connection))
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    unfinished = folder / "end.tmp"
    torch.save(end_of(trainer), unfinished)
    unfinished.replace(folder / "end.pt")


def end_of(trainer: Any) -> dict[str, Any]:
    """All that a run ends with."""
    return {
        "student": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "random": torch.get_rng_state(),
        "method": [trainer.mixture.policy.state_dict(), trainer.state.global_step],
        "weights": trainer.mixture.record.contents()[1],
    }


def new_trainer(name: str, folder: Path, callback: TrainerCallback) -> AMALTrainer:
    """A tiny student on random rows."""
    method, in_file = RUNS[name]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, 3, generator=generator)
    set_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "num_labels": 3,
    }
    args = AMALArguments(
        output_dir=str(folder),
        weights_dir=str(folder.parent / "rows") if in_file else None,
        max_steps=STEPS,
        per_device_train_batch_size=4,
        meta_batch_size=4,
        meta_interval=2,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        logging_steps=50,
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    return AMALTrainer(
        model=BertForSequenceClassification(BertConfig(**sizes)),
        args=args,
        train_dataset=random_rows(ROWS, generator),
        meta_dataset=random_rows(40, generator),
        losses=[CrossEntropy(), Distillation(lambda batch: logits[batch["example_id"]])],
        method=method(),
        callbacks=[callback],
    )


def random_rows(count: int, generator: torch.Generator) -> Dataset:
    """Token ids whose first one decides the class."""
    ids = torch.randint(5, 60, (count, 8), generator=generator)
    columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 3}
    return Dataset.from_dict({name: column.tolist() for name, column in columns.items()})


def same(ours: Any, theirs: Any) -> bool:
    """Whether two trees of tensors and plain values are the same, bit for bit."""
    if isinstance(ours, torch.Tensor):
        return (
            torch.equal(ours.nan_to_num(nan=-1.0), theirs.nan_to_num(nan=-1.0))
            if ours.is_floating_point()
            else (torch.equal(ours, theirs))
        )
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    return bool(ours == theirs)


if __name__ == "__main__":
    main()
