"""Train on the votes of rules, each believed as far as it helps, beside the controls that use the same clean rows.

    python recipes/denoise_rules.py                               # needs no hub: docstrings and hand-written rules
    python recipes/denoise_rules.py --dataset wrench/trec         # a folder in WRENCH format
    python recipes/denoise_rules.py --dataset wrench/sms --runs "labels and meta rows" "majority vote"

1. Read rows with votes; split into few labelled rows, many unlabelled ones, a clean meta set, dev and test.
2. Fine-tune a teacher, the whole model, on the clean rows.
3. Train the same student from each source of supervision, on the same budget; dev chooses among the checkpoints.
4. Print a table, and what is known of every rule: how often it is right, and how far it has come to be believed.
   Draw both, and write a page to look through the examples by weight and rule.
5. Save the student of "amal with teacher, then clean rows" with its card; with --push_to_hub also publish it.
"""

import copy
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from transformers import (
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
    PerLossNetwork,
    RuleLosses,
    SharedWeights,
    amal,
    learning_to_reweight,
    meta_weight_net,
    student_from_teacher,
    teacher_belief,
)
from amal_hf.aggregation import add_aggregated, label_by_votes, label_model, majority_vote
from amal_hf.columns import dataset_fingerprint, find_text_columns
from amal_hf.command_line import parse_arguments, refuse_resuming
from amal_hf.data import read_dataset
from amal_hf.demo import FEW_ROWS, TEACHER_ID, data_details, demo_teacher_path, docstring_corpus
from amal_hf.demo_rules import docstring_rules
from amal_hf.intervals import bootstrap_interval
from amal_hf.metrics import classification_metrics
from amal_hf.plots import plot_rule_weights
from amal_hf.precision import has_fast_bf16
from amal_hf.publishing import reach_hub
from amal_hf.rule_summary import RuleSummary, rule_lines, rule_order, summarise_rules
from amal_hf.rules import apply_rules
from amal_hf.run_record import record_of
from amal_hf.shapes import TRUE_LABEL, VOTES
from amal_hf.weak_splits import weak_splits


FAST_BF16 = has_fast_bf16()


@dataclass
class Run:
    """A source of supervision: which rows, which losses, how weighed, and whether clean rows come last.

    `voted`: whether the majority's vote is the label of rows that have none.
    """

    losses: "Callable[[Bench], Sequence[Loss]]" = lambda bench: [CrossEntropy()]
    method: Callable[[], Method] | None = None
    rows: tuple[str, ...] = ("train",)
    then_clean: bool = False
    voted: bool = False


def label_and_rules(bench: "Bench") -> list[Loss]:
    """The label where there is one, and every rule that fired."""
    return [CrossEntropy(), RuleLosses(bench.rules)]


def everything(bench: "Bench") -> list[Loss]:
    """The label, the majority of the votes, and every rule that fired."""
    return [CrossEntropy(), CrossEntropy("majority", column="majority"), RuleLosses(bench.rules)]


def rules_and_teacher(bench: "Bench") -> list[Loss]:
    """The label where there is one, every rule that fired, and a larger model that knows the clean rows."""
    return [*label_and_rules(bench), Distillation(bench.teacher)]


def label_and_teacher(bench: "Bench") -> list[Loss]:
    """The label where there is one, and the larger model, which has not seen any vote."""
    return [CrossEntropy(), Distillation(bench.teacher, has_seen_labels=False)]


def aggregated(column: str) -> "Callable[[Bench], Sequence[Loss]]":
    """The label where there is one, and the aggregated votes."""
    return lambda bench: [CrossEntropy(), CrossEntropy(column, column=column)]


RUNS: dict[str, Run] = {
    "labels only": Run(rows=("labelled",)),
    "labels and meta rows": Run(rows=("labelled", "meta")),
    "majority vote": Run(aggregated("majority")),
    "label model": Run(aggregated("label_model")),
    "uniform mixture": Run(label_and_rules),
    "learning_to_reweight": Run(label_and_rules, learning_to_reweight),
    "meta_weight_net": Run(label_and_rules, meta_weight_net),
    "majority vote, then clean rows": Run(aggregated("majority"), then_clean=True),
    "weights of rules": Run(label_and_rules, lambda: Method("shared_weights", SharedWeights(), interval=4)),
    "amal": Run(everything, amal),
    "amal, then clean rows": Run(everything, amal, then_clean=True),
    "teacher, then clean rows": Run(label_and_teacher, then_clean=True),
    "rules and teacher, then clean rows": Run(rules_and_teacher, then_clean=True),
    "majority and teacher, then clean rows": Run(label_and_teacher, voted=True, then_clean=True),
    "amal with majority and teacher, then clean rows": Run(label_and_teacher, amal, voted=True, then_clean=True),
    "teacher_belief, then clean rows": Run(rules_and_teacher, teacher_belief, then_clean=True),
    "amal with teacher, then clean rows": Run(rules_and_teacher, lambda: amal(PerLossNetwork()), then_clean=True),
}
OURS = "amal with teacher, then clean rows"
LAST_EPOCHS, TEACHER_EPOCHS = 5, 15
CLEAN_PHASES = (
    "After the steps above, whose last evaluation is told, it was trained on the labelled rows and the clean set "
    f"alone, for {LAST_EPOCHS} epochs; its teacher for {TEACHER_EPOCHS}, and on nothing else."
)
DEFAULT_RUNS = [
    "labels and meta rows",
    "majority vote",
    "teacher, then clean rows",
    "rules and teacher, then clean rows",
    "teacher_belief, then clean rows",
    OURS,
]


@dataclass
class RecipeArguments:
    """What to learn from."""

    dataset: str | None = field(
        default=None, metadata={"help": "Folder in WRENCH format or Hub id with votes; docstrings by default."}
    )
    model: str | None = field(default=None, metadata={"help": "Folder or Hub id; layers of MiniLM-L6 by default."})
    layers: int = field(default=2, metadata={"help": "Layers of the default student."})
    runs: list[str] = field(default_factory=lambda: list(DEFAULT_RUNS), metadata={"help": f"Among {list(RUNS)}."})
    drop_overlap: bool = field(
        default=False, metadata={"help": "Drop labelled rows that are in the test set too, instead of refusing them."}
    )
    labelled: int = field(default=100, metadata={"help": "Labelled rows, where the data has no split of them."})
    max_length: int = field(default=48, metadata={"help": "Tokens at which a text is cut."})
    smoke: bool = field(
        default=False, metadata={"help": "A short run that shows that everything works; its scores say nothing."}
    )


@dataclass
class DenoiseArguments(AMALArguments):
    """Training arguments, with defaults that suit a small student on a small set."""

    output_dir: str = "out/denoise_rules"
    num_train_epochs: float = 3.0
    learning_rate: float = 2e-4
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 128
    warmup_steps: float = 0.1
    weight_decay: float = 0.01
    eval_strategy: str = "steps"
    eval_steps: float = 25
    save_strategy: str = "best"
    save_total_limit: int | None = 1
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "accuracy"
    save_only_model: bool = True
    write_figures: bool = False  # runs share a folder; the report has those of the learned mixture
    logging_steps: float = 25
    dataloader_pin_memory: bool = False
    bf16: bool = FAST_BF16
    use_cpu: bool = FAST_BF16 and not torch.cuda.is_available()  # `Trainer` wants to be told for bf16 on a CPU


@dataclass
class Bench:
    """What all runs share."""

    recipe: RecipeArguments
    args: DenoiseArguments
    data: DatasetDict
    tokenizer: PreTrainedTokenizerBase
    names: list[str]
    rules: list[str]

    @cached_property
    def teacher(self) -> str:
        """Folder of a model that was fine-tuned on the clean rows; trained when it is first asked for."""
        print("\nteacher")
        set_seed(self.args.seed)
        folder = f"{self.args.output_dir}/teacher"
        trainer, _ = on_clean_rows(self, new_model(self), TEACHER_EPOCHS, self.args.learning_rate / 2)
        trainer.save_model(folder)
        return folder


def main() -> None:
    """Run the recipe."""
    recipe, args = parse(sys.argv[1:])
    reach_hub(args)
    bench = load(recipe, args)
    rows = []
    student: AMALTrainer | None = None
    for name in recipe.runs:
        row, trainer = run(bench, name)
        rows.append(row)
        if name == OURS:
            student = trainer
            trainer.write_report(results=rows)
    show(rows)
    rules = rules_known(bench) if student is None else record_of(student).rule_summaries()
    print("", *rule_lines(rules), sep="\n")
    folder = Path(args.output_dir)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    results = {"runs": rows, "rules": [rule._asdict() for rule in rules]}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    if student is not None:
        lifts, precisions = (np.array([getattr(rule, part) for rule in rules]) for part in ("lift", "precision"))
        plot_rule_weights(lifts, precisions, bench.rules, folder / "figures" / "rules.png")
        student.create_model_card(card_details(bench, rows))
        student.save_model(str(folder / "student"))  # with --push_to_hub this also publishes it
    more = "" if student is None else ", student/, README.md, figures/, report.html"
    print(f"Saved in {folder}: results.json{more}")


def parse(command_line: list[str]) -> tuple[RecipeArguments, DenoiseArguments]:
    """Arguments from flags, or from one YAML or JSON file."""
    recipe, args = parse_arguments([RecipeArguments, DenoiseArguments], command_line)
    refuse_resuming(args)
    unknown = sorted(set(recipe.runs) - set(RUNS))
    if unknown:
        raise ValueError(f"--runs: {unknown} are not among {list(RUNS)}.")
    if len(set(recipe.runs)) < len(recipe.runs):
        raise ValueError(f"--runs: each once, got {recipe.runs}.")
    if recipe.smoke:
        args.num_train_epochs, args.eval_steps, args.logging_steps = 1.0, 5, 5
    return recipe, args


# ---- data ----


def load(recipe: RecipeArguments, args: DenoiseArguments) -> Bench:
    """Splits with votes, aggregated labels and token ids."""
    data = with_rules(recipe, args.seed) if recipe.dataset is None else read_dataset(recipe.dataset)
    if VOTES not in data["train"].column_names:
        held = data["train"].column_names
        raise ValueError(f"--dataset: there is no column '{VOTES}' of votes in {held}; WRENCH folders have one.")
    names = data["train"].features["label"].names
    splits = weak_splits(data, labelled=recipe.labelled, seed=args.seed, drop_overlap=recipe.drop_overlap)
    splits["train"] = add_aggregated(splits["train"], "majority", majority_vote, len(names), args.seed)
    if "label model" in recipe.runs:
        splits["train"] = add_aggregated(splits["train"], "label_model", label_model, len(names), args.seed)
    columns = find_text_columns(splits["train"].column_names)
    sizes = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    print(f"Data: {sizes} rows; fingerprint {dataset_fingerprint(splits, [*columns, 'label'])}")
    tokenizer = AutoTokenizer.from_pretrained(recipe.model or demo_teacher_path())
    splits = splits.map(
        lambda batch: tokenizer(*(batch[name] for name in columns), truncation=True, max_length=recipe.max_length),
        batched=True,
        desc="tokenising",
    )
    unnamed = [f"rule_{j:02d}" for j in range(len(splits["train"][0][VOTES]))]
    rules = unnamed if recipe.dataset else [rule.name for rule in docstring_rules(names)]
    return Bench(recipe, args, splits, tokenizer, names, rules)


def with_rules(recipe: RecipeArguments, seed: int) -> DatasetDict:
    """The docstring corpus, with the votes of its hand-written rules."""
    corpus = docstring_corpus(rows=FEW_ROWS, seed=seed) if recipe.smoke else docstring_corpus(seed=seed)
    rules = docstring_rules(corpus["train"].features["label"].names)
    voted = {name: apply_rules(split, rules) for name, split in corpus.items()}
    validation = concatenate_datasets([voted["validation"], voted["meta"]])
    return DatasetDict(train=voted["train"], validation=validation, test=voted["test"])


# ---- runs ----


def run(bench: Bench, name: str) -> tuple[dict[str, Any], AMALTrainer]:
    """Train a student and measure it: a row of the table, as plain numbers, and the trainer that learned the mixture.

    Clean rows that come afterwards are learned by the same student.
    """
    chosen = RUNS[name]
    rows = rows_of(bench, chosen.rows)
    if chosen.voted:
        rows = label_by_votes(rows, majority_vote, len(bench.names), bench.args.seed)
    print(f"\n{name}: {len(rows)} rows")
    losses = chosen.losses(bench) if "train" in chosen.rows else [CrossEntropy()]
    set_seed(bench.args.seed)
    args = copy.copy(bench.args)
    args.push_to_hub = args.push_to_hub and name == OURS
    args.teacher_cache_dir = args.teacher_cache_dir or f"{args.output_dir}/teacher_cache"
    if args.max_steps < 1:  # all runs take as many steps as one over all rows
        args.max_steps = args.get_steps(len(bench.data["train"]), args.num_train_epochs)
    method = chosen.method() if chosen.method else None
    trainer = new_trainer(bench, new_student(bench), args, rows, losses, method)
    seconds = trainer.train().metrics["train_runtime"]
    weighed = record_of(trainer).rule_summaries() if chosen.method else []
    last = trainer
    if chosen.then_clean:
        last, more = on_clean_rows(bench, trainer.model, LAST_EPOCHS, bench.args.learning_rate / 4)
        seconds += more
    output = last.predict(bench.data["test"])
    hits = np.asarray(output.predictions).argmax(-1) == np.asarray(output.label_ids)
    row = {
        "name": name,
        "dev": last.evaluate(bench.data["validation"])["eval_accuracy"],
        "test": float(hits.mean()),
        "test_interval": bootstrap_interval(hits, seed=0),
        "test_f1": (output.metrics or {}).get("test_f1"),
        "rule_order": rule_order(weighed) if weighed else None,
        "seconds": seconds,
    }
    return row, trainer


def rows_of(bench: Bench, splits: tuple[str, ...]) -> Dataset:
    """The rows to train on."""
    parts = {name: bench.data[name] for name in splits}
    return concatenate_datasets([rows if name == "train" else clean(rows) for name, rows in parts.items()])


def on_clean_rows(
    bench: Bench, student: PreTrainedModel, epochs: int, learning_rate: float
) -> tuple[AMALTrainer, float]:
    """Train on the labelled and the meta rows alone; how many seconds it took."""
    rows = rows_of(bench, ("labelled", "meta"))
    args = copy.copy(bench.args)
    args.max_steps = args.get_steps(len(rows), epochs)
    args.learning_rate = learning_rate
    args.push_to_hub = False  # only the whole run's student is published
    trainer = new_trainer(bench, student, args, rows, [CrossEntropy()], None)
    return trainer, trainer.train().metrics["train_runtime"]


def clean(rows: Dataset) -> Dataset:
    """Rows with nothing but what a student reads, labels as in `train`."""
    labels = rows["label"][:]
    read = [name for name in ("input_ids", "token_type_ids", "attention_mask") if name in rows.column_names]
    return rows.select_columns(read).add_column("label", labels)


def new_student(bench: Bench) -> PreTrainedModel:
    """The same student for every run."""
    whole = new_model(bench)
    return whole if bench.recipe.model else student_from_teacher(whole, bench.recipe.layers)


def new_model(bench: Bench) -> PreTrainedModel:
    """The whole checkpoint, with a new head."""
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        bench.recipe.model or demo_teacher_path(),
        id2label=dict(enumerate(bench.names)),
        label2id={name: number for number, name in enumerate(bench.names)},
        ignore_mismatched_sizes=True,  # it may have a head for other classes
    )
    return model


def new_trainer(
    bench: Bench,
    student: PreTrainedModel,
    args: DenoiseArguments,
    train: Dataset,
    losses: Sequence[Loss],
    method: Method | None,
) -> AMALTrainer:
    """The same for every run."""
    return AMALTrainer(
        model=student,
        args=args,
        train_dataset=train,
        eval_dataset=clean(bench.data["validation"]),
        meta_dataset=clean(bench.data["meta"]) if method is not None and method.learns else None,
        processing_class=bench.tokenizer,
        compute_metrics=classification_metrics,
        losses=losses,
        method=method,
    )


# ---- what is told ----


def rules_known(bench: Bench) -> list[RuleSummary]:
    """What is known of the rules where no weights were learned."""
    votes, truth = (np.array(bench.data["train"][name][:]) for name in (VOTES, TRUE_LABEL))
    return summarise_rules(votes, bench.rules, truth)


def card_details(bench: Bench, rows: list[dict[str, Any]]) -> CardDetails:
    """What the card of our student cannot know by itself."""
    contenders = tuple(
        Contender(row["name"], row["test"], row["test_interval"], train_seconds=row["seconds"]) for row in rows
    )
    source = bench.recipe.dataset
    data = "docstring sentences" if source is None else Path(source).name
    known = data_details(source)
    return replace(
        known,
        finetuned_from=bench.recipe.model or TEACHER_ID,
        teachers=(bench.recipe.model or TEACHER_ID,),
        comparison=Comparison(contenders, OURS, dataset=data),
        limits=(*known.limits, CLEAN_PHASES),
    )


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    width = 2 + max(len(row["name"]) for row in rows)
    print(
        f"\n{'':{width}}"
        + "".join(f"{column:>16}" for column in ("dev", "test", "95 % interval", "F1", "order", "seconds"))
    )
    for row in rows:
        low, high = row["test_interval"]
        f1 = "" if row["test_f1"] is None else f"{row['test_f1']:.1%}"
        order = "" if row["rule_order"] is None else f"{row['rule_order']:.2f}"
        interval = f"{low:.1%} - {high:.1%}"
        cells = (f"{row['dev']:.1%}", f"{row['test']:.1%}", interval, f1, order, f"{row['seconds']:.0f}")
        print(f"{row['name']:{width}}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
