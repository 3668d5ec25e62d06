"""Many rules over many rows: how long it takes to apply them, to aggregate their votes, and to train on them.

    python benchmarks/many_rules.py                   # 164 rules, 20,000 rows; a few minutes on two cores

Prints seconds and, for training, how much the process grows from the 50th step to the last: nothing may pile up.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback, set_seed

from amal_hf import AMALArguments, AMALTrainer, CrossEntropy, LossNetwork, RuleLosses, amal
from amal_hf.aggregation import majority_vote
from amal_hf.rules import apply_rules, keyword_rule
from amal_hf.shapes import VOTES


RESULTS = Path(__file__).parent / "results" / "many_rules.json"
CLASSES, WORDS, LENGTH = 9, 2000, 24
Result = TypeVar("Result")


class Growth(TrainerCallback):
    """The process's peak after 50 steps and at the end."""

    def __init__(self) -> None:
        self.peaks: list[int] = []

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        """Take note."""
        self.peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    """Measure everything once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", type=int, default=164)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    rows = texts(options.rows)
    rules = [
        keyword_rule([f"w{7 * j % WORDS}", f"w{11 * j % WORDS}"], j % CLASSES, name=f"r{j}")
        for j in range(options.rules)
    ]
    names = [str(number) for number in range(CLASSES)]
    applying, voted = timed(lambda: apply_rules(rows, rules, names))
    votes = np.array(voted[VOTES][:])
    aggregating, _ = timed(lambda: majority_vote(votes, CLASSES))
    growth = Growth()
    plain, _ = timed(lambda: train(voted, None, options.steps, None))
    learned, _ = timed(lambda: train(voted, [rule.name for rule in rules], options.steps, growth))
    found = {
        "rules": options.rules,
        "rows": options.rows,
        "coverage": float((votes >= 0).any(1).mean()),
        "applying_seconds": applying,
        "majority_seconds": aggregating,
        "training_seconds_labels_only": plain,
        "training_seconds_amal": learned,
        "growth_mib": (growth.peaks[-1] - growth.peaks[49]) / 1024,
        "torch": torch.__version__,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def timed(action: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds, and what came of it."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def texts(count: int, seed: int = 0) -> Dataset:
    """Random words, with a token id each."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, WORDS, (count, LENGTH))
    columns = {
        "text": [" ".join(f"w{i}" for i in row) for row in ids],
        "input_ids": (ids + 5).tolist(),
        "label": rng.integers(0, CLASSES, count).tolist(),
    }
    features = {"text": Value("string"), "label": ClassLabel(names=[str(k) for k in range(CLASSES)])}
    rows = Dataset.from_dict(columns)
    return rows.cast(Features({**rows.features, **features}))


def train(rows: Dataset, rules: list[str] | None, steps: int, growth: Growth | None) -> None:
    """A small student on labels alone, or on all rules with learned weights."""
    set_seed(0)
    config = BertConfig(vocab_size=WORDS + 5, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    config.num_labels = CLASSES
    trainer = AMALTrainer(
        model=BertForSequenceClassification(config),
        args=AMALArguments(
            output_dir=".cache/many_rules",
            max_steps=steps,
            per_device_train_batch_size=32,
            save_strategy="no",
            write_figures=False,
            logging_steps=100,
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows,
        meta_dataset=texts(200, 1) if rules else None,
        losses=[CrossEntropy(), RuleLosses(rules)] if rules else [CrossEntropy()],
        method=amal(LossNetwork()) if rules else None,
        callbacks=[growth] if growth else None,
    )
    trainer.train()


if __name__ == "__main__":
    main()
