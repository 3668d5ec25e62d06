"""What each part of a bilevel step takes: seconds, and memory beyond what was held before it.

    python benchmarks/parts.py                      # the student of overhead.py, batch 32, meta batch 16, length 32
    python benchmarks/parts.py --length 128 --meta 32

A 3-layer BERT (hidden size 384), two losses, AdamW, fp32; medians of several turns. Memory is what the allocator of a
GPU held at most while the part ran; on a CPU what the process did, in a second run in which freed blocks are given
back at once. Nothing else may run meanwhile.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from overhead import random_rows, student
from precision import losses, no_product
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import set_seed

from amal_hf import AdamDirection, FiniteDifference, LossNetwork
from amal_hf.central_differences import movable
from amal_hf.meta import meta_gradient, scaled
from amal_hf.policies.policy import Observation, Sizes
from amal_hf.shapes import Evaluation
from amal_hf.tangents import movable_parameters


RESULTS = Path(__file__).parent / "results" / "parts.json"
CUDA = torch.cuda.is_available()
FEATURES = 8
"""What `LossNetwork()` observes of two losses and no teacher: surface 4, clean probe 3, class 1."""


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--meta", type=int, default=16)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--memory", action="store_true", help="print the figures of the second run")
    options = parser.parse_args()
    found = measured(options.length, options.batch, options.meta, options.turns)
    if options.memory:
        print(json.dumps(found))
        return
    held = found if CUDA else second_run()
    for name, cell in found.items():
        cell["megabytes"] = held[name]["megabytes"]
    whole = found["training step"]["seconds"]
    print("| part | of a training step | memory, MB |\n| --- | --- | --- |")
    for name, cell in found.items():
        print(f"| {name} | {cell['seconds'] / whole:.2f} | {cell['megabytes']:.0f} |")
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    name = f"length {options.length}, batch {options.batch}, meta batch {options.meta}"
    kept[name] = {"parts": found, "machine": machine, "transformers": transformers.__version__}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def second_run() -> dict[str, dict[str, float]]:
    """The same again where freed memory leaves the process, in which it would else be used again."""
    command = [sys.executable, *sys.argv, "--memory", "--turns", "3"]
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    told = {**usual, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    output = subprocess.run(command, env=told, capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, float]] = json.loads(output.splitlines()[-1])
    return found


def measured(length: int, size: int, meta_size: int, turns: int) -> dict[str, dict[str, float]]:
    """Seconds and megabytes of every part, in the order of a step."""
    set_seed(0)
    device = torch.device("cuda" if CUDA else "cpu")
    model: Any = student()
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    batch, meta = (one_batch(count, length, device) for count in (size, meta_size))

    def logits(rows: dict[str, Tensor]) -> Tensor:
        output: Tensor = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
        return output

    def train() -> None:
        model.train()
        losses(logits(batch), batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()  # a meta step runs without dropout

    def evaluate() -> Evaluation:
        return Evaluation(losses(logits(batch), batch), torch.zeros(size, FEATURES, device=device))

    def clean_loss() -> Tensor:
        return cross_entropy(logits(meta), meta["labels"])

    def there_and_back() -> None:
        with movable(params, direction) as move:
            move(torch.tensor(1e-3, device=device))
            move(torch.tensor(-1e-3, device=device))

    train()
    params = movable_parameters(model)
    _, gradient = meta_gradient(params, clean_loss)
    direction = AdamDirection()(gradient, params, optimizer, no_product)
    slopes = FiniteDifference()(model, direction, evaluate, torch.float32).slopes
    policy = LossNetwork()
    policy.reset(Sizes(2, (), None), torch.tensor([0.5, 0.5]))
    seen = Observation(torch.arange(size), torch.zeros(size, FEATURES, device=device), 0.5)
    parts: dict[str, Callable[[], object]] = {
        "training step": train,
        "meta gradient": lambda: meta_gradient(params, clean_loss),
        "direction": lambda: AdamDirection()(gradient, params, optimizer, no_product),
        "slopes": lambda: FiniteDifference()(model, direction, evaluate, torch.float32),
        "of these: moving the parameters and back": there_and_back,
        "policy": lambda: policy.update(seen, scaled(slopes)[0]),
    }
    return {name: typical(part, turns) for name, part in parts.items()}


def one_batch(size: int, length: int, device: Any) -> dict[str, Tensor]:
    """Random tokens and labels."""
    rows = random_rows(size, length)
    return {name: torch.tensor(rows[name][:], device=device) for name in rows.column_names}


def typical(part: Callable[[], object], turns: int) -> dict[str, float]:
    """Median time, and the most memory, of a part."""
    part()
    seconds, grown = [], []
    for _ in range(turns):
        before = start_watching()
        began = time.perf_counter()
        part()
        if CUDA:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        grown.append(most_held() - before)
    return {"seconds": float(np.median(seconds)), "megabytes": float(np.median(grown)) / 1e6}


def start_watching() -> int:
    """Forget the highest mark; gives the bytes that are held now."""
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def most_held() -> int:
    """The highest mark since, in bytes."""
    return torch.cuda.max_memory_allocated() if CUDA else status("VmHWM")


def status(field: str) -> int:
    """A line of this process's status, in bytes; Linux."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}: memory on a CPU is only measured under Linux.")
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
