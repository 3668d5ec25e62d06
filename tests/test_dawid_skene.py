"""Labels from annotators."""

import numpy as np
import pytest
from datasets import Dataset

from amal_hf.aggregation import add_aggregated, majority_vote
from amal_hf.dawid_skene import SMOOTHING, dawid_skene


def annotated(rows=400, classes=3, seed=0):
    """Truth, and the answers of two careful annotators and three who mix up classes 0 and 1; a third is missing."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, rows)
    swapped = np.array([1, 0, 2])[truth]
    votes = [np.where(rng.random(rows) < 0.95, truth, rng.integers(0, classes, rows)) for _ in range(2)]
    votes += [np.where(rng.random(rows) < 0.6, swapped, truth) for _ in range(3)]
    return truth, np.where(rng.random((rows, 5)) < 1 / 3, -1, np.stack(votes, 1))


def slow_step(belief, votes, classes):
    """One step of expectation maximisation, by loops."""
    prior, confusions = belief.mean(0), np.full((votes.shape[1], classes, classes), SMOOTHING)
    for row, answers in enumerate(votes):
        for annotator, answer in enumerate(answers):
            if answer >= 0:
                confusions[annotator, :, answer] += belief[row]
    confusions /= confusions.sum(-1, keepdims=True)
    joint = np.array(
        [
            [
                prior[c] * np.prod([confusions[a, c, answer] for a, answer in enumerate(answers) if answer >= 0])
                for c in range(classes)
            ]
            for answers in votes
        ]
    )
    return joint / joint.sum(1, keepdims=True)


def test_steps_are_those_of_the_definition():
    """Three steps from the shares of the votes, worked out by loops, in float64."""
    _, votes = annotated(rows=40)
    votes = votes[(votes >= 0).any(1)]
    expected = np.array([[(row == c).sum() / (row >= 0).sum() for c in range(3)] for row in votes])
    for _ in range(3):
        expected = slow_step(expected, votes, 3)
    np.testing.assert_allclose(dawid_skene(votes, 3, iterations=3), expected, rtol=1e-9)


def test_mistakes_that_are_always_the_same_are_seen_through():
    """Three of five mix up two classes more often than not: the majority follows them, their tables tell."""
    truth, votes = annotated()
    found = dawid_skene(votes, 3)
    assert (found.argmax(1) == truth).mean() > (majority_vote(votes, 3) == truth).mean() + 0.1
    np.testing.assert_allclose(found.sum(1), 1)
    np.testing.assert_array_equal(found[(votes < 0).all(1)], 1 / 3)


def test_it_is_exchanged_for_other_aggregations():
    """The same call as for a majority."""
    rows = Dataset.from_dict({"weak_labels": [[0, 0, 1], [1, 1, 0], [-1, -1, -1]], "label": [-100] * 3})
    column = add_aggregated(rows, "labels_of_annotators", dawid_skene, 2)["labels_of_annotators"][:]
    assert column[2] == [-100, -100]
    assert np.array(column[:2]).argmax(1).tolist() == [0, 1]


def test_rules_of_one_class_are_refused():
    """Their tables of confusions would be all one column, and the classes run into one another."""
    votes = np.array([[0, -1, 1], [0, 2, -1], [-1, 2, 0]])
    with pytest.raises(ValueError, match="2 of 3 voters.*only ever give one answer.*majority_vote"):
        dawid_skene(votes, 3)
