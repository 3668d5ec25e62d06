"""Which labels are probably right, by their weights and by how many are wrong."""

from dataclasses import dataclass

import torch
from torch import Tensor


FEWEST, MOST = 0.8, 1.2
"""Of the wrong labels, how many are called so. From 0.75 to 1.25 and from 0.8 to 1.1 the errors in 25 settings are the
same within 0.1 % of the rows (`benchmarks/LOG.md`)."""

NEIGHBOURS = 0.01
"""Share of the rows on either side of a gap that it is measured between; of 0.0025 to 0.02 no matter which."""

NOTHING = 0.01
"""Of the mean weight: below this one weight is as good as another."""


@dataclass(frozen=True)
class LabelWeights:
    """What was found out about the labels of some rows.

    Attributes:
        weights: `(N,)`, one on average; 0 where there is no label.
        wrong: how many of the labels are wrong, a number in [0, 1]; NaN where the clean rows cannot tell: too few, or
            of more than 512 classes.
        wrong_error: the standard error of that, as far as so few clean rows leave it to chance.
    """

    weights: Tensor
    wrong: float
    wrong_error: float

    def probably_right(self, wrong: float | None = None) -> Tensor:
        """`(N,)`, bool: labels that are not among the lowest weights, about as many as are wrong.

        From 0.8 to 1.2 times as many, where the gap to the next weights is widest; all are right where it cannot be
        told how many are not.

        Args:
            wrong: how many labels are, if that is known; by default as was found.

        Raises:
            ValueError: a share that is not in [0, 1].
        """
        check_share(wrong)
        share = self.wrong if wrong is None else wrong
        right = self.weights > 0
        if share > 0:  # not if it is NaN
            known = right.nonzero()[:, 0]
            weights, order = self.weights[known].sort(stable=True)
            right[known[order[: _widest_gap(weights, share)]]] = False
        return right


def check_share(wrong: float | None) -> None:
    """Whether this may be how many labels are wrong.

    Raises:
        ValueError: it is not in [0, 1].
    """
    if wrong is not None and not 0 <= wrong <= 1:
        raise ValueError(
            f"Expected `wrong` to be a share of the labels, from 0 to 1, got {wrong}. Leave it out if it is not known."
        )


def _widest_gap(weights: Tensor, share: float) -> int:
    """How many of some ascending weights, `(N,)`, are below their widest gap; about this share of them are."""
    count = len(weights)
    logs = (weights.double() / weights.mean() + NOTHING).log()
    sums, near = torch.cat([logs.new_zeros(1), logs.cumsum(0)]), max(1, round(NEIGHBOURS * count))
    most = min(round(MOST * share * count), count - 1)
    below = torch.arange(min(round(FEWEST * share * count), most), most + 1)
    first, last = (below - near).clamp(min=0), (below + near).clamp(max=count)
    gaps = (sums[last] - sums[below]) / (last - below) - (sums[below] - sums[first]) / (below - first)
    return int(below[gaps.nan_to_num(-torch.inf).argmax()])  # nothing is below the lowest
