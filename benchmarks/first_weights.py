"""Which labels have weight over frozen features? That takes seconds for any student."""

from dataclasses import replace

import numpy as np
from bodies import CACHE, FrozenBody
from kept_arrays import kept_array
from numpy.typing import NDArray
from settings import Bench, new_bench
from torch import Tensor

from amal_hf import label_weights
from amal_hf.kept_rows import LEAST


def kept_by_weights(bench: Bench) -> NDArray[np.bool_]:
    """`(N,)`: the labels that have weight enough. Weights are kept in a file."""
    place = bench.place
    file = CACHE / "weights" / f"{place.data.name}-{place.setting}-{place.seed}.npy"

    def make() -> NDArray[np.float32]:
        own = new_bench(replace(place, student=FrozenBody.kind))
        if not isinstance(own.body, FrozenBody):
            raise TypeError("weights are asked for over frozen embeddings")
        return weights_over(own.body.table, own)

    weights = kept_array(file, make)
    return np.asarray(weights >= LEAST)


def weights_over(table: Tensor, bench: Bench) -> NDArray[np.float32]:
    """`(N,)`: of the training labels, by rows of a table of embeddings, `(R, d)`."""
    given = [
        values
        for rows in (bench.splits["train"], bench.splits["meta"])
        for values in (table[np.array(rows["row"][:])], rows["label"][:])
    ]
    return label_weights(*given, seed=bench.place.seed).numpy()
