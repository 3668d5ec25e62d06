"""Confident learning: which labels does a classifier doubt that has not seen them? Needs cleanlab and scikit-learn."""

from importlib.util import find_spec

import numpy as np
from bodies import CACHE
from kept_arrays import kept_array
from numpy.typing import NDArray
from settings import Bench, over_features


def available() -> bool:
    """Whether cleanlab is installed."""
    return find_spec("cleanlab") is not None


def beliefs(bench: Bench) -> NDArray[np.float64]:
    """`(N, C)`: what a logistic regression over frozen embeddings gives each class of rows that it was not fitted on.

    Five folds, kept in a file.
    """
    place = bench.place
    file = CACHE / "suspects" / f"{place.data.name}-{place.setting}-{place.seed}.npy"
    return kept_array(file, lambda: _beliefs(bench))


def _beliefs(bench: Bench) -> NDArray[np.float64]:
    own, table = over_features(bench.place)
    rows = own.splits["train"]
    return unseen_answers(table[np.array(rows["row"][:])].numpy(), np.array(rows["label"][:]))


def unseen_answers(features: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """`(N, C)`: what the regression gives each class of rows that it was not fitted on."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    found = cross_val_predict(LogisticRegression(C=0.01, max_iter=300), features, labels, cv=5, method="predict_proba")
    return np.asarray(found)


def confidence(bench: Bench) -> NDArray[np.float64]:
    """`(N,)`: cleanlab's self-confidence, the probability of the label as it stands."""
    from cleanlab.rank import get_label_quality_scores

    labels = np.array(bench.splits["train"]["label"][:])
    return np.asarray(get_label_quality_scores(labels, beliefs(bench), method="self_confidence"))


def kept_rows(bench: Bench) -> NDArray[np.bool_]:
    """`(N,)`: the labels that cleanlab does not suspect, by its own defaults."""
    return unsuspected(np.array(bench.splits["train"]["label"][:]), beliefs(bench))


def unsuspected(labels: NDArray[np.int64], believed: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The same of any labels, `(N,)`, by what is believed of them, `(N, C)`.

    References:
        Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", arXiv:1911.00068.
    """
    from cleanlab.filter import find_label_issues

    return ~np.asarray(find_label_issues(labels, believed, n_jobs=1))
