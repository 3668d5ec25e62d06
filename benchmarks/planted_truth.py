"""Does learned mixing find a planted truth? Wrong labels, or a wrong teacher, that only the benchmark knows of.

    python benchmarks/planted_truth.py --data PATH/trec --setting flipped --seeds 0 1 2
    python benchmarks/planted_truth.py --table

Settings:
    flipped            40 % of the training labels are wrong; the teacher was fine-tuned on these labels
    corrupted_teacher  labels are right; on 30 % of the rows the teacher's logits are those of another row

A 2-layer MiniLM student is trained in the same way by every run; only losses, weights and method differ. The clean
rows (300 taken out of the training set) are the meta set and nothing else; dev and test are the set's own. Every
finished cell is one JSON file in `benchmarks/results/planted_truth` and is not run again.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict
from spread import spread
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, set_seed

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
    random_weights,
    student_from_teacher,
)
from amal_hf.data import read_dataset
from amal_hf.demo import demo_teacher_path
from amal_hf.metrics import auc, classification_metrics
from amal_hf.noise import flip_labels
from amal_hf.precision import has_fast_bf16
from amal_hf.splits import split_dataset


RESULTS = Path(__file__).parent / "results" / "planted_truth"
WORK = Path(".cache") / "planted_truth"
CLEAN_ROWS = 300

RUNS: dict[str, tuple[list[float], Callable[[], Method | None]]] = {
    "labels only": ([1.0, 0.0], lambda: None),
    "teacher only": ([0.0, 1.0], lambda: None),
    "fixed half and half": ([0.5, 0.5], lambda: None),
    "random weights": ([0.5, 0.5], random_weights),
    "amal, network": ([0.5, 0.5], amal),
    "amal, table": ([0.5, 0.5], lambda: amal(ExampleTable())),
    "amal, last layer": ([0.5, 0.5], lambda: amal(tangent=LastLayer())),
    "amal as published, a phase each epoch": ([0.1, 0.9], lambda: amal_as_published(phase_epochs=1)),
}


def main() -> None:
    """Run the cells that were asked for, or print the table of those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder in WRENCH format")
    parser.add_argument("--setting", choices=["flipped", "corrupted_teacher"], default="flipped")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print_table()
        return
    for seed in options.seeds:
        for run in options.runs:
            file = cell_file(options.data.name, options.setting, run, options.epochs, seed)
            if not file.exists():
                cell = run_cell(options.data, options.setting, run, seed, options.epochs)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(cell, indent=1) + "\n")
                print(run, seed, {k: v for k, v in cell.items() if isinstance(v, float)}, flush=True)


def run_cell(folder: Path, setting: str, run: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train one student and measure it."""
    data = prepared(folder, setting, seed)
    logits = teacher_logits(data, folder.name, setting, seed)
    wrong = np.zeros(len(data["train"]), dtype=bool)
    if setting == "corrupted_teacher":
        logits, wrong = corrupted(logits, seed)
    else:
        wrong = np.array(data["train"]["label"]) != np.array(data["train"]["true_label"])
    loss_weights, method = RUNS[run]
    started = time.perf_counter()
    trainer = new_trainer(data, logits, loss_weights, method(), seed, epochs)
    trainer.train()
    weights = trainer.example_weights().with_format("numpy")
    return {
        "data": folder.name,
        "setting": setting,
        "run": run,
        "seed": seed,
        "epochs": epochs,
        "seconds": time.perf_counter() - started,
        "dev": trainer.evaluate(data["validation"], metric_key_prefix="dev")["dev_accuracy"],
        "test": trainer.evaluate(data["test"], metric_key_prefix="test")["test_accuracy"],
        "teacher_test": float(np.load(cache_file(folder.name, setting, seed))["test"]),
        "labels_weight_auc": auc(weights["labels"][:], ~wrong),
        "teacher_weight_auc": auc(weights["teacher"][:], ~wrong),
        "weights": {
            f"{name}_{kind}": float(weights[name][:][rows].mean())
            for name in ("labels", "teacher")
            for kind, rows in (("right", ~wrong), ("wrong", wrong))
        },
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bf16": has_fast_bf16(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def new_trainer(
    data: DatasetDict, logits: np.ndarray, loss_weights: list[float], method: Method | None, seed: int, epochs: int
) -> AMALTrainer:
    """A student and what trains it."""
    table = torch.from_numpy(logits)
    set_seed(seed)
    args = AMALArguments(
        output_dir=str(WORK / f"out-{seed}"),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        learning_rate=2e-4,
        warmup_steps=0.1,
        weight_decay=0.01,
        save_strategy="no",
        write_figures=False,
        logging_steps=50,
        seed=seed,
        bf16=has_fast_bf16(),
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        loss_weights=loss_weights,
    )
    return AMALTrainer(
        model=student_from_teacher(base_model(data), layers=2),
        args=args,
        train_dataset=data["train"],
        meta_dataset=data["meta"] if method is not None and method.policy.learns else None,
        processing_class=AutoTokenizer.from_pretrained(demo_teacher_path()),
        losses=[CrossEntropy(), Distillation(lambda batch: table[batch["example_id"]])],
        method=method,
        compute_metrics=classification_metrics,
    )


def prepared(folder: Path, setting: str, seed: int) -> DatasetDict:
    """Tokenised splits: train (with planted errors), meta, validation, test."""
    data = read_dataset(folder)
    parts = split_dataset(data["train"], {"meta": CLEAN_ROWS}, seed=seed)
    train = flip_labels(parts["train"], 0.4 if setting == "flipped" else 0.0, seed=seed)
    splits = DatasetDict(train=train, meta=parts["meta"], validation=data["validation"], test=data["test"])
    tokenizer = AutoTokenizer.from_pretrained(demo_teacher_path())
    return splits.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=48), batched=True)


def base_model(data: DatasetDict) -> PreTrainedModel:
    """The pretrained checkpoint with a new head."""
    labels = data["train"].features["label"].num_classes
    return AutoModelForSequenceClassification.from_pretrained(demo_teacher_path(), num_labels=labels)


def teacher_logits(data: DatasetDict, name: str, setting: str, seed: int) -> np.ndarray:
    """Logits on the training rows of a teacher fine-tuned on the labels as they stand; kept in a file."""
    file = cache_file(name, setting, seed)
    if not file.exists():
        set_seed(seed)
        args = AMALArguments(
            output_dir=str(WORK / "teacher"),
            num_train_epochs=2,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=128,
            learning_rate=1e-4,
            bf16=has_fast_bf16(),
            use_cpu=not torch.cuda.is_available(),
            warmup_steps=0.1,
            save_strategy="no",
            seed=seed,
            disable_tqdm=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(demo_teacher_path())
        teacher = AMALTrainer(
            model=base_model(data),
            args=args,
            train_dataset=data["train"],
            processing_class=tokenizer,
            losses=[CrossEntropy()],
            compute_metrics=classification_metrics,
        )
        teacher.train()
        test = teacher.evaluate(data["test"])["eval_accuracy"]
        rows: Dataset = data["train"].remove_columns("label")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, train=teacher.predict(rows).predictions, test=test)
    return np.load(file)["train"]


def cache_file(name: str, setting: str, seed: int) -> Path:
    """Where the teacher's logits are kept."""
    return WORK / f"{name}-{setting}-{seed}.npz"


def corrupted(logits: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of which 30 % are another row's, and which."""
    generator = np.random.default_rng(seed)
    rows = generator.permutation(len(logits))[: round(0.3 * len(logits))]
    wrong = np.zeros(len(logits), dtype=bool)
    wrong[rows] = True
    mixed = logits.copy()
    mixed[rows] = logits[np.roll(rows, 1)]
    return mixed, wrong


def cell_file(data: str, setting: str, run: str, epochs: int, seed: int) -> Path:
    """Where a cell is kept."""
    return RESULTS / f"{data}-{setting}-{epochs}_epochs-{run.replace(', ', '-').replace(' ', '_')}-{seed}.json"


def print_table() -> None:
    """Mean over seeds, with the half-width of a 95 % t-interval where there are three seeds or more."""
    cells = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    for group in sorted({group_of(cell) for cell in cells}):
        print(f"\n{group[0]}, {group[1]}, {group[2]} epochs\n")
        print("| run | seeds | dev | test | AUC of label weights | AUC of teacher weights |")
        print("| --- | --- | --- | --- | --- | --- |")
        for run in RUNS:
            chosen = [cell for cell in cells if group_of(cell) == group and cell["run"] == run]
            if chosen:
                scores = [spread([100 * cell[key] for cell in chosen]) for key in ("dev", "test")]
                aucs = [np.mean([cell[f"{name}_weight_auc"] for cell in chosen]) for name in ("labels", "teacher")]
                print(f"| {run} | {len(chosen)} | {' | '.join(scores)} | {aucs[0]:.2f} | {aucs[1]:.2f} |")


def group_of(cell: dict[str, Any]) -> tuple[str, str, int]:
    """What is compared with one another: the same data, setting and number of epochs."""
    return cell["data"], cell["setting"], cell["epochs"]


if __name__ == "__main__":
    main()
