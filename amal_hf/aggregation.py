"""Many votes on a row made into one label, hard or soft, and put beside the row.

Soft labels are `(n, C)` and sum to one in every row; rows on which no rule votes are uniform. Hard labels are `(n,)`,
with -100 for those rows, which costs a student nothing.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from datasets import Dataset, List, Value
from numpy.typing import NDArray

from amal_hf.columns import replace_column
from amal_hf.label_column import label_feature
from amal_hf.random_numbers import put_back
from amal_hf.rules import all_votes, check_some_vote, check_votes
from amal_hf.shapes import ABSTAIN, IGNORED, VOTES


Aggregate: TypeAlias = Callable[[NDArray[np.integer], int, int], NDArray[Any]]
"""Votes `(n, m)`, C and a seed to labels: `(n,)` if hard, `(n, C)` if soft."""


def add_aggregated(rows: Dataset, column: str, aggregate: Aggregate, classes: int, seed: int = 0) -> Dataset:
    """The dataset with the votes on each row without a label as one label, in a column for `CrossEntropy`.

    It is -100 on rows that have a label of their own and on rows that nobody voted on: neither costs a student
    anything.

    Args:
        rows: with votes in `weak_labels`, and labels in `label` if there are any; -100, -1 and `None` are none.
        column: to write.
        aggregate: `majority_vote`, `label_model`, `dawid_skene`, or any function of their kind.
        classes: C.
        seed: for `aggregate`.

    Raises:
        ValueError: what `aggregate` does not take, or rows without votes.
    """
    votes = np.array(all_votes(rows, VOTES))
    found = np.array(aggregate(votes, classes, seed))
    found = found.astype(np.int64 if found.ndim == 1 else np.float64)
    found[_labelled(rows) | ~(votes != ABSTAIN).any(1)] = IGNORED
    feature = Value("int64") if found.ndim == 1 else List(Value("float64"))
    return replace_column(rows, column, found.tolist(), feature)


def label_by_votes(rows: Dataset, aggregate: Aggregate, classes: int, seed: int = 0) -> Dataset:
    """The dataset with the votes on each row without a label as its label, noisy as it is.

    Beside a teacher that has not seen the votes, `amal()` finds out how they go wrong:
    `losses=[CrossEntropy(), Distillation(teacher, has_seen_labels=False)]`.

    Args:
        rows: as of `add_aggregated`; a row without label and votes keeps none (-100).
        aggregate: one that gives a class for each row, as `majority_vote` does.
        classes: C.
        seed: for `aggregate`.

    Raises:
        ValueError: what `aggregate` does not take, or shares of classes in the place of one.
    """
    voted = np.array(add_aggregated(rows, "voted", aggregate, classes, seed).with_format(None)["voted"][:])
    if voted.ndim != 1:
        raise ValueError(
            f"label_by_votes: a label is one class, and {getattr(aggregate, '__name__', aggregate)} gives shares of "
            f"{classes}. Use majority_vote, or a function that makes one class of these shares by `hardened`."
        )
    labelled = _labelled(rows)
    own = rows.with_format(None)["label"][:] if labelled.any() else voted.tolist()
    labels = [label if known else int(vote) for known, label, vote in zip(labelled, own, voted, strict=True)]
    return replace_column(rows, "label", labels, label_feature(rows, "label"))


def _labelled(rows: Dataset) -> NDArray[np.bool_]:
    """`(n,)`: which rows have a label of their own."""
    if "label" not in rows.column_names:
        return np.zeros(len(rows), dtype=bool)
    return np.array([label is not None and label >= 0 for label in rows.with_format(None)["label"][:]])


def vote_shares(votes: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    """Soft labels: each class's share of the votes on a row.

    Args:
        votes: `(n, m)`, -1 for abstaining.
        classes: C.

    Raises:
        ValueError: votes outside the classes, or none at all.
    """
    check_votes(votes, classes)
    check_some_vote(votes)
    counts = (votes[:, :, None] == np.arange(classes)).sum(1).astype(np.float64)
    total = counts.sum(1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), 1 / classes)


def majority_vote(votes: NDArray[np.integer], classes: int, seed: int = 0) -> NDArray[np.int64]:
    """Hard labels by majority.

    A tie is settled by a draw among the classes that share the lead, seeded, so that neither low class numbers nor
    frequent classes are favoured. How ties and rows without votes are settled moves scores by several points.

    Args:
        votes: `(n, m)`, -1 for abstaining.
        classes: C.
        seed: of the draws.

    Raises:
        ValueError: as `vote_shares`.
    """
    return hardened(vote_shares(votes, classes), (votes != ABSTAIN).any(1), seed)


def label_model(votes: NDArray[np.integer], classes: int, seed: int = 0, epochs: int = 500) -> NDArray[np.float64]:
    """Soft labels by snorkel's `LabelModel`, which estimates how far each rule can be trusted from their agreement.

    Args:
        votes: `(n, m)`, -1 for abstaining; at least three rules.
        classes: C.
        seed: of its training.
        epochs: of its training; 500 as in snorkel's tutorials.

    Raises:
        ImportError: snorkel is not installed (extra `snorkel`).
        ValueError: as `vote_shares`; fewer than three rules; or all votes are for one class.
    """
    gpus = range(torch.cuda.device_count())
    try:
        with put_back(gpus):  # snorkel draws and seeds, and students are drawn afterwards
            from snorkel.labeling.model import LabelModel
    except ImportError as error:
        raise ImportError('label_model needs snorkel: pip install "amal_hf[snorkel]".') from error
    check_votes(votes, classes)
    check_some_vote(votes)
    if votes.shape[1] < 3:
        raise ValueError(f"label_model needs at least 3 rules to compare, got {votes.shape[1]}. Use vote_shares.")
    voted = np.unique(votes[votes != ABSTAIN])
    if len(voted) < 2:
        raise ValueError(
            f"label_model needs votes for at least two classes, but all are for class {int(voted[0])}. Add rules that "
            f"vote otherwise."
        )
    with put_back(gpus):
        model = LabelModel(cardinality=classes, verbose=False)
        model.fit(np.asarray(votes), n_epochs=epochs, seed=seed, progress_bar=False)
        soft: NDArray[np.float64] = np.array(model.predict_proba(np.asarray(votes)), dtype=np.float64)
    soft[~(votes != ABSTAIN).any(1)] = 1 / classes
    return soft


def hardened(soft: NDArray[np.floating], voted: NDArray[np.bool_], seed: int = 0) -> NDArray[np.int64]:
    """The likeliest class of every row, ties drawn; -100 where nothing was voted.

    Args:
        soft: `(n, C)`.
        voted: `(n,)` rows with a vote.
        seed: of the draws.
    """
    leads = np.isclose(soft, soft.max(1, keepdims=True))
    draws = np.random.default_rng(seed).random(soft.shape)
    return np.where(voted, np.where(leads, draws, -1.0).argmax(1), IGNORED).astype(np.int64)
