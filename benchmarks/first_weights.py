"""Which labels have weight over frozen features? That takes seconds for any student."""

from dataclasses import replace

import numpy as np
from bodies import CACHE, FrozenBody
from kept_arrays import kept_array
from numpy.typing import NDArray
from settings import Bench, Place, new_bench

from amal_hf import label_weights
from amal_hf.kept_rows import LEAST


def kept_by_weights(bench: Bench) -> NDArray[np.bool_]:
    """`(N,)`: the labels that have weight enough. Weights are kept in a file."""
    place = bench.place
    file = CACHE / "weights" / f"{place.data.name}-{place.setting}-{place.seed}.npy"
    weights = kept_array(file, lambda: _weights(replace(place, student=FrozenBody.kind)))
    return np.asarray(weights > LEAST)


def _weights(place: Place) -> NDArray[np.float32]:
    bench = new_bench(place)
    body = bench.body
    if not isinstance(body, FrozenBody):
        raise TypeError("weights are asked for over frozen embeddings")
    given = [
        values
        for rows in (bench.splits["train"], bench.splits["meta"])
        for values in (body.table[np.array(rows["row"][:])], rows["label"][:])
    ]
    return label_weights(*given, seed=place.seed).numpy()
