"""Train on noisy or imbalanced labels with learned example weights, beside the controls that cost nothing.

    python recipes/reweight_noisy_labels.py                              # needs no hub; 40 % of the labels are wrong
    python recipes/reweight_noisy_labels.py --noise background           # or: instance, imbalance
    python recipes/reweight_noisy_labels.py --methods amal --label_smoothing_factor 0.1
    python recipes/reweight_noisy_labels.py --dataset SetFit/20_newsgroups --model distilbert/distilbert-base-uncased
    python recipes/reweight_noisy_labels.py settings.yaml

1. Read the data; take a clean meta set out of the training set; spoil the labels of the rest.
2. Train the same student without weights, with every method, and with every control, on the same budget. Three of them
   use the clean rows for what they are, training examples; one of these without the rows that have little weight over
   the frozen features of the pretrained model. The last learns, with `amal()`, on all rows beside a regression over
   these features.
3. Print a table: accuracy, and how well the weights tell wrong labels from right ones; a page to look through the
   examples by weight for every method.
4. Save the student of the first method with its card; with --push_to_hub also publish it.
"""

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from amal_hf import (
    AMALArguments,
    AMALTrainer,
    CardDetails,
    Comparison,
    Contender,
    CrossEntropy,
    Distillation,
    Loss,
    Method,
    RandomRectified,
    amal,
    answered_rows,
    kept_rows,
    learning_to_reweight,
    meta_weight_net,
    student_from_teacher,
)
from amal_hf.columns import dataset_fingerprint, find_text_columns
from amal_hf.command_line import parse_arguments, refuse_resuming
from amal_hf.data import read_dataset
from amal_hf.demo import FEW_ROWS, TEACHER_ID, data_details, demo_teacher_path, docstring_corpus
from amal_hf.intervals import bootstrap_interval
from amal_hf.metrics import auc, classification_metrics
from amal_hf.noise import flip_by_instance, flip_labels, flip_to_background, make_imbalanced
from amal_hf.precision import has_fast_bf16
from amal_hf.publishing import reach_hub
from amal_hf.shapes import TRUE_LABEL
from amal_hf.splits import complete_splits


METHODS: dict[str, Callable[[], Method]] = {
    "learning_to_reweight": learning_to_reweight,
    "amal": amal,
    "meta_weight_net": meta_weight_net,
    "random_rectified": lambda: Method("random_rectified", RandomRectified()),
}

NOISES: dict[str, Callable[..., Dataset]] = {
    "uniform": flip_labels,
    "background": flip_to_background,
    "instance": flip_by_instance,
    "imbalance": make_imbalanced,
}

BY_FEATURES = "amal_by_features"

FAST_BF16 = has_fast_bf16()


@dataclass
class RecipeArguments:
    """What to train, and what to spoil."""

    model: str | None = field(default=None, metadata={"help": "Folder or Hub id; layers of MiniLM-L6 by default."})
    layers: int = field(default=2, metadata={"help": "Layers of the default student."})
    dataset: str | None = field(
        default=None, metadata={"help": "Hub id, WRENCH folder, JSON lines or CSV; docstrings by default."}
    )
    noise: str = field(default="uniform", metadata={"help": "How labels are spoilt.", "choices": list(NOISES)})
    rate: float = field(
        default=0.4, metadata={"help": "Share of wrong labels; for imbalance, rarest over commonest class."}
    )
    methods: list[str] = field(default_factory=lambda: list(METHODS), metadata={"help": "Which methods to compare."})
    meta_rows: int = field(default=300, metadata={"help": "Clean rows taken out of the training set."})
    max_length: int = field(default=48, metadata={"help": "Tokens at which a text is cut."})
    smoke: bool = field(
        default=False, metadata={"help": "A short run that shows that everything works; its scores say nothing."}
    )


@dataclass
class ReweightArguments(AMALArguments):
    """Training arguments, with defaults that suit a small student on a small set."""

    output_dir: str = "out/reweight_noisy_labels"
    num_train_epochs: float = 3.0
    learning_rate: float = 2e-4
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 128
    warmup_steps: float = 0.1
    logging_steps: float = 10
    save_strategy: str = "no"
    write_figures: bool = False  # runs share a folder; the reports have those of each method
    dataloader_pin_memory: bool = False
    bf16: bool = FAST_BF16
    use_cpu: bool = FAST_BF16 and not torch.cuda.is_available()  # `Trainer` wants to be told for bf16 on a CPU


@dataclass
class Bench:
    """What all runs share."""

    recipe: RecipeArguments
    args: ReweightArguments
    data: DatasetDict
    tokenizer: PreTrainedTokenizerBase
    student: AMALTrainer | None = None


def main() -> None:
    """Run the recipe."""
    recipe, args = parse(sys.argv[1:])
    reach_hub(args)
    tokenizer = AutoTokenizer.from_pretrained(recipe.model or demo_teacher_path())
    bench = Bench(recipe, args, load_data(recipe, args.seed, tokenizer), tokenizer)
    data = bench.data
    encoder = AutoModel.from_pretrained(recipe.model or demo_teacher_path()).to(args.device)
    kept = kept_rows(data["train"], data["meta"], encoder, tokenizer, seed=args.seed)
    answered, by_features = answered_rows(data["train"], data["meta"], encoder, tokenizer, seed=args.seed)
    print(f"Kept: {len(kept)} of {len(data['train'])} rows")
    rows = [
        run(bench, "labels only", data["train"]),
        run(bench, "clean rows only", data["meta"]),
        run(bench, "noisy and clean rows", concatenate_datasets([data["train"], data["meta"]])),
        run(bench, "noisy, then clean rows", data["train"], then=data["meta"]),
        run(bench, "kept and clean rows", concatenate_datasets([kept, data["meta"]])),
        *(run(bench, name, data["train"], METHODS[name]()) for name in recipe.methods),
        run(bench, BY_FEATURES, answered, amal(), teacher=by_features),
    ]
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)
    if bench.student is not None:
        bench.student.create_model_card(card_details(bench, rows))
        bench.student.save_model(str(folder / "student"))  # with --push_to_hub this also publishes it
    print(f"Saved in {folder}: results.json, and reports: {', '.join([*recipe.methods, BY_FEATURES])} (.html)")


def parse(command_line: list[str]) -> tuple[RecipeArguments, ReweightArguments]:
    """Arguments from flags, or from one YAML or JSON file."""
    recipe, args = parse_arguments([RecipeArguments, ReweightArguments], command_line)
    refuse_resuming(args)
    unknown = sorted(set(recipe.methods) - set(METHODS))
    if unknown:
        raise ValueError(f"--methods: {unknown} are not among {list(METHODS)}.")
    if len(set(recipe.methods)) < len(recipe.methods):
        raise ValueError(f"--methods: each once, got {recipe.methods}.")
    if not 0 <= recipe.rate < 1 or (recipe.noise == "imbalance" and recipe.rate == 0):
        raise ValueError(f"--rate: expected a share of 0 to 1, above 0 for imbalance, got {recipe.rate}.")
    if recipe.smoke:
        args.num_train_epochs, args.logging_steps = 1.0, 2
    return recipe, args


def load_data(recipe: RecipeArguments, seed: int, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Splits train (spoilt), meta, validation and test, with token ids."""
    if recipe.dataset is None:
        data = docstring_corpus(4, FEW_ROWS, seed) if recipe.smoke else docstring_corpus(seed=seed)
    else:
        data = complete_splits(read_dataset(recipe.dataset), recipe.meta_rows, seed)
    if recipe.rate:
        amount = 1 / recipe.rate if recipe.noise == "imbalance" else recipe.rate
        data["train"] = NOISES[recipe.noise](data["train"], amount, seed)
    columns = find_text_columns(data["train"].column_names)
    sizes = ", ".join(f"{name} {len(split)}" for name, split in data.items())
    print(f"Data: {sizes} rows; fingerprint {dataset_fingerprint(data, [*columns, 'label'])}")
    return data.map(
        lambda batch: tokenizer(*(batch[name] for name in columns), truncation=True, max_length=recipe.max_length),
        batched=True,
        desc="tokenising",
    )


def run(
    bench: Bench,
    name: str,
    train: Dataset,
    method: Method | None = None,
    then: Dataset | None = None,
    teacher: Distillation | None = None,
) -> dict[str, Any]:
    """Train a student and measure it; a row of the table, as plain numbers."""
    print(f"\n{name}: {len(train)} rows")
    set_seed(bench.args.seed)
    args = copy.copy(bench.args)
    published = name in bench.recipe.methods[:1]
    args.push_to_hub = args.push_to_hub and published
    if args.max_steps < 1:  # all runs take as many steps as one over the noisy rows
        args.max_steps = args.get_steps(len(bench.data["train"]), args.num_train_epochs)
    losses: list[Loss] = [CrossEntropy(), *([teacher] if teacher else [])]
    trainer = new_trainer(bench, new_student(bench), args, train, losses, method)
    seconds = trainer.train().metrics["train_runtime"]
    weights_auc = weight_auc(trainer, train) if method else None
    if method:
        trainer.write_report(f"{args.output_dir}/{name}.html")
    if then is not None:
        args.max_steps = args.get_steps(len(then), 3)
        args.learning_rate = args.learning_rate / 4
        trainer = new_trainer(bench, trainer.model, args, then, losses)
        seconds += trainer.train().metrics["train_runtime"]
    bench.student = trainer if published else bench.student
    output = trainer.predict(bench.data["test"])
    right = np.asarray(output.predictions).argmax(-1) == output.label_ids
    return {
        "name": name,
        "dev": trainer.evaluate(bench.data["validation"])["eval_accuracy"],
        "test": float(right.mean()),
        "test_interval": bootstrap_interval(right, seed=0),
        "weight_auc": weights_auc,
        "seconds": seconds,
    }


def new_student(bench: Bench) -> PreTrainedModel:
    """The same student for every run."""
    label = bench.data["train"].features["label"]
    names = dict(enumerate(label.names))
    student = AutoModelForSequenceClassification.from_pretrained(
        bench.recipe.model or demo_teacher_path(),
        id2label=names,
        label2id={name: number for number, name in names.items()},
        ignore_mismatched_sizes=True,  # it may have a head for other classes
    )
    return student if bench.recipe.model else student_from_teacher(student, bench.recipe.layers)


def new_trainer(
    bench: Bench,
    student: PreTrainedModel,
    args: ReweightArguments,
    train: Dataset,
    losses: list[Loss],
    method: Method | None = None,
) -> AMALTrainer:
    """With or without weights."""
    return AMALTrainer(
        model=student,
        args=args,
        train_dataset=train,
        meta_dataset=bench.data["meta"] if method is not None and method.learns else None,
        processing_class=bench.tokenizer,
        compute_metrics=classification_metrics,
        losses=losses,
        method=method,
    )


def weight_auc(trainer: AMALTrainer, train: Dataset) -> float | None:
    """How surely a right label has a larger weight than a wrong one; None if no label is wrong."""
    if TRUE_LABEL not in train.column_names:
        return None
    pairs = zip(train["label"], train[TRUE_LABEL], strict=True)
    right = np.array([true is None or label == true for label, true in pairs])  # clean rows have no other label
    weights = np.array(trainer.example_weights()["labels"])
    seen = np.isfinite(weights)
    return None if right[seen].all() else auc(weights[seen], right[seen])


def card_details(bench: Bench, rows: list[dict[str, Any]]) -> CardDetails:
    """What the card of the first method's student cannot know by itself."""
    recipe = bench.recipe
    contenders = tuple(
        Contender(row["name"], row["test"], row["test_interval"], train_seconds=row["seconds"]) for row in rows
    )
    data = "docstring sentences" if recipe.dataset is None else Path(recipe.dataset).name
    details = data_details(recipe.dataset)
    what = "rows were made uneven by class" if recipe.noise == "imbalance" else "labels were spoilt"
    spoilt = f"; the training {what} ({recipe.noise}, {recipe.rate:g})" if recipe.rate else ""
    return replace(
        details,
        finetuned_from=recipe.model or TEACHER_ID,
        dataset=f"{details.dataset or data}{spoilt}",
        comparison=Comparison(contenders, recipe.methods[0], dataset=data),
    )


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"\n{'':24}" + "".join(f"{column:>16}" for column in ("dev", "test", "95 % interval", "AUC", "seconds")))
    for row in rows:
        low, high = row["test_interval"]
        found = "" if row["weight_auc"] is None else f"{row['weight_auc']:.2f}"
        cells = (f"{row['dev']:.1%}", f"{row['test']:.1%}", f"{low:.1%} - {high:.1%}", found, f"{row['seconds']:.0f}")
        print(f"{row['name']:24}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
