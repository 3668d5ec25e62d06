"""What is known of a rule: coverage, overlap, conflict, precision, as users of snorkel know them; and its weight."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amal_hf.metrics import rank_correlation
from amal_hf.shapes import ABSTAIN


class RuleSummary(NamedTuple):
    """What is known of one rule.

    Attributes:
        name: of the rule.
        classes: that it votes for.
        coverage: share of rows on which it votes.
        overlap: share of rows on which it votes and another does too.
        conflict: share of rows on which it votes and another votes otherwise.
        precision: share of right votes, among rows with a label; NaN if it voted on none.
        weight: mean learned weight where it votes; NaN if none was given.
        lift: mean of that weight as a multiple of what the initial mixture gives there: above one the rule has come to
            be believed more. A weight alone is small where many other rules vote, whoever is right.
    """

    name: str
    classes: list[int]
    coverage: float
    overlap: float
    conflict: float
    precision: float
    weight: float
    lift: float


def summarise_rules(
    votes: NDArray[Any],
    names: Sequence[str] | None = None,
    labels: NDArray[Any] | None = None,
    weights: NDArray[Any] | None = None,
    shares: NDArray[Any] | None = None,
) -> list[RuleSummary]:
    """A summary of every rule.

    Args:
        votes: `(n, m)`, -1 for abstaining.
        names: of the rules; `rule_0` and so on by default.
        labels: `(n,)` the truth where it is known, negative where not; for the precision.
        weights: `(n, m)` learned weights, as `AMALTrainer.example_weights()` has them in the columns of `RuleLosses`.
        shares: `(n, m)` what the initial mixture gives each vote; for the lift.

    Raises:
        ValueError: as many names as rules, labels as rows, and weights and shares as votes are expected.
    """
    rows, rules = votes.shape
    named = [f"rule_{i}" for i in range(rules)] if names is None else list(names)
    truth = np.full(rows, ABSTAIN) if labels is None else np.asarray(labels)
    if len(named) != rules or len(truth) != rows:
        raise ValueError(f"There are {rules} rules and {rows} rows, but {len(named)} names and {len(truth)} labels.")
    nothing = np.full(votes.shape, np.nan)
    learned, begun = (nothing if m is None else np.asarray(m, dtype=np.float64) for m in (weights, shares))
    for matrix in (learned, begun):
        if matrix.shape != votes.shape:
            raise ValueError(
                f"Weights and shares should be matrices of the votes' shape {votes.shape}, but one has {matrix.shape}."
            )
    lifts = learned / begun
    return [_summary(votes, j, name, truth, learned[:, j], lifts[:, j]) for j, name in enumerate(named)]


def rule_order(summaries: Sequence[RuleSummary]) -> float:
    """How far what was learned orders rules by their precision: Spearman's correlation of lift and precision.

    Rules that lack either are left out; NaN where fewer than two are left.
    """
    lifts, precisions = (np.array([getattr(one, part) for one in summaries]) for part in ("lift", "precision"))
    return rank_correlation(lifts, precisions)


def rule_lines(summaries: Sequence[RuleSummary]) -> list[str]:
    """A table to print: a heading, and a line for every rule."""
    parts = RuleSummary._fields[2:]
    heading = f"{'rule':24}" + "".join(f"{part:>12}" for part in parts)
    return [
        heading,
        *(f"{one.name:24}" + "".join(f"{getattr(one, part):>12.2f}" for part in parts) for one in summaries),
    ]


def _summary(
    votes: NDArray[Any],
    j: int,
    name: str,
    truth: NDArray[Any],
    learned: NDArray[np.float64],
    lifts: NDArray[np.float64],
) -> RuleSummary:
    own, others = votes[:, j], np.delete(votes, j, 1)
    fired, known = own != ABSTAIN, (own != ABSTAIN) & (truth >= 0)
    voted = others != ABSTAIN
    return RuleSummary(
        name=name,
        classes=[int(label) for label in np.unique(own[fired])],
        coverage=float(fired.mean()),
        overlap=float((fired & voted.any(1)).mean()),
        conflict=float((fired & (voted & (others != own[:, None])).any(1)).mean()),
        precision=float((own[known] == truth[known]).mean()) if known.any() else float("nan"),
        weight=_mean_known(learned[fired]),
        lift=_mean_known(lifts[fired]),
    )


def _mean_known(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
