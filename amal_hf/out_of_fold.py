"""A teacher of seconds: what a softmax regression over frozen features answers for rows that it was not fitted to."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amal_hf.labelled_features import read_labelled, standardised
from amal_hf.shapes import Logits


SPREAD = 2.0
"""Standard deviation of a logit before any label is seen: scikit-learn's `C = 0.01` for 384 features. Not tuned; with
`C = 0.1` about as many rows were right (`benchmarks/LOG.md`)."""

FLAT, MOST_ITERATIONS = 1e-5, 300
"""Where L-BFGS stops: at a gradient of the mean loss below this, or after so many iterations."""


def out_of_fold_logits(
    features: Any, labels: Any, *, classes: int | None = None, folds: int = 5, seed: int = 0
) -> Logits:
    """What the class of each row is by all but its own label, `(N, C)`: a teacher that repeats nothing by heart.

    Rows are dealt into folds, those of a class evenly. Each fold is answered by a softmax regression that was fitted
    to the others, rows without a label by one that was fitted to all. Features are standardised by row; coefficients
    have a normal prior, under which a logit has standard deviation two.

    Args:
        features: `(N, d)`, one row a text, as of `embed_texts`; array, tensor, table or column of a dataset.
        labels: `(N,)`, class numbers; a negative one is none.
        classes: C; by default one more than the highest label.
        folds: how many, two or more.
        seed: of the deal.

    Raises:
        TypeError: what is no array of numbers.
        ValueError: other shapes, features that are not finite, fewer labels than folds or fewer folds than two, or a
            label that is no class.

    References:
        Stone 1974, "Cross-Validatory Choice and Assessment of Statistical Predictions",
        doi:10.1111/j.2517-6161.1974.tb00994.x.
    """
    rows, given = read_labelled("out_of_fold_logits", "features", features, labels)
    known = given >= 0
    _check(given[known], classes, folds)
    count = max(2, 1 + int(given.max())) if classes is None else classes
    table, fold = standardised(rows), dealt(given, folds, seed)
    logits = rows.new_empty(len(rows), count)
    for number in fold.unique().tolist():
        others, asked = known & (fold != number), fold == number
        logits[asked] = _answers(table[others], given[others], table[asked], count)
    return logits


def dealt(labels: Tensor, folds: int, seed: int) -> Tensor:
    """`(N,)`: the fold of each row, those of a class one after another; -1 without a label."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    order = order[labels[order] >= 0]
    fold = torch.full_like(labels, -1)
    fold[order] = torch.arange(len(order)) % folds
    return fold


def _answers(table: Tensor, labels: Tensor, asked: Tensor, classes: int) -> Logits:
    """`(A, C)`: logits of some rows, `(A, d)`, by the most probable coefficients for the others, `(N, d)`."""
    weight = table.new_zeros(table.shape[1], classes, requires_grad=True)
    bias = table.new_zeros(classes, requires_grad=True)
    precision = table.shape[1] / SPREAD**2 / len(labels)
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=MOST_ITERATIONS, tolerance_grad=FLAT, line_search_fn="strong_wolfe"
    )

    def cost() -> Tensor:
        search.zero_grad()
        found = F.cross_entropy(table @ weight + bias, labels) + precision / 2 * weight.square().sum()
        found.backward()
        return found

    search.step(cost)
    with torch.no_grad():
        return asked @ weight + bias


def _check(labels: Tensor, classes: int | None, folds: int) -> None:
    if not 2 <= folds <= len(labels):
        raise ValueError(
            f"out_of_fold_logits: expected from 2 folds to as many as there are labels, got {folds} and {len(labels)}."
        )
    if classes is not None and int(labels.max()) >= classes:
        raise ValueError(
            f"out_of_fold_logits: a label is {int(labels.max())}, and of {classes} classes the last is {classes - 1}. "
            f"Leave `classes` out, or raise it."
        )
