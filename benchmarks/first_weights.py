"""Which labels have weight over frozen features? That takes seconds for any student."""

import numpy as np
from bodies import CACHE
from datasets import Dataset
from kept_arrays import kept_array
from numpy.typing import NDArray
from settings import Bench, over_features
from torch import Tensor

from amal_hf import LabelWeights, label_weights


def kept_by_weights(bench: Bench) -> NDArray[np.bool_]:
    """`(N,)`: the labels that have weight enough. Kept in a file."""
    place = bench.place
    file = CACHE / "probably_right" / f"{place.data.name}-{place.setting}-{place.seed}.npy"

    def make() -> NDArray[np.bool_]:
        own, table = over_features(place)
        return probably_right(table, own)

    return kept_array(file, make)


def probably_right(table: Tensor, bench: Bench) -> NDArray[np.bool_]:
    """`(N,)`: which training labels are, by rows of a table of embeddings, `(R, d)`."""
    return judged(table, bench.splits["train"], bench.splits["meta"], bench.place.seed).probably_right().numpy()


def judged(table: Tensor, train: Dataset, clean: Dataset, seed: int) -> LabelWeights:
    """What is found out about the labels of some rows by clean ones."""
    given = [values for rows in (train, clean) for values in (table[np.array(rows["row"][:])], rows["label"][:])]
    return label_weights(*given, seed=seed)
