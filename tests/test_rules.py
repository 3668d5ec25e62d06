"""Rules, their votes, and what is known of them."""

import importlib
import logging
import pickle
import re
import shutil
import sys

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from amal_hf.rules import (
    Rule,
    add_votes,
    apply_rules,
    keyword_rule,
    regex_rule,
    rule,
    votes_of_table,
)


TEXTS = ["Subscribe to my channel", "a lovely song", "check out this link", "this song is so good, subscribe!"]


def rows(texts=TEXTS):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["ham", "spam"])})
    return Dataset.from_dict({"text": texts, "label": [1, 0, 1, 0][: len(texts)]}, features=features)


@rule
def short(row):
    """A number does as well as a name."""
    return 0 if len(row["text"]) < 15 else None


RULES = [keyword_rule(["subscribe"], "spam"), keyword_rule(["song"], "ham"), regex_rule(r"check\s+out", 1), short]


@pytest.mark.parametrize("num_proc", [None, 2])
def test_rules_vote_by_name_or_number_and_abstain(num_proc):
    """Votes in the order of the rules, -1 where a rule says nothing, also with several processes."""
    voted = apply_rules(rows(), RULES, num_proc=num_proc)
    assert voted["weak_labels"][:] == [[1, -1, -1, -1], [-1, 0, -1, 0], [-1, -1, 1, -1], [1, 0, -1, -1]]
    assert voted.column_names == ["text", "label", "weak_labels"]


def test_keywords_are_whole_words():
    """`song` must not be found in `songbird`; a word may have signs of its own."""
    find = keyword_rule(["song", "c++"], 0)
    assert [find({"text": text}) for text in ("songbird", "a SONG.", "I like C++ best")] == [None, 0, 0]


def test_a_rule_that_fails_abstains_is_counted_and_shown(caplog):
    """One odd row must not end the run, and the traceback tells what was wrong with it."""

    @rule
    def fragile(row):
        return 1 if row["text"].index("song") > 5 else 0

    with caplog.at_level(logging.WARNING, "amal_hf"):
        voted = apply_rules(rows(), [fragile, RULES[0]])
    assert [votes[0] for votes in voted["weak_labels"]] == [-1, 1, -1, 0]
    assert "failed on 2 votes" in caplog.text
    assert "ValueError: substring not found" in caplog.text
    assert "'fragile' on row 0" in caplog.text


def test_rules_run_anew_at_every_call(tmp_path, monkeypatch):
    """A rule from a module of the user's own, which has been edited since, votes as it does now."""
    rows().save_to_disk(tmp_path / "saved")
    saved = Dataset.load_from_disk(tmp_path / "saved")
    monkeypatch.syspath_prepend(tmp_path)
    votes = []
    for number in (0, 1):
        (tmp_path / "my_rules.py").write_text(f"def always(row):\n    return {number}\n")
        sys.modules.pop("my_rules", None)
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        votes.append(apply_rules(saved, [importlib.import_module("my_rules").always])["weak_labels"][:])
    assert votes == [[[number]] * len(TEXTS) for number in (0, 1)]


def test_a_rule_may_fail_late(caplog):
    """The first failure may come long after the first thousand rows."""
    texts = ["free"] * 2000 + [None, "free"]
    many = Dataset.from_dict({"text": texts, "label": [0] * len(texts)}).cast_column("label", rows().features["label"])
    voted = apply_rules(many, [keyword_rule(["free"], 1)])
    assert voted["weak_labels"][:] == [[1]] * 2000 + [[-1], [1]]
    assert "on row 2000" in caplog.text


def test_votes_come_from_files_and_matrices(tmp_path):
    """The same matrix in every form gives the same column."""
    matrix = np.array([[1, -1], [-1, 0], [1, -1], [-1, -1]])
    np.save(tmp_path / "votes.npy", matrix)
    np.savez(tmp_path / "votes.npz", L=matrix)
    for source in (matrix, tmp_path / "votes.npy", str(tmp_path / "votes.npz")):
        assert add_votes(rows(), source)["weak_labels"][:] == matrix.tolist()


def test_a_long_table_becomes_a_matrix():
    """As crowds give it: in any order, with gaps, the last of several votes counting."""
    table = [("b", "ann", 1), ("a", "tom", 0), ("b", "ann", 0), ("c", "tom", 1)]
    votes, workers = votes_of_table(table, ["a", "b", "c"])
    assert workers == ["ann", "tom"]
    assert votes.tolist() == [[-1, 0], [0, -1], [-1, 1]]
    with pytest.raises(ValueError, match="'d', which is not in the dataset"):
        votes_of_table([("d", "ann", 1)], ["a"])
    with pytest.raises(ValueError, match="'a' is more than one"):
        votes_of_table(table, ["a", "b", "a", "c"])


def test_bad_votes_are_refused(tmp_path):
    """Each with what was expected and what came."""
    good = np.array([[1], [-1], [0], [1]])
    (tmp_path / "votes.pkl").write_bytes(pickle.dumps(good))
    np.save(tmp_path / "objects.npy", good.astype(object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=good, b=good)
    cases = [
        (good[:3], "4 rows of the dataset"),
        (np.where(good == 1, 2, good), "row 0 has 2 by rule 0"),
        (good * 0.5, "whole numbers"),
        (tmp_path / "votes.pkl", "pickle could run any code"),
        (tmp_path / "objects.npy", "not a plain matrix"),
        (tmp_path / "two.npz", "holds 2"),
    ]
    for votes, message in cases:
        with pytest.raises(ValueError, match=message):
            add_votes(rows(), votes)
    with pytest.raises(FileNotFoundError, match=re.escape("nothing.npy")):
        add_votes(rows(), tmp_path / "nothing.npy")


def test_rules_may_be_silent_on_a_small_split(caplog):
    """One set of rules is applied to all splits, of which a small one may hold nothing for them."""
    voted = apply_rules(rows(), [Rule("nothing", lambda row: None)])
    assert voted["weak_labels"][:] == [[-1]] * 4
    assert "All 1 rules abstain on all 4 rows" in caplog.text


def test_an_empty_split_has_the_column_too():
    """All splits of a set keep the same columns."""
    empty = apply_rules(rows().select([]), [short])
    assert len(empty) == 0 and empty.features["weak_labels"] == apply_rules(rows(), [short]).features["weak_labels"]


def test_a_truth_is_no_vote():
    """`False` would vote for the first class on every row that a rule has nothing to say of."""
    with pytest.raises(ValueError, match="voted False, which is not one of the classes"):
        apply_rules(rows(), [Rule("dollar", lambda row: "$" in row["text"])])


def test_bad_rules_are_refused():
    """An unknown class, two of one name, none at all, empty patterns, and classes nobody knows."""
    cases = [
        (lambda: apply_rules(rows(), [keyword_rule(["song"], "eggs")]), "voted 'eggs'"),
        (lambda: apply_rules(rows(), [keyword_rule(["song"], 2)]), "voted 2"),
        (lambda: apply_rules(rows(), [short, short]), "name of its own"),
        (lambda: apply_rules(rows(), []), "needs rules"),
        (lambda: apply_rules(rows().remove_columns("label"), [short]), "Pass them as `classes`"),
        (lambda: keyword_rule([], 0), "empty"),
        (lambda: regex_rule("(", 0), "not a regular expression"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("vote", [0.7, float("nan"), 2, "maybe"])
def test_votes_that_are_no_class_are_refused(vote):
    """By the rule's name."""

    def odd(row):
        return vote

    with pytest.raises(ValueError, match="Rule 'odd' voted"):
        apply_rules(rows(), [odd])


def test_one_word_is_a_word():
    """And not its letters."""
    assert apply_rules(rows(), [keyword_rule("song", "ham")])["weak_labels"][:] == [[-1], [0], [-1], [0]]
