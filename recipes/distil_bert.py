"""Distil a BERT-family teacher into a small student whose losses are mixed for each example.

    python recipes/distil_bert.py                      # needs no hub: MiniLM-L6 and sentences from installed packages
    python recipes/distil_bert.py --label_noise 0.4    # the same with 40 % of the training labels wrong
    python recipes/distil_bert.py --label_noise 0.4 --clean_teacher  # whose teacher has not seen these labels
    python recipes/distil_bert.py --label_noise 0.4 --leave_out      # without the rows that are probably wrong
    python recipes/distil_bert.py --dataset stanfordnlp/sst2 --teacher google-bert/bert-base-uncased --student_layers 6
    python recipes/distil_bert.py settings.yaml

1. Read the data; take a clean meta set (and dev and test sets, where there are none) out of the training set; leave
   out what is probably wrong, if asked to.
2. Fine-tune the teacher, on the training set or on the meta set alone, and keep its logits on the training set.
3. Train the student three times on the same budget: labels only, a fixed half-and-half mixture, the learned mixture;
   beside a teacher of the meta set alone also with the mixture that Bayes' rule gives.
4. Print a table, save the student with its card, and a report to look through the training examples by their weights;
   with --push_to_hub also publish the student.
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
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    pipeline,
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
    ExampleTable,
    Method,
    amal,
    amal_as_published,
    bayes_mixture,
    kept_rows,
    student_from_teacher,
)
from amal_hf.columns import dataset_fingerprint, find_text_columns
from amal_hf.command_line import parse_arguments, refuse_resuming
from amal_hf.data import read_dataset
from amal_hf.demo import FEW_ROWS, TEACHER_ID, data_details, demo_teacher_path, docstring_corpus
from amal_hf.intervals import bootstrap_interval
from amal_hf.label_order import label_order
from amal_hf.latency import hardware_name, measure_latency
from amal_hf.metrics import classification_metrics
from amal_hf.noise import flip_labels
from amal_hf.plots import Curve, plot_accuracy_against_seconds
from amal_hf.precision import has_fast_bf16
from amal_hf.publishing import reach_hub
from amal_hf.splits import complete_splits


METHODS: dict[str, Callable[[], Method]] = {
    "amal": amal,
    "amal_table": lambda: amal(ExampleTable()),
    "amal_as_published": amal_as_published,
}
TEACHER_EPOCHS, CLEAN_TEACHER_EPOCHS = 3, 15
CLEAN_TEACHER = "Its teacher was fine-tuned on the clean set alone, by which the weights were learned."
LEFT_OUT = "Training rows whose labels had little weight over frozen features were left out."


@dataclass
class RecipeArguments:
    """What to distil, and into what."""

    teacher: str | None = field(
        default=None, metadata={"help": "Folder or Hub id; MiniLM-L6 from the demo package by default."}
    )
    student: str | None = field(
        default=None, metadata={"help": "Folder or Hub id; by default layers of the teacher's checkpoint."}
    )
    student_layers: int = field(default=2, metadata={"help": "Layers of the student, where none is named."})
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, WRENCH folder, JSON lines or CSV; sentences from docstrings of installed packages by "
            "default."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub dataset, as sst2 of nyu-mll/glue."}
    )
    label_noise: float = field(
        default=0.0,
        metadata={"help": "Share of the training labels to make wrong, to see what learned mixing is for."},
    )
    method: str = field(default="amal", metadata={"help": "How weights are learned.", "choices": list(METHODS)})
    fixed_shares: list[float] = field(
        default_factory=lambda: [0.5],
        metadata={"help": "Shares of the teacher in fixed mixtures, each of them a student to compare with."},
    )
    temperature: float = field(default=2.0, metadata={"help": "Softness of the teacher's targets."})
    meta_rows: int = field(
        default=300, metadata={"help": "Clean rows taken out of the training set for the meta set."}
    )
    max_length: int = field(default=48, metadata={"help": "Tokens at which a text is cut."})
    leave_out: bool = field(
        default=False,
        metadata={
            "help": "Leave out rows that are probably wrong: whose labels have little weight over the frozen features "
            "of the teacher's checkpoint."
        },
    )
    clean_teacher: bool = field(
        default=False,
        metadata={"help": "Fine-tune the teacher on the meta set alone; of the two, take the better one on dev."},
    )
    teacher_epochs: float | None = field(
        default=None,
        metadata={
            "help": f"Epochs of fine-tuning the teacher: by default {TEACHER_EPOCHS}, or over the meta set "
            f"{CLEAN_TEACHER_EPOCHS}; 0 takes it as it is."
        },
    )
    teacher_learning_rate: float = field(default=2e-4, metadata={"help": "Learning rate of that."})
    smoke: bool = field(
        default=False, metadata={"help": "A short run that shows that everything works; its scores say nothing."}
    )


FAST_BF16 = has_fast_bf16()


@dataclass
class DistilArguments(AMALArguments):
    """Training arguments of the student, with defaults that suit a small one on a small set."""

    output_dir: str = "out/distil_bert"
    num_train_epochs: float = 3.0
    learning_rate: float = 3e-4
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 128
    warmup_steps: float = 0.1
    logging_steps: float = 10
    save_strategy: str = "no"
    train_sampling_strategy: str = "group_by_length"
    dataloader_pin_memory: bool = False
    bf16: bool = FAST_BF16
    use_cpu: bool = FAST_BF16 and not torch.cuda.is_available()  # `Trainer` wants to be told for bf16 on a CPU


@dataclass
class Run:
    """One model that was trained, and its guesses on the test set."""

    name: str
    trainer: AMALTrainer
    seconds: float = 0.0
    order: list[int] | None = None  # for every class of the data its place among the model's own
    guesses: np.ndarray = field(default_factory=lambda: np.empty(0))


def main() -> None:
    """Run the recipe."""
    recipe, args = parse(sys.argv[1:])
    check_student(recipe)
    reach_hub(args)
    texts = load_data(recipe, args.seed)
    checkpoint = recipe.teacher or demo_teacher_path()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if recipe.leave_out:
        leave_out(args, texts, checkpoint, tokenizer)
    data = tokenised(texts, tokenizer, recipe.max_length)
    teacher = train_teacher(recipe, args, data, tokenizer)
    rows = [scores(teacher, teacher, data)]
    if recipe.student is not None:
        # The student may speak another vocabulary; the teacher then reads the texts itself.
        tokenizer = AutoTokenizer.from_pretrained(recipe.student)
        data = tokenised(texts, tokenizer, recipe.max_length)
    for name, weights, method in mixtures(recipe):
        run = train_student(name, weights, method, recipe, args, data, tokenizer)
        rows.append(scores(run, teacher, data))
    show(rows)
    save(run, rows, recipe, args, data)


def mixtures(recipe: RecipeArguments) -> list[tuple[str, list[float], Method | None]]:
    """The students: name, weights of (labels, teacher) to start from, and how these are learned."""
    by_bayes = [bayes_mixture()] if recipe.clean_teacher else []
    return [
        ("labels only", [1.0, 0.0], None),
        *((f"fixed, teacher {share:.0%}", [1 - share, share], None) for share in recipe.fixed_shares),
        *((method.name, [0.5, 0.5], method) for method in by_bayes),
        (recipe.method, [0.5, 0.5], METHODS[recipe.method]()),
    ]


def parse(command_line: list[str]) -> tuple[RecipeArguments, DistilArguments]:
    """Arguments from flags, or from one YAML or JSON file."""
    recipe, args = parse_arguments([RecipeArguments, DistilArguments], command_line)
    refuse_resuming(args)
    if recipe.clean_teacher and recipe.teacher_epochs == 0:
        raise ValueError(
            "--clean_teacher fine-tunes the teacher, --teacher_epochs 0 takes it as it is: leave out one."
        )
    if not recipe.temperature > 0 or not all(0 <= share <= 1 for share in recipe.fixed_shares):
        raise ValueError(
            f"--temperature must be above 0 and --fixed_shares between 0 and 1, got {recipe.temperature} and "
            f"{recipe.fixed_shares}."
        )
    if (recipe.teacher_epochs or 0) < 0:
        raise ValueError(f"--teacher_epochs: expected 0 or more, got {recipe.teacher_epochs}.")
    if args.loss_weights is not None:
        raise ValueError("--loss_weights: every student has a mixture of its own here. Use --fixed_shares.")
    if recipe.smoke:
        usual = 1.0 if recipe.teacher_epochs is None else recipe.teacher_epochs
        recipe.teacher_epochs, args.num_train_epochs, args.logging_steps = usual, 1.0, 2
    return recipe, args


def check_student(recipe: RecipeArguments) -> None:
    """Refuse a student that cannot be had, before a teacher is trained for it.

    Raises:
        OSError: there is none of this name.
        ValueError: more layers than the teacher has.
    """
    if recipe.student is not None:
        AutoConfig.from_pretrained(recipe.student)
        return
    layers = AutoConfig.from_pretrained(recipe.teacher or demo_teacher_path()).num_hidden_layers
    if not 0 < recipe.student_layers <= layers:
        raise ValueError(f"--student_layers: expected 1 to {layers} as the teacher has, got {recipe.student_layers}.")


def load_data(recipe: RecipeArguments, seed: int) -> DatasetDict:
    """Splits train, meta, validation and test with a column `label`.

    Labels of the training set made wrong if asked for.
    """
    if recipe.dataset is None:
        data = docstring_corpus(4, FEW_ROWS, seed) if recipe.smoke else docstring_corpus(seed=seed)
    else:
        data = complete_splits(read_dataset(recipe.dataset, config=recipe.dataset_config), recipe.meta_rows, seed)
    if recipe.label_noise:
        data["train"] = flip_labels(data["train"], recipe.label_noise, seed)
    texts = list(find_text_columns(data["train"].column_names))
    sizes = ", ".join(f"{name} {len(split)}" for name, split in data.items())
    print(f"Data: {sizes} rows; fingerprint {dataset_fingerprint(data, [*texts, 'label'])}")
    return data


def leave_out(
    args: DistilArguments, data: DatasetDict, checkpoint: str | Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Take rows that are probably wrong out of the training set; students take as many steps as with them."""
    rows = data["train"]
    if args.max_steps < 1:
        args.max_steps = args.get_steps(len(rows), args.num_train_epochs)
    encoder = AutoModel.from_pretrained(checkpoint).to(args.device)
    data["train"] = kept_rows(rows, data["meta"], encoder, tokenizer, seed=args.seed)
    print(f"Left out: {len(rows) - len(data['train'])} of {len(rows)} rows")


def tokenised(data: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    """Token ids beside the text."""
    columns = find_text_columns(data["train"].column_names)
    return data.map(
        lambda rows: tokenizer(*(rows[name] for name in columns), truncation=True, max_length=max_length),
        batched=True,
        desc="tokenising",
    )


def with_head(checkpoint: str | Path, label: ClassLabel) -> PreTrainedModel:
    """A checkpoint with a classification head for these classes to be trained, whether it had one or not."""
    names = dict(enumerate(label.names))
    return AutoModelForSequenceClassification.from_pretrained(
        checkpoint,
        id2label=names,
        label2id={name: number for number, name in names.items()},
        ignore_mismatched_sizes=True,
    )


def train_teacher(
    recipe: RecipeArguments, args: DistilArguments, data: DatasetDict, tokenizer: PreTrainedTokenizerBase
) -> Run:
    """Fine-tune the teacher on the labels as they stand, or on those that are known to be right, and save it."""
    set_seed(args.seed)
    own = copy.copy(args)
    own.output_dir = f"{args.output_dir}/teacher"
    usual = CLEAN_TEACHER_EPOCHS if recipe.clean_teacher else TEACHER_EPOCHS
    own.num_train_epochs = usual if recipe.teacher_epochs is None else recipe.teacher_epochs
    own.max_steps = -1  # which are for students
    own.learning_rate = recipe.teacher_learning_rate
    own.push_to_hub = False
    checkpoint, label = recipe.teacher or demo_teacher_path(), data["train"].features["label"]
    if own.num_train_epochs > 0:
        rows = DatasetDict({**data, "train": data["meta"]}) if recipe.clean_teacher else data
        trainer = new_trainer(with_head(checkpoint, label), own, rows, tokenizer, losses=[CrossEntropy()])
        run = train("teacher", trainer)
    else:
        teacher = as_it_is(checkpoint)
        order = label_order(teacher.config, PreTrainedConfig(id2label=dict(enumerate(label.names))))
        trainer = new_trainer(teacher, own, data, tokenizer)
        run = Run("teacher", trainer, order=order)
    trainer.save_model()
    return run


def as_it_is(checkpoint: str | Path) -> PreTrainedModel:
    """A checkpoint with the head and the classes that it was trained with.

    Raises:
        ValueError: it has no trained head.
    """
    model, report = AutoModelForSequenceClassification.from_pretrained(checkpoint, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(f"--teacher_epochs 0: {checkpoint} has no trained head. Fine-tune it: --teacher_epochs 3.")
    return model


def train_student(
    name: str,
    weights: list[float],
    method: Method | None,
    recipe: RecipeArguments,
    args: DistilArguments,
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
) -> Run:
    """Train the student with one mixture; all students start from the same weights and see the same batches."""
    set_seed(args.seed)
    label = data["train"].features["label"]
    if recipe.student is None:
        student = student_from_teacher(with_head(recipe.teacher or demo_teacher_path(), label), recipe.student_layers)
    else:
        student = with_head(recipe.student, label)
    own = copy.copy(args)
    own.loss_weights = weights
    own.teacher_cache_dir = args.teacher_cache_dir or f"{args.output_dir}/teacher_cache"
    own.push_to_hub = args.push_to_hub and name == recipe.method
    columns = find_text_columns(data["train"].column_names)
    teacher = Distillation(
        f"{args.output_dir}/teacher",
        recipe.temperature,
        text_columns=columns,
        has_seen_labels=not recipe.clean_teacher,
    )
    return train(name, new_trainer(student, own, data, tokenizer, losses=[CrossEntropy(), teacher], method=method))


def new_trainer(
    model: PreTrainedModel, args: DistilArguments, data: DatasetDict, tokenizer: PreTrainedTokenizerBase, **mixing: Any
) -> AMALTrainer:
    """The trainer of teacher and students alike."""
    return AMALTrainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        meta_dataset=data["meta"] if (method := mixing.get("method")) and method.learns else None,
        processing_class=tokenizer,
        compute_metrics=classification_metrics,
        **mixing,
    )


def train(name: str, trainer: AMALTrainer) -> Run:
    """Train; the time is that of training alone, without the figures at its end."""
    args = trainer.args
    print(f"\n{name}: " + (f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"))
    return Run(name, trainer, trainer.train().metrics["train_runtime"])


def scores(run: Run, teacher: Run, data: DatasetDict) -> dict[str, Any]:
    """A row of the table, as plain numbers."""
    _, right_dev = predicted(run, data["validation"])
    run.guesses, right = predicted(run, data["test"])
    model, tokenizer = run.trainer.model, run.trainer.processing_class
    texts = data["test"][find_text_columns(data["test"].column_names)[0]][:256]
    return {
        "name": run.name,
        "dev": float(right_dev.mean()),
        "test": float(right.mean()),
        "test_interval": bootstrap_interval(right, seed=0),
        "agreement": float((run.guesses == teacher.guesses).mean()),
        "parameters": model.num_parameters(),
        "megabytes": model.get_memory_footprint() / 1e6,
        "ms_batch_1": measure_latency(model, tokenizer, texts, 1),
        "ms_batch_32": measure_latency(model, tokenizer, texts, 32, batches=8),
        "train_seconds": run.seconds,
    }


def predicted(run: Run, rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The class of every row, and whether it is right."""
    run.trainer.args.train_sampling_strategy = "random"  # grouping by length would reorder evaluation as well
    output = run.trainer.predict(rows)
    logits = np.asarray(output.predictions)
    guesses = (logits if run.order is None else logits[:, run.order]).argmax(-1)
    return guesses, guesses == output.label_ids


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    columns = ("dev", "test", "95 % interval", "as teacher", "parameters", "ms, batch 1", "batch 32", "seconds")
    print(f"\n{'':20}" + "".join(f"{column:>15}" for column in columns))
    for row in rows:
        low, high = row["test_interval"]
        cells = (
            f"{row['dev']:.1%}",
            f"{row['test']:.1%}",
            f"{low:.1%} - {high:.1%}",
            f"{row['agreement']:.1%}",
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['ms_batch_1'][0]:.1f}",
            f"{row['ms_batch_32'][0]:.1f}",
            f"{row['train_seconds']:.0f}",
        )
        print(f"{row['name']:20}" + "".join(f"{cell:>15}" for cell in cells))


def card_details(recipe: RecipeArguments, rows: list[dict[str, Any]]) -> CardDetails:
    """What the student's card cannot know by itself: the table, and what is known of the data."""
    measured = ("parameters", "megabytes", "ms_batch_1", "ms_batch_32", "train_seconds")
    contenders = tuple(
        Contender(row["name"], row["test"], row["test_interval"], **{name: row[name] for name in measured})
        for row in rows
    )
    data = "docstring sentences" if recipe.dataset is None else Path(recipe.dataset).name
    known = data_details(recipe.dataset)
    wrong = f"{recipe.label_noise:.0%} of the training labels were made wrong on purpose."
    told = [CLEAN_TEACHER] * recipe.clean_teacher + [wrong] * (recipe.label_noise > 0) + [LEFT_OUT] * recipe.leave_out
    return replace(
        known,
        finetuned_from=recipe.student or recipe.teacher or TEACHER_ID,
        teachers=(recipe.teacher or TEACHER_ID,),
        comparison=Comparison(contenders, rows[-1]["name"], dataset=data, hardware=hardware_name()),
        limits=(*known.limits, *told),
    )


def save(
    run: Run, rows: list[dict[str, Any]], recipe: RecipeArguments, args: DistilArguments, data: DatasetDict
) -> None:
    """The student with the learned mixture, its card and report, the weight of every example, figures and numbers."""
    folder = Path(args.output_dir)
    first = run.trainer.is_world_process_zero()
    if first:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        run.trainer.example_weights().to_csv(folder / "example_weights.csv")
        curves = {row["name"]: Curve([row["train_seconds"]], [row["test"]], row["test_interval"]) for row in rows[1:]}
        plot_accuracy_against_seconds(curves, folder / "figures" / "accuracy.png")
        (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        run.trainer.write_report(results=rows)
    run.trainer.create_model_card(card_details(recipe, rows))
    run.trainer.save_model(str(folder / "student"))  # with --push_to_hub this also publishes it
    if not first:
        return
    print(f"\nSaved in {folder}: student/, README.md, figures/, report.html, example_weights.csv, results.json")
    print(shown_answer(folder / "student", data["test"][0], recipe.max_length))


def shown_answer(student: Path, row: dict[str, Any], max_length: int) -> str:
    """How a saved student is asked about a row, and what it answers; a row may have two texts, and a text be long."""
    texts = [row[name] for name in find_text_columns(list(row))]
    asked = texts[0] if len(texts) == 1 else dict(zip(("text", "text_pair"), texts, strict=True))
    classify: Any = pipeline("text-classification", str(student))
    long = len(classify.tokenizer(*texts)["input_ids"]) > max_length
    options: dict[str, Any] = {"truncation": True, "max_length": max_length} if long else {}
    (answer,) = classify([asked], **options)
    given = "".join(f", {name}={value}" for name, value in options.items())
    return f'pipeline("text-classification", "{student}")({asked!r}{given})\n  -> {answer}'


if __name__ == "__main__":
    main()
