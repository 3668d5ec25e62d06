"""`evaluate` metrics that need neither a download nor a cache file, and can say how far to trust them."""

from abc import abstractmethod
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value
from numpy.typing import NDArray

from amal_hf.intervals import score_interval


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
