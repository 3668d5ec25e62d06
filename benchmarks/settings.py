"""The settings of the quality benchmark: what is wrong with the training rows, and what is known for certain.

clean        nothing is wrong
flipped20    20 % of the labels are wrong, evenly; the teacher was trained on these labels
flipped40    the same with 40 %
few          40 % wrong, and ten clean rows a class instead of 300 in all
background40 40 % of the rows of all other classes have the first class as their label
instance40   40 % of the labels are wrong, in texts that look alike in like ways
teacher30    labels are right; on 30 % of the rows the teacher's logits are those of another row
imbalance    the rarest class has one row for 20 of the commonest; the teacher was trained on these rows
rules        few labelled rows; on the others rules vote (`weak_splits`, half of the validation set is the meta set);
             the teacher was trained on all clean rows, those of the meta set among them

Clean rows are taken out of the training set (300, or ten a class if that is more); they are the meta set of what
learns weights, and training rows of the runs that say so. Dev and test are the set's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from bodies import Body, FrozenBody, LayeredBody
from datasets import Dataset, DatasetDict, concatenate_datasets
from numpy.typing import NDArray
from torch import Tensor

from amal_hf.aggregation import add_aggregated, label_model, majority_vote
from amal_hf.data import read_dataset
from amal_hf.demo import demo_teacher_path
from amal_hf.noise import flip_by_instance, flip_labels, flip_to_background, make_imbalanced
from amal_hf.shapes import ABSTAIN, IGNORED, TRUE_LABEL, VOTES
from amal_hf.splits import split_dataset
from amal_hf.weak_splits import weak_splits


CLEAN_ROWS, FEW_A_CLASS, MOST_ROWS, MOST_DEV_ROWS = 300, 10, 10_300, 1000
RULES = "rules"

Spoil = Callable[[Dataset, int], Dataset]
SPOILT: dict[str, Spoil] = {
    "clean": lambda rows, seed: rows,
    "flipped20": lambda rows, seed: flip_labels(rows, 0.2, seed),
    "flipped40": lambda rows, seed: flip_labels(rows, 0.4, seed),
    "few": lambda rows, seed: flip_labels(rows, 0.4, seed),
    "background40": lambda rows, seed: flip_to_background(rows, 0.4, seed),
    "instance40": lambda rows, seed: flip_by_instance(rows, 0.4, seed),
    "teacher30": lambda rows, seed: rows,
    "imbalance": lambda rows, seed: make_imbalanced(rows, 20, seed),
}
SETTINGS = [*SPOILT, RULES]
TAUGHT_AS = {"teacher30": "clean"}
"""Whose teacher a setting takes, where it is not its own."""
TRUSTED = "trusted"
"""Column: whether a row's label is known to be right."""
OTHER_ROWS = ("few", "imbalance", RULES)
"""Settings whose training or clean rows are not those of the others."""


@dataclass(frozen=True)
class Place:
    """Where runs are compared with one another.

    Attributes:
        data: folder of the data set.
        student: "frozen", or a number of layers, and a learning rate if it is not the usual one, as "2@4e-4".
        setting: one of `SETTINGS`.
        seed: of splits, errors, and the student.
        model: folder of MiniLM; `None` for that of the demo package.
        clean_rows: how many there are, or ten a class if that is more.
    """

    data: Path
    student: str
    setting: str
    seed: int
    model: Path | None = None
    clean_rows: int = CLEAN_ROWS


@dataclass(frozen=True)
class Bench:
    """All that the runs at one place share.

    Attributes:
        splits: encoded rows: train, meta, validation, test, and labelled with rules.
        body: what students are made of.
        classes: C.
        metric: what is reported, and what dev chooses by.
        right: `(N,)`, which training labels are right; `None` where that is no question.
        rules: how many rules vote.
    """

    place: Place
    splits: DatasetDict
    body: Body
    classes: int
    metric: str
    right: NDArray[np.bool_] | None
    rules: int

    @property
    def clean(self) -> tuple[str, ...]:
        """The splits whose labels are known to be right, and which may be trained on."""
        return ("labelled", "meta") if self.rules else ("meta",)

    def rows(self, names: tuple[str, ...]) -> Dataset:
        """Training rows of several splits, `train` among them; on clean ones beside it no rule votes."""
        parts = [self.splits[name] for name in names]
        if len(parts) == 1:
            return parts[0]
        columns = self.splits["train"].column_names
        silent = {VOTES: [ABSTAIN] * self.rules, "majority": IGNORED, "label_model": [float(IGNORED)] * self.classes}
        missing = {name: value for name, value in silent.items() if name in columns}
        whole = [
            rows.map(lambda _: missing) if missing and "majority" not in rows.column_names else rows for rows in parts
        ]
        shared = [name for name in columns if all(name in rows.column_names for rows in whole)]
        features = whole[0].select_columns(shared).features
        return concatenate_datasets([rows.select_columns(shared).cast(features) for rows in whole])


def new_bench(place: Place) -> Bench:
    """Read, split and spoil the data, and encode all texts."""
    data = _read(place.data)
    body = _body(place, data)
    classes = data["train"].features["label"].num_classes
    splits = _with_rules(data, place.seed) if place.setting == RULES else _planted(data, place)
    encoded = DatasetDict({name: marked(name, body.encode(rows)) for name, rows in splits.items()})
    train = splits["train"]
    right = np.array(train["label"]) == np.array(train[TRUE_LABEL]) if TRUE_LABEL in train.column_names else None
    if place.setting == RULES or (right is not None and right.all()):
        right = None
    rules = len(train[0][VOTES]) if place.setting == RULES else 0
    return Bench(place, encoded, body, classes, _metric(place), right, rules)


def over_features(place: Place) -> tuple[Bench, Tensor]:
    """The same rows for a head over frozen embeddings, and a table of these, `(R, d)`."""
    bench = new_bench(replace(place, student=FrozenBody.kind))
    if not isinstance(bench.body, FrozenBody):
        raise TypeError(f"expected embeddings, got {type(bench.body).__name__}")
    return bench, bench.body.table


def marked(name: str, rows: Dataset) -> Dataset:
    """Rows of a split, with whether their labels are known to be right."""
    return rows.add_column(TRUSTED, [name != "train"] * len(rows))


def _metric(place: Place) -> str:
    if place.data.name == "sms":
        return "f1"
    return "macro_f1" if place.setting == "imbalance" else "accuracy"


def _read(folder: Path) -> DatasetDict:
    """The data set, its largest splits cut."""
    data = read_dataset(folder)
    limits = {"train": MOST_ROWS, "validation": MOST_DEV_ROWS}
    return DatasetDict(
        {name: rows.select(range(min(limits.get(name, len(rows)), len(rows)))) for name, rows in data.items()}
    )


def _body(place: Place, data: DatasetDict) -> Body:
    model = place.model or demo_teacher_path()
    texts = [text for rows in data.values() for text in rows["text"]]
    if place.student == FrozenBody.kind:
        return FrozenBody(place.data.name, texts, model)
    layers, _, rate = place.student.partition("@")
    return LayeredBody(int(layers), texts, model, float(rate or LayeredBody.learning_rate))


def _planted(data: DatasetDict, place: Place) -> DatasetDict:
    few = FEW_A_CLASS * data["train"].features["label"].num_classes
    clean = few if place.setting == "few" else max(place.clean_rows, few)
    parts = split_dataset(data["train"], {"meta": clean}, place.seed)
    train = SPOILT[place.setting](parts["train"], place.seed)
    return DatasetDict(train=train, meta=parts["meta"], validation=data["validation"], test=data["test"])


def _with_rules(data: DatasetDict, seed: int) -> DatasetDict:
    classes = data["train"].features["label"].num_classes
    splits = weak_splits(data, seed=seed, drop_overlap=True)
    splits["train"] = add_aggregated(splits["train"], "majority", majority_vote, classes, seed)
    if find_spec("snorkel"):
        splits["train"] = add_aggregated(splits["train"], "label_model", label_model, classes, seed)
    return splits
