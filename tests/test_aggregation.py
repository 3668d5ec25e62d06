"""Votes made into labels."""

import random
import sys

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import set_seed

from amal_hf.aggregation import add_aggregated, label_by_votes, label_model, majority_vote, vote_shares


VOTES = np.array([[0, 0, 1], [2, -1, -1], [-1, -1, -1], [0, 1, -1]])


def test_soft_labels_are_shares_of_the_votes():
    """Rows sum to one; a row without a vote is uniform."""
    third = 1 / 3
    expected = [[2 * third, third, 0], [0, 0, 1], [third, third, third], [0.5, 0.5, 0]]
    np.testing.assert_allclose(vote_shares(VOTES, 3), expected)


def test_majority_is_drawn_among_the_leaders():
    """A clear majority wins, a row without votes has no label, and a tie goes either way but never elsewhere."""
    drawn = np.array([majority_vote(VOTES, 3, seed) for seed in range(40)])
    assert (drawn[:, :3] == [0, 2, -100]).all()
    assert set(drawn[:, 3]) == {0, 1}
    assert (majority_vote(VOTES, 3, 7) == majority_vote(VOTES, 3, 7)).all()


def test_aggregated_votes_stand_beside_rows_without_a_label():
    """A row with a label of its own and a row nobody voted on get -100, hard or soft; the others what was voted."""
    votes = [[0, 0, 1], [2, -1, -1], [-1, -1, -1], [1, 1, -1]]
    rows = Dataset.from_dict({"weak_labels": votes, "label": [1, -100, -100, -100]})
    hard = add_aggregated(rows, "majority", majority_vote, 3)
    assert hard["majority"][:] == [-100, 2, -100, 1]
    soft = add_aggregated(hard, "shares", lambda votes, classes, seed: vote_shares(votes, classes), 3)
    assert soft["shares"][:] == [[-100] * 3, [0, 0, 1], [-100] * 3, [0, 1, 0]]
    assert soft["majority"][:] == hard["majority"][:]


@pytest.mark.parametrize("labels", [[-100] * 4, [-1] * 4, [None] * 4, None])
def test_rows_without_a_label_are_known_however_they_say_so(labels):
    """-100, the -1 of `read_dataset`, nothing, or no column at all, as where only a crowd has voted."""
    votes = {"weak_labels": [[0, 0], [2, -1], [-1, -1], [1, 1]]}
    rows = Dataset.from_dict(votes if labels is None else {**votes, "label": labels})
    assert add_aggregated(rows, "majority", majority_vote, 3)["majority"][:] == [0, 2, -100, 1]


@pytest.mark.parametrize("labels", [[2, -100, -1, None], None])
def test_votes_become_labels_where_there_are_none(labels):
    """A known label stays, and a row without a vote keeps none."""
    votes = {"weak_labels": [[0, 0], [1, 1], [-1, -1], [0, -1]], "text": list("abcd")}
    rows = Dataset.from_dict(votes if labels is None else {**votes, "label": labels})
    found = label_by_votes(rows, majority_vote, 3)
    assert found["label"][:] == [0 if labels is None else 2, 1, -100, 0]
    assert set(found.column_names) == {"weak_labels", "text", "label"} and found["text"][:] == list("abcd")


def test_voted_labels_have_the_names_of_their_classes():
    """By which a teacher is matched."""
    classes = ClassLabel(names=["a", "b", "c"])
    features = Features({"label": classes, "weak_labels": List(Value("int64"))})
    rows = Dataset.from_dict({"label": [-1, 1], "weak_labels": [[2, 2], [0, 0]]}, features=features)
    found = label_by_votes(rows, majority_vote, 3)
    assert found["label"][:] == [2, 1] and found.features["label"] == classes


def test_shares_are_no_label():
    """They would have to be made into one class first."""
    rows = Dataset.from_dict({"weak_labels": [[0, 1]]})
    with pytest.raises(ValueError, match="a label is one class, and <lambda> gives shares of 2"):
        label_by_votes(rows, lambda votes, classes, seed: vote_shares(votes, classes), 2)


def test_rules_that_say_nothing_have_no_majority():
    """There is nothing to be made into a label."""
    with pytest.raises(ValueError, match="All rules abstain"):
        majority_vote(np.full((4, 3), -1), 2)


def test_votes_outside_the_classes_are_refused():
    """They would be counted for nothing."""
    with pytest.raises(ValueError, match="row 1 has 2 by rule 0"):
        vote_shares(VOTES, 2)


def test_label_model_needs_snorkel(monkeypatch):
    """Said with what to install."""
    monkeypatch.setitem(sys.modules, "snorkel.labeling.model", None)
    with pytest.raises(ImportError, match=r"amal_hf\[snorkel\]"):
        label_model(VOTES, 3)


def test_label_model_trusts_rules_by_their_agreement():
    """Three rules right nine times in ten outvote two that say anything; what snorkel cannot do is refused before."""
    pytest.importorskip("snorkel", reason="the extra is not installed")
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 2000)
    good = [np.where(rng.random(2000) < 0.9, truth, 1 - truth) for _ in range(3)]
    votes = np.stack([*good, rng.integers(0, 2, 2000), rng.integers(0, 2, 2000)], 1)
    set_seed(1)
    drawn = [random.random(), np.random.rand(), float(torch.rand(1))]
    set_seed(1)
    assert (label_model(votes, 2).argmax(1) == truth).mean() > (majority_vote(votes, 2) == truth).mean()
    assert [random.random(), np.random.rand(), float(torch.rand(1))] == drawn, "generators were left elsewhere"
    for bad, message in ((votes[:, :2], "at least 3 rules"), (votes * 0, "at least two classes")):
        with pytest.raises(ValueError, match=message):
            label_model(bad, 2)


@pytest.mark.parametrize("kind", [np.uint8, np.float32, list])
def test_an_aggregate_may_give_numbers_of_any_kind(kind):
    """Bytes cannot say -100, and a list cannot be written into."""
    rows = Dataset.from_dict({"weak_labels": [[0, 0], [1, 1], [-1, -1]]})

    def first(votes, classes, seed):
        hard = np.abs(votes[:, 0])
        return {list: hard.tolist(), np.float32: np.eye(2, dtype=np.float32)[hard]}.get(kind, hard.astype(np.uint8))

    found = add_aggregated(rows, "voted", first, 2)["voted"][:]
    assert found == ([[1.0, 0.0], [0.0, 1.0], [-100.0, -100.0]] if kind is np.float32 else [0, 1, -100])
