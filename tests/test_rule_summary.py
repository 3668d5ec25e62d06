"""What is known of rules."""

import numpy as np
import pytest

from amal_hf.rule_summary import rule_lines, rule_order, summarise_rules


def test_summary_by_hand():
    """Coverage, overlap, conflict and precision of two rules on four rows, worked out by hand."""
    votes = np.array([[1, 1], [0, 1], [1, -1], [-1, -1]])
    first, second = summarise_rules(votes, ["a", "b"], np.array([1, 1, -100, 0]))
    assert first[:-2] == ("a", [0, 1], 0.75, 0.5, 0.25, 0.5)
    assert second[:-2] == ("b", [1], 0.5, 0.5, 0.25, 1.0)
    weights = np.array([[0.2, 0.9], [0.4, 0.1], [0.6, 9.0], [9.0, 9.0]])
    learned = [entry.weight for entry in summarise_rules(votes, weights=weights)]
    np.testing.assert_allclose(learned, [0.4, 0.5])
    shares = np.array([[0.5, 0.5], [0.5, 0.5], [1.0, 9.0], [9.0, 9.0]])  # alone on its row a rule begins with all
    lifts = [entry.lift for entry in summarise_rules(votes, weights=weights, shares=shares)]
    np.testing.assert_allclose(lifts, [(0.4 + 0.8 + 0.6) / 3, (1.8 + 0.2) / 2])
    for matrices in ({"weights": weights[:, :1]}, {"weights": weights, "shares": shares[:3]}):
        with pytest.raises(ValueError, match="votes' shape"):
            summarise_rules(votes, **matrices)
    assert np.isnan(summarise_rules(votes)[0].precision)
    with pytest.raises(ValueError, match="2 rules and 4 rows, but 1 names"):
        summarise_rules(votes, ["a"])


def test_the_order_of_rules_by_hand():
    """Lifts that rise with precision order rules by 1, that fall by -1; a rule that nobody can judge is left out.

    It does not matter what a rule began with.
    """
    votes = np.array([[0, 1, 0, -1], [0, 1, 1, -1], [0, 0, 1, -1], [0, 0, 1, -1]])  # right: 1, 1/2, 1/4, never voted
    truth = np.zeros(4, dtype=int)
    rising, shares = np.tile([0.9, 0.2, 0.1, 5.0], (4, 1)), np.tile([1.0, 0.1, 0.01, 3.0], (4, 1))
    for begun in (np.ones((4, 4)), shares):
        order = rule_order(summarise_rules(votes, labels=truth, weights=rising * begun, shares=begun))
        assert order == pytest.approx(1)
        order = rule_order(summarise_rules(votes, labels=truth, weights=-rising * begun, shares=begun))
        assert order == pytest.approx(-1)
    assert np.isnan(rule_order(summarise_rules(votes, labels=truth)))


def test_a_line_for_every_rule():
    """The table that is printed has a heading of the summary's own names, and its numbers."""
    heading, line = rule_lines(summarise_rules(np.array([[0], [-1]]), ["price"], np.array([0, 1])))
    assert heading.split() == ["rule", "coverage", "overlap", "conflict", "precision", "weight", "lift"]
    assert line.split() == ["price", "0.50", "0.00", "0.00", "1.00", "nan", "nan"]
