"""Do weights help a translator that trains on pairs of which 30 % are wrong? Beside controls and an oracle.

    python benchmarks/translation.py --data PATH/multi30k_de_en --seeds 6 7 8
    python benchmarks/translation.py --data PATH/multi30k_de_en --seeds 6 7 8 --wrong 0.5
    python benchmarks/tables.py

Data, student and method of `recipes/translate_deep_interactions.py`: German to English, 10,000 pairs, a T5 of one
layer of width 96 from scratch, as many steps in each run as 24 epochs over all pairs. 500 pairs each are the meta,
dev and test set, taken out of the given training set. Each run is made with a learning rate that falls from the start,
and with one that falls from the middle on, when learned weights and selections act. Every student is scored twice: as
it is, and after five short passes over the clean pairs. Finished runs are lines of JSON in `results/translation.jsonl`
and are not made again.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from gains import code, signed
from json_lines import Record, append, read
from markdown_tables import table
from numpy.typing import NDArray
from spread import spread
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, set_seed

from amal_hf import (
    AboveAverage,
    AMALSeq2SeqTrainer,
    CrossEntropy,
    Delayed,
    GeneralizedCrossEntropy,
    Method,
    SmallLoss,
    SourceGain,
    StateNetwork,
    deep_interactions,
)
from amal_hf.metrics import auc
from amal_hf.translation import Bleu


sys.path.append(str(Path(__file__).parents[1] / "recipes"))

import translate_deep_interactions as recipe  # noqa: E402


RESULTS = Path(__file__).parent / "results" / "translation.jsonl"
ROWS, HELD_OUT, WRONG = 11_500, 500, 0.3
BATCH, EPOCHS, RATE = 16, 24, 3e-3
CLEAN_EPOCHS, CLEAN_RATE = 5, 0.25


@dataclass(frozen=True)
class Run:
    """How a student is trained.

    Attributes:
        method: how pairs are weighed, by the share of wrong ones, which some are told; alike by default.
        loss: of a pair.
        smoothing: share of every label that goes to all words.
        right_pairs: told which pairs are wrong, it leaves them out.
    """

    method: Callable[[float], Method | None] = lambda wrong: None
    loss: Callable[[], CrossEntropy] = CrossEntropy
    smoothing: float = 0.0
    right_pairs: bool = False


def by_source_gain(wrong: float) -> Method:
    """Told how many pairs are wrong, as small-loss selection is."""
    return Method("source_gain", SourceGain(wrong))


def by_loss(wrong: float) -> Method:
    """Chosen as `by_source_gain` does, by the loss."""
    like = SourceGain(wrong)
    return Method("small_loss", SmallLoss(wrong, like.ramp, like.among))


def by_weighing(wrong: float) -> Method:
    """By what was learned in the first quarter, told nothing."""
    return recipe.of_long_runs(draw=False)


def by_drawing(wrong: float) -> Method:
    """As the recipe does in long runs: pairs are drawn by their weights, for which the network is asked anew."""
    return recipe.of_long_runs()


def by_memory(wrong: float) -> Method:
    """As `by_weighing`, but what each pair did so far is read in the place of what its target gains, for twice as
    long: it tells wrong pairs later.
    """
    options = {"likelihoods": True, "memory": True, "labels": False}
    network = StateNetwork((), learning_rate=5e-4, normalisation=AboveAverage(), **options)
    return deep_interactions(Delayed(network, until=0.5), window=10)


ALIKE, ROBUST_LOSS = "all pairs alike", "generalised cross-entropy"
ROBUST = partial(GeneralizedCrossEntropy, 0.3)
RUNS = {
    ALIKE: Run(),
    "label smoothing": Run(smoothing=0.1),
    ROBUST_LOSS: Run(loss=ROBUST),
    "small-loss selection": Run(lambda wrong: Method("small_loss", SmallLoss(wrong))),
    "small-loss selection among as many, generalised cross-entropy": Run(by_loss, ROBUST),
    "source-gain selection": Run(by_source_gain),
    "source-gain selection, generalised cross-entropy": Run(by_source_gain, ROBUST),
    "deep_interactions(), memory": Run(by_memory),
    "deep_interactions(), memory, generalised cross-entropy": Run(by_memory, ROBUST),
    "deep_interactions(), source gain": Run(by_weighing),
    "deep_interactions(), source gain, generalised cross-entropy": Run(by_weighing, ROBUST),
    "deep_interactions(), source gain, drawn, generalised cross-entropy": Run(by_drawing, ROBUST),
    "right pairs alone (oracle)": Run(right_pairs=True),
}
SHORT = [
    ALIKE,
    ROBUST_LOSS,
    "source-gain selection, generalised cross-entropy",
    "deep_interactions(), source gain, generalised cross-entropy",
    "deep_interactions(), source gain, drawn, generalised cross-entropy",
    "right pairs alone (oracle)",
]
FALLING, LATE = "falls from the start", "falls from the middle"
RATES: dict[str, Callable[[int], dict[str, Any]]] = {
    FALLING: lambda steps: {},
    LATE: lambda steps: {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": steps // 2, "decay_type": "linear"},
    },
}


@dataclass(frozen=True)
class Corpus:
    """What the runs of a seed share.

    Attributes:
        sets: tokenised train, meta, validation and test.
        wrong: `(N,)`, which training pairs are wrong.
    """

    seed: int
    what: recipe.RecipeArguments
    sets: DatasetDict
    wrong: NDArray[np.bool_]
    tokenizer: PreTrainedTokenizerBase

    def student(self) -> PreTrainedModel:
        """A new one."""
        return recipe.new_t5(self.tokenizer, self.what)


def main() -> None:
    """Make the runs that are not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of train*.jsonl with columns de and en")
    parser.add_argument("--wrong", type=float, default=WRONG, help="share of the pairs that are wrong")
    parser.add_argument("--seeds", type=int, nargs="+", default=[6, 7, 8])
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--rates", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    Bleu()  # which refuses, where sacrebleu is missing, before a run is made
    done = {(record["run"], record["rate"], record["seed"], share_of(record)) for record in read(options.results)}
    for name, rate, seed in product(options.runs, options.rates, options.seeds):
        if (name, rate, seed, options.wrong) not in done:
            append(options.results, *scored(name, rate, corpus_of(options.data, seed, options.wrong)))


def share_of(record: Record) -> float:
    """Of wrong pairs."""
    return record.get("wrong", WRONG)


def corpus_of(data: Path, seed: int, share: float = WRONG) -> Corpus:
    """Read, spoil and tokenise."""
    what = recipe.RecipeArguments(str(data), "de", "en", ROWS, HELD_OUT, share, layers=1, vocabulary=2000)
    pairs, wrong = recipe.load_data(what, seed)
    tokenizer = recipe.word_tokenizer(pairs["train"], what)
    return Corpus(seed, what, recipe.tokenised(pairs, tokenizer, what), wrong, tokenizer)


def scored(name: str, rate: str, corpus: Corpus) -> Iterator[Record]:
    """Train a student and score it, as it is and after the clean pairs."""
    set_seed(corpus.seed)
    student, run = corpus.student(), RUNS[name]
    train, meta = corpus.sets["train"], corpus.sets["meta"]
    rows = train.select(np.flatnonzero(~corpus.wrong)) if run.right_pairs else train
    facts = {"run": name, "rate": rate, "seed": corpus.seed, "wrong": corpus.what.shuffled, "torch": torch.__version__}
    steps = EPOCHS * len(train) // BATCH
    trainer = fitted(student, corpus, rows, steps, run, **RATES[rate](steps))
    alike = run.method(corpus.what.shuffled) is None
    told = None if alike else auc(np.array(trainer.example_weights()["labels"][:]), ~corpus.wrong)
    yield {**facts, "clean_last": False, **scores(trainer, corpus), "auc": told}
    trainer = fitted(student, corpus, meta, CLEAN_EPOCHS * len(meta) // BATCH, learning_rate=RATE * CLEAN_RATE)
    yield {**facts, "clean_last": True, **scores(trainer, corpus), "auc": told}


def fitted(
    student: PreTrainedModel,
    corpus: Corpus,
    rows: Dataset,
    steps: int,
    run: Run = Run(),
    learning_rate: float = RATE,
    **schedule: Any,
) -> AMALSeq2SeqTrainer:
    """The trainer of a student, when it is done."""
    with tempfile.TemporaryDirectory() as folder:
        args = recipe.TranslateArguments(
            output_dir=folder,
            max_steps=steps,
            learning_rate=learning_rate,
            per_device_train_batch_size=BATCH,
            generation_max_length=40,
            meta_batch_size=HELD_OUT // 2,
            meta_warmup_steps=2 * len(corpus.sets["train"]) // BATCH,
            label_smoothing_factor=run.smoothing,
            seed=corpus.seed,
            report_to="none",
            write_figures=False,
            disable_tqdm=True,
            **schedule,
        )
        trainer = recipe.new_trainer(
            student,
            run.method(corpus.what.shuffled),
            args,
            DatasetDict({**corpus.sets, "train": rows}),
            corpus.tokenizer,
            run.loss(),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


def scores(trainer: AMALSeq2SeqTrainer, corpus: Corpus) -> Record:
    """BLEU on dev, BLEU and loss on the test set."""
    dev, test = trainer.evaluate(), trainer.predict(corpus.sets["test"]).metrics or {}
    return {"dev": dev["eval_bleu"], "bleu": test["test_bleu"], "loss": test["test_loss"]}


def results_table(records: list[Record], wrong: float = WRONG, control: str = ALIKE) -> str:
    """A row for each run and rate, with one share of wrong pairs; gains are over a control, rate and seed alike."""
    those = [record for record in records if share_of(record) == wrong]
    head = ["run", "rate", "BLEU on dev", "BLEU", f"over {control}", "then clean pairs", "loss", "AUC"]
    rows = [_row(those, run, rate, control) for rate in RATES for run in RUNS if column(those, run, rate, "bleu")]
    return table(head, rows)


def _row(records: list[Record], run: str, rate: str, control: str) -> list[str]:
    dev, bleu, loss, told = (column(records, run, rate, key) for key in ("dev", "bleu", "loss", "auc"))
    scores = [spread(list(dev.values())), spread(list(bleu.values())), _gain(records, run, rate, control)]
    clean_last = spread(list(column(records, run, rate, "bleu", clean_last=True).values()))
    known = spread(list(told.values()), 2) if told else ""
    return [code(run), rate, *scores, clean_last, spread(list(loss.values()), 2), known]


def _gain(records: list[Record], run: str, rate: str, control: str) -> str:
    """In BLEU, paired by seed; nothing over itself."""
    bleu, base = (column(records, one, rate, "bleu") for one in (run, control))
    return "" if run == control else signed({seed: value - base[seed] for seed, value in bleu.items()})


def short_table(records: list[Record]) -> str:
    """Some runs whose rate falls late: BLEU for each share of wrong pairs, and gains over the loss that they share."""
    shares = sorted({share_of(record) for record in records})
    head = [
        "run",
        *(title for share in shares for title in (f"BLEU, {100 * share:.0f} % wrong", f"over {ROBUST_LOSS}")),
    ]
    rows = []
    for run in SHORT:
        cells = [code(run)]
        for share in shares:
            those = [record for record in records if share_of(record) == share]
            bleu = column(those, run, LATE, "bleu")
            cells += [spread(list(bleu.values())), _gain(those, run, LATE, ROBUST_LOSS)] if bleu else ["", ""]
        rows.append(cells)
    return table(head, rows)


def column(records: list[Record], run: str, rate: str, key: str, clean_last: bool = False) -> dict[int, float]:
    """By seed, of those that have it."""
    chosen = [one for one in records if (one["run"], one["rate"], one["clean_last"]) == (run, rate, clean_last)]
    return {one["seed"]: one[key] for one in chosen if one[key] is not None}


if __name__ == "__main__":
    main()
