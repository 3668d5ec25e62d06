"""What is known of rules."""

import numpy as np
import pytest

from amal_hf.rule_summary import rule_lines, rule_order, summarise_rules


def test_summary_by_hand():
    """Coverage, overlap, conflict and precision of two rules on four rows, worked out by hand."""
    votes = np.array([[1, 1], [0, 1], [1, -1], [-1, -1]])
    first, second = summarise_rules(votes, ["a", "b"], np.array([1, 1, -100, 0]))
    assert first[:-1] == ("a", [0, 1], 0.75, 0.5, 0.25, 0.5)
    assert second[:-1] == ("b", [1], 0.5, 0.5, 0.25, 1.0)
    weights = np.array([[0.2, 0.9], [0.4, 0.1], [0.6, 9.0], [9.0, 9.0]])
    learned = [entry.weight for entry in summarise_rules(votes, weights=weights)]
    np.testing.assert_allclose(learned, [0.4, 0.5])
    with pytest.raises(ValueError, match="votes' shape"):
        summarise_rules(votes, weights=weights[:, :1])
    assert np.isnan(summarise_rules(votes)[0].precision)
    with pytest.raises(ValueError, match="2 rules and 4 rows, but 1 names"):
        summarise_rules(votes, ["a"])


def test_the_order_of_rules_by_hand():
    """Weights that rise with precision order rules by 1, that fall by -1; a rule that nobody can judge is left out."""
    votes = np.array([[0, 1, 0, -1], [0, 1, 1, -1], [0, 0, 1, -1], [0, 0, 1, -1]])  # right: 1, 1/2, 1/4, never voted
    truth = np.zeros(4, dtype=int)
    rising = np.tile([0.9, 0.2, 0.1, 5.0], (4, 1))
    assert rule_order(summarise_rules(votes, labels=truth, weights=rising)) == pytest.approx(1)
    assert rule_order(summarise_rules(votes, labels=truth, weights=-rising)) == pytest.approx(-1)
    assert np.isnan(rule_order(summarise_rules(votes, labels=truth)))


def test_a_line_for_every_rule():
    """The table that is printed has a heading of the summary's own names, and its numbers."""
    heading, line = rule_lines(summarise_rules(np.array([[0], [-1]]), ["price"], np.array([0, 1])))
    assert heading.split() == ["rule", "coverage", "overlap", "conflict", "precision", "weight"]
    assert line.split() == ["price", "0.50", "0.00", "0.00", "1.00", "nan"]
