"""Wrong labels and uneven classes, planted on purpose: what methods for noisy data are tried on.

    flip_labels           any other class, evenly ("uniform flip" in arXiv:1803.09050)
    flip_to_background    one class that swallows rows of all others ("background flip" there)
    flip_by_instance      texts that look alike get alike mistakes
    make_imbalanced       labels stay right, classes become rare: 1:n, long-tailed for more than two

All are seeded, change an exact number of rows where a rate is given, and keep the truth in column `true_label`.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from datasets import ClassLabel, Dataset

from amal_hf.columns import find_text_columns, replace_column
from amal_hf.shapes import TRUE_LABEL
from amal_hf.splits import normalise_text


HASHED_WORDS = 512
"""Width of the bag of words that `flip_by_instance` reads texts through."""


def flip_labels(dataset: Dataset, rate: float, seed: int, label_column: str = "label") -> Dataset:
    """Gives a share of the rows a wrong label, each of the other classes as likely.

    Args:
        dataset: `label_column` must be a `ClassLabel` of at least two classes, with no unlabelled rows.
        rate: exactly `round(rate * len(dataset))` rows change.
        seed: the same seed flips the same rows to the same classes.
        label_column: the column to change.

    Raises:
        ValueError: if the rate is outside [0, 1], the column cannot be flipped, or the rows already have a truth.
    """
    truth, classes = _truth(dataset, rate, label_column)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(truth))[: round(rate * len(truth))]
    labels = truth.copy()
    labels[chosen] = (truth[chosen] + rng.integers(1, classes, size=len(chosen))) % classes
    return _with_noise(dataset, label_column, labels, truth)


def flip_to_background(
    dataset: Dataset, rate: float, seed: int, background: int = 0, label_column: str = "label"
) -> Dataset:
    """Gives a share of the rows outside class `background` that class as their label.

    Args:
        dataset: as for `flip_labels`.
        rate: exactly `round(rate * rows of other classes)` rows change.
        seed: the same seed flips the same rows.
        background: the class that swallows them.
        label_column: the column to change.

    Raises:
        ValueError: as `flip_labels`; or there is no such class.
    """
    truth, classes = _truth(dataset, rate, label_column)
    if not 0 <= background < classes:
        raise ValueError(f"background must be a class from 0 to {classes - 1}, got {background}.")
    others = np.random.default_rng(seed).permutation(np.flatnonzero(truth != background))
    labels = truth.copy()
    labels[others[: round(rate * len(others))]] = background
    return _with_noise(dataset, label_column, labels, truth)


def flip_by_instance(
    dataset: Dataset,
    rate: float,
    seed: int,
    label_column: str = "label",
    text_columns: Sequence[str] | None = None,
) -> Dataset:
    """Gives a share of the rows a wrong label that depends on their text.

    Every text is read as a bag of hashed words; a random linear map for each true class scores the other classes, and
    the rows whose best wrong class scores highest are the ones that get it. Texts that look alike are thus mistaken
    alike, as by a person who has misunderstood something.

    Args:
        dataset: as for `flip_labels`, with a column of text.
        rate: exactly `round(rate * len(dataset))` rows change.
        seed: of the linear maps.
        label_column: the column to change.
        text_columns: that hold the text. Default: found by name, see `find_text_columns`.

    Raises:
        ValueError: as `flip_labels`; or no text is found.
    """
    truth, classes = _truth(dataset, rate, label_column)
    maps = np.random.default_rng(seed).normal(size=(classes, HASHED_WORDS, classes))
    words = _hashed_words(dataset, text_columns or find_text_columns(dataset.column_names))
    scores = np.stack([row @ maps[label] for row, label in zip(words, truth, strict=True)])
    scores[np.arange(len(truth)), truth] = -np.inf
    likeliest = np.argsort(-scores.max(1), kind="stable")[: round(rate * len(truth))]
    labels = truth.copy()
    labels[likeliest] = scores[likeliest].argmax(1)
    return _with_noise(dataset, label_column, labels, truth)


def make_imbalanced(dataset: Dataset, ratio: float, seed: int, label_column: str = "label") -> Dataset:
    """Leaves rows out so that the rarest class has one row for `ratio` rows of the commonest.

    Between the two, sizes fall by a constant factor from class to class (a long tail), in the order of their sizes
    before; as many rows are kept as this allows, in their order.

    Args:
        dataset: as for `flip_labels`.
        ratio: at least 1.
        seed: the same seed keeps the same rows.
        label_column: the column of classes.

    Raises:
        ValueError: a ratio below 1, or a class that would be left without a row.
    """
    if not ratio >= 1:
        raise ValueError(f"The ratio of the commonest to the rarest class must be at least 1, got {ratio}.")
    truth, classes = _truth(dataset, 0.0, label_column)
    counts = np.bincount(truth, minlength=classes)
    order = np.argsort(-counts, kind="stable")
    shares = ratio ** -(np.arange(classes) / (classes - 1))
    largest = (counts[order] / shares).min()
    wanted = np.floor(largest * shares + 1e-9).astype(int)
    if not wanted.all():
        raise ValueError(
            f"With classes of {counts.tolist()} rows, a ratio of {ratio} would leave one without any row."
        )
    rng = np.random.default_rng(seed)
    kept = [
        rng.permutation(np.flatnonzero(truth == label))[:count] for label, count in zip(order, wanted, strict=True)
    ]
    return dataset.select(np.sort(np.concatenate(kept)))


def _truth(dataset: Dataset, rate: float, column: str) -> tuple[np.ndarray, int]:
    """The labels as they are, and the number of classes."""
    if not 0 <= rate <= 1:
        raise ValueError(f"The rate of flipped labels should be between 0 and 1, but is {rate}.")
    if column not in dataset.column_names:
        raise ValueError(f"Column {column!r} is not among the dataset's columns {dataset.column_names}.")
    feature = dataset.features[column]
    if not isinstance(feature, ClassLabel) or (feature.num_classes or 0) < 2:
        raise ValueError(f"Column {column!r} should be a ClassLabel of two or more classes, but is {feature}.")
    if TRUE_LABEL in dataset.column_names:
        raise ValueError(f"The dataset already has a column {TRUE_LABEL!r}: flipping again would lose the truth.")
    classes = int(feature.num_classes)
    truth = np.asarray(dataset.with_format(None)[column][:], dtype=np.int64)
    if ((truth < 0) | (truth >= classes)).any():
        raise ValueError(f"Column {column!r} has rows without a label (-1). Remove them before flipping labels.")
    return truth, classes


def _with_noise(dataset: Dataset, column: str, labels: np.ndarray, truth: np.ndarray) -> Dataset:
    feature = dataset.features[column]
    return replace_column(
        replace_column(dataset, column, labels.tolist(), feature), TRUE_LABEL, truth.tolist(), feature
    )


def _hashed_words(dataset: Dataset, text_columns: Sequence[str]) -> np.ndarray:
    """`(N, HASHED_WORDS)`, rows of length one."""
    table = np.zeros((len(dataset), HASHED_WORDS))
    columns = dataset.with_format(None).select_columns(list(text_columns))
    for row, texts in enumerate(columns):
        for text in texts.values():
            for word in normalise_text(text).split():
                # Python's own hash differs from run to run.
                table[row, int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) % HASHED_WORDS] += 1
    return table / np.linalg.norm(table, axis=1, keepdims=True).clip(min=1)
