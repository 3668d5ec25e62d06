"""Planted label noise and imbalance."""

from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from amal_hf.noise import flip_by_instance, flip_labels, flip_to_background, make_imbalanced


def labelled(count, classes=3):
    """Numbered texts of few words, with labels in turn."""
    features = Features({"text": Value("string"), "label": ClassLabel(num_classes=classes)})
    texts = [f"word{i % 7} word{i % 11} text {i}" for i in range(count)]
    return Dataset.from_dict({"text": texts, "label": [i % classes for i in range(count)]}, features=features)


FLIPS = {"uniform": flip_labels, "background": flip_to_background, "by instance": flip_by_instance}
every_flip = pytest.mark.parametrize("flip", FLIPS.values(), ids=FLIPS)


@every_flip
def test_flips_are_exact_seeded_and_keep_the_truth(flip):
    """The promised share of rows is wrong, the same rows for the same seed, and the truth is on record."""
    rows = labelled(900)
    flipped = flip(rows, 0.4, seed=0)
    wrong = np.array(flipped["label"][:]) != np.array(flipped["true_label"][:])
    assert wrong.sum() == (240 if flip is flip_to_background else 360)
    assert flipped["true_label"][:] == rows["label"][:]
    assert flipped.features["true_label"] == flipped.features["label"] == rows.features["label"]
    assert flip(rows, 0.4, seed=0)["label"][:] == flipped["label"][:]
    assert flip(rows, 0.4, seed=1)["label"][:] != flipped["label"][:]
    assert flip(rows, 0.0, seed=0)["label"][:] == rows["label"][:]


@every_flip
def test_flips_refuse_what_they_cannot_flip(flip):
    """Rates beyond 1, columns without classes, rows without a label and a second flip would all corrupt quietly."""
    rows = labelled(10)
    features = Features({"text": Value("string"), "label": ClassLabel(num_classes=2)})
    unlabelled = Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]}, features=features)
    for dataset, rate, column in (
        (rows, 1.2, "label"),
        (rows, 0.2, "text"),
        (rows, 0.2, "lable"),
        (unlabelled, 0.5, "label"),
        (flip(rows, 0.2, 0), 0.2, "label"),
    ):
        with pytest.raises(ValueError, match="flip|ClassLabel|among"):
            flip(dataset, rate, 0, label_column=column)


def test_uniform_flips_reach_every_other_class():
    """No flip lands on the truth, and the last class is used as much as the others."""
    flipped = flip_labels(labelled(1000), 0.4, seed=0)
    pairs = Counter(zip(flipped["true_label"][:], flipped["label"][:], strict=True))
    assert all(40 < pairs[truth, label] < 95 for truth in range(3) for label in range(3) if truth != label)


def test_background_flips_go_to_one_class_only():
    """Rows of the background class keep their label; an unknown class is refused."""
    flipped = flip_to_background(labelled(300), 0.5, seed=0, background=2)
    changed = [new for new, old in zip(flipped["label"][:], flipped["true_label"][:], strict=True) if new != old]
    assert set(changed) == {2}
    with pytest.raises(ValueError, match="0 to 2, got 3"):
        flip_to_background(labelled(9), 0.5, seed=0, background=3)


def test_instance_flips_follow_the_text():
    """Two rows of the same text and class are both mistaken, and for the same class, or neither is."""
    rows = labelled(400)
    twice = Dataset.from_dict({name: rows[name][:] * 2 for name in rows.column_names}, features=rows.features)
    labels = flip_by_instance(twice, 0.4, seed=0)["label"][:]
    assert sum(a != b for a, b in zip(labels[:400], labels[400:], strict=True)) <= 1  # the last place may be a tie


def test_instance_flips_of_another_column():
    """A text goes by the name that it is called by."""
    rows = labelled(40)
    named = flip_by_instance(rows.rename_column("text", "headline"), 0.4, seed=0, text_columns=["headline"])
    assert named["label"][:] == flip_by_instance(rows, 0.4, seed=0)["label"][:]


@pytest.mark.parametrize(("classes", "expected"), [(2, [500, 25]), (3, [333, 74, 16])])
def test_imbalance_is_a_long_tail(classes, expected):
    """The rarest class has one row for 20 of the commonest, sizes fall by a constant factor, rows keep their order."""
    rows = labelled(1000, classes)
    kept = make_imbalanced(rows, 20, seed=0)
    counts = Counter(kept["label"][:])
    assert [counts[label] for label in range(classes)] == pytest.approx(expected, abs=1)
    numbers = [int(text.split()[-1]) for text in kept["text"]]
    assert numbers == sorted(numbers)


def test_imbalance_refuses_what_cannot_be():
    """A ratio below one, or one that leaves a class empty."""
    for ratio in (0.5, 1000.0):
        with pytest.raises(ValueError, match="ratio"):
            make_imbalanced(labelled(30), ratio, seed=0)
