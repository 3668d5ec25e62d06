"""Do learned weights help where rules vote on tokens? Slot filling, beside controls that have the same clean rows.

    python benchmarks/slots.py --data PATH/mitr --seeds 0 1 2
    python benchmarks/slots.py --table

A 2-layer MiniLM that labels words. Few sentences have labels (L), on the others rules vote on single words; half of
the validation set is the meta set, the rest is dev. All runs take as many steps as three epochs over all sentences,
five passes over the clean ones at the end included; the best of eight looks at dev is kept. F1 of whole phrases: a run
of words with one label, found with its exact ends. Every finished cell is one JSON file and is not run again.
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
from bodies import MAX_LENGTH
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from spread import spread
from training import LOOKS, Looks
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    set_seed,
)
from transformers.trainer_utils import EvalPrediction

from amal_hf import (
    AMALArguments,
    AMALTrainer,
    CrossEntropy,
    Loss,
    LossNetwork,
    MeanOne,
    Method,
    RuleLosses,
    amal,
    student_from_teacher,
)
from amal_hf.aggregation import majority_vote
from amal_hf.columns import replace_column
from amal_hf.data import read_dataset
from amal_hf.demo import demo_teacher_path
from amal_hf.precision import has_fast_bf16
from amal_hf.shapes import ABSTAIN, IGNORED, VOTES
from amal_hf.weak_splits import weak_splits


RESULTS = Path(__file__).parent / "results" / "slots"
EPOCHS, CLEAN_EPOCHS, BATCH = 3, 5, 32
MAJORITY, FILLED = "majority", "majority_or_outside"
THEN_CLEAN = ", then clean rows"

Losses = list[Loss]


def mean_one() -> Method:
    """Votes compete with votes of other words: most words that have one have no second one to choose from."""
    return amal(LossNetwork(normalisation=MeanOne()))


def of_tokens() -> Method:
    """The same, and every word has weights of its own."""
    return replace(mean_one(), per_token=True)


def votes_and_majority(rules: int) -> Losses:
    """The labels of L, the majority of votes, and every rule that fired."""
    return [CrossEntropy(), CrossEntropy(MAJORITY, column=MAJORITY), RuleLosses(rules)]


RUNS: dict[str, tuple[tuple[str, ...], Callable[[int], Losses], Callable[[], Method] | None]] = {
    "labels of L only": (("labelled",), lambda rules: [CrossEntropy()], None),
    "clean rows only": (("labelled", "meta"), lambda rules: [CrossEntropy()], None),
    "majority vote": (("train",), lambda rules: [CrossEntropy(), CrossEntropy(MAJORITY, column=MAJORITY)], None),
    "majority vote, no vote is no slot": (
        ("train",),
        lambda rules: [CrossEntropy(), CrossEntropy(FILLED, column=FILLED)],
        None,
    ),
    "uniform mixture": (("train",), votes_and_majority, None),
    "amal(), weights of sentences": (("train",), votes_and_majority, mean_one),
    "amal(), weights of words": (("train",), votes_and_majority, of_tokens),
}
WITH_CLEAN_END = [name for name, (rows, _, _) in RUNS.items() if "train" in rows]


def main() -> None:
    """Run the cells that were asked for, or print the table of those that are there."""
    names = [*RUNS, *(name + THEN_CLEAN for name in WITH_CLEAN_END)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder in WRENCH format, with labels and votes of tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=names, default=names)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print_table(names)
        return
    for seed in options.seeds:
        for run in options.runs:
            file = RESULTS / f"{options.data.name}-{''.join(filter(str.isalnum, run))}-{seed}.json"
            if not file.exists():
                cell = run_cell(options.data, run, seed)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(cell, indent=1) + "\n")
                print(run, seed, {k: round(v, 3) for k, v in cell.items() if isinstance(v, float)}, flush=True)


def run_cell(folder: Path, run: str, seed: int) -> dict[str, Any]:
    """Train one student and measure it."""
    tokenizer = AutoTokenizer.from_pretrained(demo_teacher_path())
    data, classes, rules = prepared(folder, tokenizer, seed)
    names, losses, method = RUNS[run.removesuffix(THEN_CLEAN)]
    steps = EPOCHS * -(-len(data["train"]) // BATCH)
    clean = concatenate_datasets([only_labels(data[name]) for name in ("labelled", "meta")])
    last = CLEAN_EPOCHS * -(-len(clean) // BATCH) if run.endswith(THEN_CLEAN) else 0
    rows = data["train"] if "train" in names else concatenate_datasets([only_labels(data[name]) for name in names])
    started, looks = time.perf_counter(), Looks("f1")
    set_seed(seed)
    teacher = AutoModelForTokenClassification.from_pretrained(
        demo_teacher_path(), num_labels=classes, dtype=torch.float32
    )
    student = student_from_teacher(teacher, layers=2)
    trainer = train(student, data, rows, steps - last, looks, losses(rules), method and method(), seed, tokenizer)
    if last:
        trainer = train(student, data, clean, last, looks, [CrossEntropy()], None, seed, tokenizer)
    test = trainer.predict(only_labels(data["test"])).metrics or {}
    return {
        "data": folder.name,
        "run": run,
        "seed": seed,
        "dev_f1": looks.best,
        "test_f1": test["test_f1"],
        "test_word_f1": test["test_word_f1"],
        "seconds": time.perf_counter() - started,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def train(
    student: PreTrainedModel,
    data: DatasetDict,
    rows: Dataset,
    steps: int,
    looks: Looks,
    losses: Losses,
    method: Method | None,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
) -> AMALTrainer:
    """The same for every run; leaves the student with the best parameters that `looks` has seen."""
    args = AMALArguments(
        output_dir=".cache/slots",
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=256,
        learning_rate=2e-4,
        warmup_steps=0.1,
        weight_decay=0.01,
        eval_strategy="steps",
        eval_steps=max(1, steps // LOOKS),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        write_figures=False,
        seed=seed,
        bf16=has_fast_bf16(),
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = AMALTrainer(
        model=student,
        args=args,
        train_dataset=rows,
        eval_dataset=only_labels(data["validation"]),
        meta_dataset=only_labels(data["meta"]) if method is not None else None,
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        compute_metrics=scores,
        losses=losses,
        method=method,
        callbacks=[looks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    looks.restore(trainer.model)
    return trainer


def prepared(folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[DatasetDict, int, int]:
    """Tokenised splits, and the numbers of classes and rules."""
    given = read_dataset(folder)
    classes: int = given["train"].features["labels"].feature.num_classes
    splits = weak_splits(given, seed=seed, drop_overlap=True)
    rules = len(splits["train"][0][VOTES][0])
    splits["train"] = with_majority(splits["train"], classes, seed)
    features = {
        "input_ids": List(Value("int64")),
        "attention_mask": List(Value("int8")),
        **{name: List(Value("int64")) for name in ("labels", MAJORITY, FILLED)},
        VOTES: List(List(Value("int8"))),
    }
    for name, rows in splits.items():
        known = {key: kind for key, kind in features.items() if name == "train" or key not in (MAJORITY, FILLED)}
        splits[name] = rows.map(
            lambda row: tokenised(row, tokenizer, rules),
            remove_columns=rows.column_names,
            features=Features(known),
        )
    return splits, classes, rules


def with_majority(rows: Dataset, classes: int, seed: int) -> Dataset:
    """Adds the majority of the votes on every word, -100 on L and where there is none; and once more with 0 there."""
    lengths = [len(words) for words in rows["tokens"][:]]
    votes = np.concatenate([np.array(row) for row in rows[VOTES][:]])
    unlabelled = np.concatenate(rows["labels"][:]) == IGNORED
    winner = majority_vote(votes, classes, seed)
    for name, otherwise in ((MAJORITY, IGNORED), (FILLED, 0)):
        filled = np.where(winner == IGNORED, otherwise, winner)
        column = np.split(np.where(unlabelled, filled, IGNORED), np.cumsum(lengths)[:-1])
        rows = replace_column(rows, name, [part.tolist() for part in column], List(Value("int64")))
    return rows


def tokenised(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, rules: int) -> dict[str, Any]:
    """What belongs to a word stands on the first piece of it."""
    pieces = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=MAX_LENGTH)
    words = pieces.word_ids()
    first = [word if word is not None and word not in words[:place] else None for place, word in enumerate(words)]
    silent = {VOTES: [ABSTAIN] * rules}
    moved = {
        name: [silent.get(name, IGNORED) if word is None else row[name][word] for word in first]
        for name in ("labels", MAJORITY, FILLED, VOTES)
        if name in row
    }
    return {"input_ids": pieces["input_ids"], "attention_mask": pieces["attention_mask"], **moved}


def only_labels(rows: Dataset) -> Dataset:
    """Rows as for a plain `Trainer`."""
    return rows.select_columns(["input_ids", "attention_mask", "labels"])


def scores(prediction: EvalPrediction) -> dict[str, float]:
    """F1 of phrases, and of single words in them."""
    guesses, truths = np.asarray(prediction.predictions).argmax(-1), np.asarray(prediction.label_ids)
    rows = [(guess[truth >= 0], truth[truth >= 0]) for guess, truth in zip(guesses, truths, strict=True)]
    guessed = {(row, phrase) for row, (guess, _) in enumerate(rows) for phrase in phrases(guess)}
    wanted = {(row, phrase) for row, (_, truth) in enumerate(rows) for phrase in phrases(truth)}
    words = np.concatenate([np.stack(pair) for pair in rows], 1)
    hits = ((words[0] == words[1]) & (words[1] > 0)).sum()
    return {
        "f1": f1(len(guessed & wanted), len(guessed), len(wanted)),
        "word_f1": f1(hits, (words[0] > 0).sum(), (words[1] > 0).sum()),
    }


def phrases(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """Runs of one label other than 0: begin, end, label. The data mark no boundary between two of one label."""
    ends = [*(np.flatnonzero(np.diff(labels)) + 1), len(labels)]
    return [
        (int(begin), int(end), int(labels[begin]))
        for begin, end in zip([0, *ends], ends, strict=False)
        if labels[begin]
    ]


def f1(hits: int, guessed: int, wanted: int) -> float:
    """Harmonic mean of precision and recall."""
    return 2 * float(hits) / max(float(guessed + wanted), 1.0)


def print_table(names: list[str]) -> None:
    """Means over seeds, with t-intervals."""
    cells = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    print("| run | seeds | F1 of phrases | F1 of words | dev |\n| --- | --- | --- | --- | --- |")
    for name in names:
        chosen = [cell for cell in cells if cell["run"] == name]
        if chosen:
            values = [spread([100 * cell[key] for cell in chosen]) for key in ("test_f1", "test_word_f1", "dev_f1")]
            print(f"| {name} | {len(chosen)} | {' | '.join(values)} |")


if __name__ == "__main__":
    main()
