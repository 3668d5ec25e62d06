"""Do learned example weights help with wrong or rare labels? Beside controls that have the same clean rows.

    python benchmarks/reweighting.py --data PATH/trec --setting flipped --seeds 0 1 2
    python benchmarks/reweighting.py --table

Settings (of at most 5,000 training rows):
    flipped      40 % of the labels are wrong, evenly
    imbalance    the rarest class has one row for 20 of the commonest

A 2-layer MiniLM student with one loss, the labels; all runs take as many steps as three epochs over the noisy rows.
The clean rows (300 taken out of the training set) are the meta set of the methods, and training rows of the controls
that say so. Dev and test are the set's own. Every finished cell is one JSON file and is not run again.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict, concatenate_datasets
from planted_truth import base_model
from spread import spread
from transformers import AutoTokenizer, PreTrainedModel, set_seed

from amal_hf import (
    AMALArguments,
    AMALTrainer,
    ClassProportional,
    CrossEntropy,
    MeanOne,
    Method,
    RandomRectified,
    StateNetwork,
    amal,
    deep_interactions,
    learning_to_reweight,
    meta_weight_net,
    student_from_teacher,
)
from amal_hf.data import read_dataset
from amal_hf.demo import demo_teacher_path
from amal_hf.metrics import auc, classification_metrics
from amal_hf.noise import flip_labels, make_imbalanced
from amal_hf.precision import has_fast_bf16
from amal_hf.shapes import TRUE_LABEL
from amal_hf.splits import split_dataset


RESULTS = Path(__file__).parent / "results" / "reweighting"
CLEAN_ROWS, MOST_ROWS, MOST_DEV_ROWS, EPOCHS = 300, 5000, 1000, 3

SETTINGS: dict[str, Callable[[Dataset, int], Dataset]] = {
    "flipped": lambda rows, seed: flip_labels(rows, 0.4, seed),
    "imbalance": lambda rows, seed: make_imbalanced(rows, 20, seed),
}


def walked_back(policy: StateNetwork) -> Method:
    """Deep interactions through the last 5 of every 20 steps: a quarter of what all steps would cost."""
    return replace(deep_interactions(policy), interval=20)


METHODS: dict[str, Callable[[], Method]] = {
    "random weights": lambda: Method("random_rectified", RandomRectified()),
    "learning_to_reweight()": learning_to_reweight,
    "meta_weight_net()": meta_weight_net,
    "amal()": amal,
    "amal(), noisy and clean rows": amal,
    "deep_interactions(), surface only": lambda: walked_back(StateNetwork((), normalisation=MeanOne())),
    "deep_interactions(), last layer": lambda: walked_back(StateNetwork((-1,), normalisation=MeanOne())),
    "deep_interactions(), all layers": lambda: walked_back(StateNetwork(normalisation=MeanOne())),
}
CONTROLS = ["labels only", "clean rows only", "noisy and clean rows", "noisy, then clean rows", "balanced classes"]


def main() -> None:
    """Run the cells that were asked for, or print the table of those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder in WRENCH format")
    parser.add_argument("--setting", choices=list(SETTINGS), default="flipped")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=[*CONTROLS, *METHODS], default=[*CONTROLS, *METHODS])
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print_table()
        return
    for seed in options.seeds:
        for run in options.runs:
            file = RESULTS / f"{options.data.name}-{options.setting}-{''.join(filter(str.isalnum, run))}-{seed}.json"
            if not file.exists():
                cell = run_cell(options.data, options.setting, run, seed)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(cell, indent=1) + "\n")
                print(run, seed, {k: v for k, v in cell.items() if isinstance(v, float)}, flush=True)


def run_cell(folder: Path, setting: str, run: str, seed: int) -> dict[str, Any]:
    """Train one student and measure it."""
    data = prepared(folder, setting, seed)
    noisy, clean = data["train"], data["meta"]
    train = clean if run == "clean rows only" else noisy
    if run.endswith("noisy and clean rows"):
        train = concatenate_datasets([noisy, clean])
    method = METHODS[run]() if run in METHODS else None
    if run == "balanced classes":
        method = Method("balanced_classes", ClassProportional(np.bincount(noisy["label"]).tolist()))
    steps = EPOCHS * -(-len(noisy) // 32)
    started = time.perf_counter()
    set_seed(seed)
    student = student_from_teacher(base_model(data), layers=2)
    trainer = new_trainer(student, data, train, method, seed, steps, 2e-4)
    trainer.train()
    right = np.array(noisy["label"]) == np.array(noisy[TRUE_LABEL]) if TRUE_LABEL in noisy.column_names else None
    found = None
    if method is not None and right is not None:
        found = auc(np.nan_to_num(np.array(trainer.example_weights()["labels"])[: len(noisy)]), right)
    if run == "noisy, then clean rows":
        trainer = new_trainer(trainer.model, data, clean, None, seed, 3 * -(-len(clean) // 32), 5e-5)
        trainer.train()
    return {
        "data": folder.name,
        "setting": setting,
        "run": run,
        "seed": seed,
        "rows": len(noisy),
        "seconds": time.perf_counter() - started,
        **{f"dev_{name}": value for name, value in scores(trainer, data["validation"]).items()},
        **{f"test_{name}": value for name, value in scores(trainer, data["test"]).items()},
        "weight_auc": found,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bf16": has_fast_bf16(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def scores(trainer: AMALTrainer, rows: Dataset) -> dict[str, float]:
    """Accuracy, and macro F1, in which rare classes count as much as others."""
    metrics = trainer.evaluate(rows, metric_key_prefix="x")
    return {"accuracy": metrics["x_accuracy"], "f1": metrics["x_macro_f1"]}


def new_trainer(
    student: PreTrainedModel,
    data: DatasetDict,
    train: Dataset,
    method: Method | None,
    seed: int,
    steps: int,
    learning_rate: float,
) -> AMALTrainer:
    """The same for every run."""
    args = AMALArguments(
        output_dir=".cache/reweighting",
        max_steps=steps,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        learning_rate=learning_rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        save_strategy="no",
        write_figures=False,
        logging_steps=50,
        seed=seed,
        bf16=has_fast_bf16(),
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    return AMALTrainer(
        model=student,
        args=args,
        train_dataset=train,
        meta_dataset=data["meta"] if method is not None and method.learns else None,
        processing_class=AutoTokenizer.from_pretrained(demo_teacher_path()),
        losses=[CrossEntropy()],
        method=method,
        compute_metrics=classification_metrics,
    )


def prepared(folder: Path, setting: str, seed: int) -> DatasetDict:
    """Tokenised splits: train (spoilt), meta, validation, test."""
    data = read_dataset(folder)
    sizes: dict[str, int | float] = {"meta": CLEAN_ROWS}
    if len(data["train"]) > MOST_ROWS + CLEAN_ROWS:
        sizes["train"] = MOST_ROWS
    parts = split_dataset(data["train"], sizes, seed=seed)
    train = SETTINGS[setting](parts["train"], seed)
    dev = data["validation"].select(range(min(MOST_DEV_ROWS, len(data["validation"]))))
    splits = DatasetDict(train=train, meta=parts["meta"], validation=dev, test=data["test"])
    tokenizer = AutoTokenizer.from_pretrained(demo_teacher_path())
    return splits.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=48), batched=True)


def print_table() -> None:
    """Mean over seeds, with the half-width of a 95 % t-interval where there are three seeds or more."""
    cells = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    for group in sorted({(cell["data"], cell["setting"]) for cell in cells}):
        print(f"\n{group[0]}, {group[1]}\n")
        print("| run | seeds | test accuracy | test macro F1 | AUC of weights |")
        print("| --- | --- | --- | --- | --- |")
        for run in [*CONTROLS, *METHODS]:
            chosen = [cell for cell in cells if (cell["data"], cell["setting"]) == group and cell["run"] == run]
            if chosen:
                found = [cell["weight_auc"] for cell in chosen if cell["weight_auc"] is not None]
                values = [spread([100 * cell[key] for cell in chosen]) for key in ("test_accuracy", "test_f1")]
                values += [f"{np.mean(found):.2f}" if found else ""]
                print(f"| {run} | {len(chosen)} | {' | '.join(values)} |")


if __name__ == "__main__":
    main()
