"""What learned weights cost on a GPU: time, memory and use of the device, for students of BERT-base's size.

    python benchmarks/gpu_speed.py                                  # everything, on one H100
    python benchmarks/gpu_speed.py --peak_tflops 312                # on an A100
    python benchmarks/gpu_speed.py --tiny --out /tmp/tiny.json      # on a CPU: only shows that it runs

64 rows of 128 tokens a step, bf16 autocast, fused attention, with and without `torch_compile`, random weights, logits
of the teacher at hand. Every cell is a process of its own, in which epochs with the fixed mixture and with the method
take turns, as in `overhead.py`. Peak memory is taken anew in every epoch; medians count.

Model-FLOPs utilisation is what a training step needs over what the device could have done meanwhile (PaLM,
arXiv:2204.02311, appendix B):

    (6 P + 12 L d s) · tokens / (seconds · peak)

    P: parameters without embedding tables    L: layers    d: width    s: tokens of a row

What a meta step computes is no part of it: with learned weights the same numerator took more seconds.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from overhead import PAIRS, STEPS_PER_EPOCH, VARIANTS, TakingTurns, random_rows, spawn, typical_steps
from transformers import AutoModelForSequenceClassification, BertConfig, ModernBertConfig, PreTrainedModel, set_seed

from amal_hf import AMALArguments, AMALTrainer, CrossEntropy, Distillation
from amal_hf.tangents import movable_parameters


RESULTS = Path(__file__).parent / "results" / "gpu_speed.json"

STUDENTS: dict[str, Any] = {"BERT-base": BertConfig, "ModernBERT-base": ModernBertConfig}
"""Configurations that are of this size by default."""

TIME_LIMITS, MEMORY_LIMIT = {"amal()": 1.25, "amal(), every step": 1.8}, 1.15
"""The most that each variant may cost, as a ratio to the fixed mixture."""


class Scale(NamedTuple):
    """How large a step is."""

    batch: int
    length: int
    sizes: dict[str, int]


FULL = Scale(64, 128, {})
TINY = Scale(4, 16, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64})


def main() -> None:
    """Measure all cells, or in a process of its own one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--compile", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="dense bf16; an H100 SXM's by default")
    parser.add_argument("--tiny", action="store_true", help="a few parameters, on a CPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", choices=list(TIME_LIMITS), help="measure one variant in this process, print JSON")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU; --tiny runs on a CPU")
    if options.one:
        compiled = options.compile == ["on"]
        print(json.dumps(measure(options.one, options.students[0], compiled, TINY if options.tiny else FULL)))
        return
    cells = [
        cell(student, compiled, name, options.peak_tflops * 1e12, ["--tiny"] * options.tiny)
        for student in options.students
        for compiled in options.compile
        for name in TIME_LIMITS
    ]
    device = "CPU" if options.tiny else torch.cuda.get_device_name()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "device": device}
    options.out.write_text(
        json.dumps({**versions, "peak_tflops": options.peak_tflops, "cells": cells}, indent=1) + "\n"
    )


def cell(student: str, compiled: str, name: str, peak: float, scale: list[str]) -> dict[str, Any]:
    """One variant beside the fixed mixture: measured in a process of its own, and printed."""
    found = spawn(__file__, "--one", name, "--students", student, "--compile", compiled, *scale)
    row: dict[str, Any] = {"student": student, "compile": compiled, "variant": name, **found}
    row["time"] = found["seconds"] / found["fixed_seconds"]
    row["memory"] = found["bytes"] / found["fixed_bytes"] if found["fixed_bytes"] else None
    for kind in ("", "fixed_"):
        row[f"{kind}tokens_per_second"] = found["tokens"] / found[f"{kind}seconds"]
        row[f"{kind}utilisation"] = found["flops"] / found[f"{kind}seconds"] / peak
    row["within_limits"] = row["time"] <= TIME_LIMITS[name] and (row["memory"] or 0.0) <= MEMORY_LIMIT
    print(json.dumps(row), flush=True)
    return row


class TakingTurnsOnDevice(TakingTurns):
    """Waits for the device before it takes the time, and notes the peak memory of every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: list[int] = []

    def on_epoch_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        """Measure anew."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        super().on_epoch_begin(args, state, control, **kwargs)

    def on_epoch_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        """Note the peak; no such figure is kept for a CPU."""
        self.peaks.append(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)

    def tick(self) -> None:
        """`Trainer` waits for the loss of every step anyway; what is left is the optimizer's work."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ticks.append(time.perf_counter())


def measure(name: str, student: str, compiled: bool, scale: Scale) -> dict[str, float]:
    """Seconds of a step and peak bytes with the fixed mixture and with the method; tokens and FLOPs of a step."""
    set_seed(0)
    variant = VARIANTS[name]
    model = new_student(student, scale)
    rows = random_rows(scale.batch * STEPS_PER_EPOCH, scale.length)
    logits = torch.randn(len(rows), 6, device="cuda" if torch.cuda.is_available() else "cpu")
    turns = TakingTurnsOnDevice()
    trainer = turns.trainer = AMALTrainer(
        model=model,
        args=new_arguments(variant.interval, compiled, scale),
        train_dataset=rows,
        meta_dataset=random_rows(300, scale.length),
        losses=[CrossEntropy(), Distillation(lambda batch: logits[batch["example_id"]])],
        method=variant.make(),
        callbacks=[turns],
    )
    trainer.train()
    fixed, learned = typical_steps(
        turns.ticks, variant.interval or trainer.method.usual_interval, trainer.method.window
    )
    fixed_bytes, learned_bytes = np.median(np.reshape(turns.peaks, (PAIRS, 2)), 0)
    tokens = scale.batch * scale.length
    return {
        "fixed_seconds": fixed,
        "seconds": learned,
        "fixed_bytes": fixed_bytes,
        "bytes": learned_bytes,
        "tokens": tokens,
        "flops": flops_per_token(model, scale.length) * tokens,
    }


def new_arguments(interval: int | None, compiled: bool, scale: Scale) -> AMALArguments:
    """Nothing but training."""
    workers = 0 if scale is TINY else 4
    return AMALArguments(
        output_dir=".cache/gpu_speed",
        per_device_train_batch_size=scale.batch,
        num_train_epochs=2 * PAIRS,
        meta_interval=interval,
        bf16=True,
        torch_compile=compiled,
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        save_strategy="no",
        write_figures=False,
        logging_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )


def new_student(name: str, scale: Scale) -> PreTrainedModel:
    """A classifier with random weights and fused attention."""
    config = STUDENTS[name](**scale.sizes, num_labels=6)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")


def flops_per_token(model: Any, length: int) -> int:
    """Of a training step: forward pass, and backward pass of twice as much."""
    config = model.config
    parameters = sum(p.numel() for p in movable_parameters(model).values())
    return 6 * parameters + 12 * config.num_hidden_layers * config.hidden_size * length


if __name__ == "__main__":
    main()
