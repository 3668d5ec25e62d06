"""`evaluate` metrics that need neither a download nor a cache file, and can say how far to trust them."""

from abc import abstractmethod
from typing import Any, NamedTuple

import evaluate
import numpy as np
from datasets import Features, List, Value
from numpy.typing import NDArray

from amal_hf.intervals import score_interval


class Difference(NamedTuple):
    """What one system is better than another by, and the interval of that."""

    value: float
    low: float
    high: float


class Score(evaluate.Metric):  # type: ignore[misc]  # evaluate carries no types
    """A score of predictions against references: lists, arrays or tensors, in one go or by `add_batch`.

    It gives `{key: float}`, and with `resamples` also `{key}_low` and `{key}_high`, a 95 % bootstrap interval over the
    rows. All are plain floats, fit for JSON and cards.

    Args:
        resamples: how many times the rows are drawn anew; 0 for no interval.
        seed: of that.

    Attributes:
        key: name of the score.
        prediction, reference: what one of each is.
    """

    key: str
    prediction: Value | List = Value("int64")
    reference: Value = Value("int64")

    def __init__(self, resamples: int = 0, seed: int = 0) -> None:
        super().__init__(keep_in_memory=True, seed=seed)
        self.resamples = resamples

    @abstractmethod
    def score(self, predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """The score of rows."""

    def difference(self, ours: Any, theirs: Any, references: Any, samples: int = 2000) -> Difference:
        """By how much our predictions score above theirs on the same rows, with a paired bootstrap interval.

        It is much narrower than two intervals side by side suggest, since a row that is hard for one system is mostly
        hard for the other.

        Raises:
            ValueError: the three are not of one length.
        """
        columns = [np.asarray(rows) for rows in (ours, theirs, references)]

        def gain(ours: NDArray[Any], theirs: NDArray[Any], wanted: NDArray[Any]) -> float:
            return self.score(ours, wanted) - self.score(theirs, wanted)

        low, high = score_interval(gain, columns, self.seed, samples=samples)
        return Difference(gain(*columns), low, high)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            features=Features({"predictions": self.prediction, "references": self.reference}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        columns = (np.asarray(predictions), np.asarray(references))
        found = {self.key: float(self.score(*columns))}
        if self.resamples:
            low, high = score_interval(self.score, columns, self.seed, samples=self.resamples)
            found |= {f"{self.key}_low": low, f"{self.key}_high": high}
        return found
