"""Labels from annotators, each with mistakes of their own (Dawid and Skene 1979)."""

import numpy as np
from numpy.typing import NDArray

from amal_hf.aggregation import vote_shares
from amal_hf.shapes import ABSTAIN


SMOOTHING = 0.01
"""Answers of every kind that an annotator is taken to have given beforehand, so that no probability is zero."""


def dawid_skene(
    votes: NDArray[np.integer], classes: int, seed: int = 0, iterations: int = 100, tolerance: float = 1e-6
) -> NDArray[np.float64]:
    """Soft labels by expectation maximisation over the classes and every annotator's table of confusions.

    It is for people, who may give any answer: who did not answer a row is taken not to have been asked. Rules abstain
    because of what they read, and mostly know one answer; use `majority_vote`, `label_model` or `Cage` for these.

    Args:
        votes: `(n, m)`, -1 where an annotator did not answer.
        classes: C.
        seed: not needed; there to be exchanged for other functions of this kind.
        iterations: at most.
        tolerance: change of a probability below which it stops.

    Raises:
        ValueError: as `vote_shares`; or more than half of the votes are by voters who only ever give one answer.

    References:
        Dawid and Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM algorithm".
    """
    del seed
    soft = vote_shares(votes, classes)  # rows without an answer stay as they are there
    voted = (votes != ABSTAIN).any(1)
    given = (votes[voted, :, None] == np.arange(classes)).astype(np.float64)
    _check_answers(given.sum(0))
    for _ in range(iterations):
        before = soft[voted]
        soft[voted] = _beliefs(*_tables(before, given), given)
        if np.abs(soft[voted] - before).max() < tolerance:
            break
    return soft


def _tables(
    belief: NDArray[np.float64], given: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`(C,)` how frequent classes are, and `(C, m, C)` what, given the class, each annotator answers."""
    answers = np.tensordot(belief, given, (0, 0)) + SMOOTHING
    return belief.mean(0), answers / answers.sum(-1, keepdims=True)


def _beliefs(
    prior: NDArray[np.float64], confusions: NDArray[np.float64], given: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`(n, C)`: how probable each class is, given the answers."""
    log_joint = np.log(np.maximum(prior, 1e-300)) + np.tensordot(given, np.log(confusions), ((1, 2), (1, 2)))
    joint = np.exp(log_joint - log_joint.max(1, keepdims=True))
    shares: NDArray[np.float64] = joint / joint.sum(1, keepdims=True)
    return shares


def _check_answers(counts: NDArray[np.float64]) -> None:
    """`(m, C)` how often each voter gave each answer."""
    one_answer = (counts > 0).sum(1) == 1
    votes = counts.sum(1)
    if votes[one_answer].sum() > votes.sum() / 2:
        raise ValueError(
            f"dawid_skene compares what annotators answer to each class, but {one_answer.sum()} of {len(counts)} "
            f"voters, with most of the votes, only ever give one answer, as rules do. Use majority_vote, label_model "
            f"or Cage."
        )
