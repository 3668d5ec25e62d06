"""How many labels are wrong, and which? `label_weights()` beside confident learning, over frozen features.

    python benchmarks/wrong_labels.py --data PATH/trec PATH/banking77 PATH/sst2

Both are asked about the same rows of MiniLM's embeddings. `label_weights()` has 300 clean rows beside them, ten a
class if that is more; confident learning has none, and needs cleanlab and scikit-learn.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from bodies import FrozenBody
from first_weights import judged
from json_lines import Record, append, read
from markdown_tables import table
from numpy.typing import NDArray
from quality import quiet
from settings import SPOILT, Place, Spoil, over_features
from spread import spread
from suspects import unseen_answers, unsuspected

from amal_hf.noise import flip_labels
from amal_hf.shapes import TRUE_LABEL


RESULTS = Path(__file__).parent / "results" / "wrong_labels.jsonl"


def evenly(rate: float) -> Spoil:
    """A share of the labels is wrong, each other class as likely."""
    return lambda rows, seed: flip_labels(rows, rate, seed)


ERRORS: dict[str, Spoil] = {
    "nothing wrong": evenly(0.0),
    "nothing wrong, classes 1:20": SPOILT["imbalance"],
    "5 % evenly": evenly(0.05),
    "10 % evenly": evenly(0.1),
    "20 % evenly": evenly(0.2),
    "40 % evenly": evenly(0.4),
    "60 % evenly": evenly(0.6),
    "40 % swallowed by one class": SPOILT["background40"],
    "40 % alike in like texts": SPOILT["instance40"],
}
JUDGES = ("label_weights()", "confident learning")
SAID = ("wrong", "wrong of what is kept", "right ones kept")
ERROR = "standard error"
"""Of the share, as `label_weights()` itself has it."""


def main() -> None:
    """Ask both about all errors that are not among the results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of data sets")
    parser.add_argument("--errors", nargs="+", choices=list(ERRORS), default=list(ERRORS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    quiet(workers=2)  # one thread: two calls with other data share a machine
    done = {(record["data"], record["errors"], record["seed"]) for record in read(options.results)}
    for data in options.data:
        for seed in options.seeds:
            for errors in options.errors:
                if (data.name, errors, seed) not in done:
                    record = found(data, errors, seed)
                    append(options.results, record)
                    print(*record.values(), flush=True)


def found(data: Path, errors: str, seed: int) -> Record:
    """What both judges say of the same labels."""
    bench, features = over_features(Place(data, FrozenBody.kind, "clean", seed))
    train = ERRORS[errors](bench.splits["train"], seed)
    labels = np.array(train["label"][:])
    right = labels == np.array(train[TRUE_LABEL][:]) if TRUE_LABEL in train.column_names else np.ones_like(labels) > 0
    ours = judged(features, train, bench.splits["meta"], seed)
    theirs = unsuspected(labels, unseen_answers(features[np.array(train["row"][:])].numpy(), labels))
    return {
        "data": data.name,
        "errors": errors,
        "seed": seed,
        "wrong": round(float(1 - right.mean()), 4),
        JUDGES[0]: verdict(ours.wrong, ours.probably_right().numpy(), right) | {ERROR: round(ours.wrong_error, 4)},
        JUDGES[1]: verdict(1 - theirs.mean(), theirs, right),
    }


def verdict(told: float, kept: NDArray[np.bool_], right: NDArray[np.bool_]) -> dict[str, float]:
    """How many were said to be wrong, how many of the labels that are kept are, and how many right ones are kept."""
    values = told, 1 - right[kept].mean(), kept[right].mean()
    return {name: round(float(value), 4) for name, value in zip(SAID, values, strict=True)}


def results_table(records: Sequence[Record]) -> str:
    """A line for each data set and kind of errors, in %."""
    return _table(["data", "errors"], records, lambda one: (one["data"], one["errors"]))


def short_table(records: Sequence[Record]) -> str:
    """A line for each kind of errors, over all data sets that have as many seeds."""
    return _table(["errors"], records, lambda one: (one["errors"],))


def _table(names: list[str], records: Sequence[Record], line: Callable[[Record], tuple[str, ...]]) -> str:
    lines: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda one: list(ERRORS).index(one["errors"])):
        lines[line(record)].append(record)
    rows = [[*place, *_line(lines[place])] for place in sorted(lines, key=lambda place: place[:-1])]
    judged = [f"`{judge}`: {what}" if "()" in judge else f"{judge}: {what}" for judge in JUDGES for what in SAID]
    return table([*names, "wrong", *judged], rows)


def _line(several: Sequence[Record]) -> list[str]:
    """Means over the seeds in %, of seeds that are means over data sets."""
    seeds: dict[int, list[Record]] = defaultdict(list)
    for record in several:
        seeds[record["seed"]].append(record)
    wrong = f"{100 * np.mean([one['wrong'] for one in several]):.1f}"
    means = [[np.mean([100 * one[j][w] for one in same]) for same in seeds.values()] for j in JUDGES for w in SAID]
    return [wrong, *(spread(values) for values in means)]


if __name__ == "__main__":
    main()
