"""Which labels have weight when a head over frozen features learns from them? That takes seconds for any student."""

from dataclasses import replace

import numpy as np
from bodies import CACHE, FrozenBody
from kept_arrays import kept_array
from numpy.typing import NDArray
from settings import Bench, new_bench
from training import Looks, train
from transformers import set_seed

from amal_hf import amal


LEAST = 0.5
"""Of the mean weight; a label with less is left out."""


def kept_by_weights(bench: Bench) -> NDArray[np.bool_]:
    """`(N,)`: the labels that have weight enough. Weights are kept in a file."""
    place = bench.place
    file = CACHE / "weights" / f"{place.data.name}-{place.setting}-{place.seed}.npy"

    def make() -> NDArray[np.float32]:
        own = bench if isinstance(bench.body, FrozenBody) else new_bench(replace(place, student=FrozenBody.kind))
        return label_weights(own)

    weights = kept_array(file, make)
    return np.asarray(weights > LEAST * weights.mean())


def label_weights(bench: Bench) -> NDArray[np.float32]:
    """`(N,)`: of the training labels, at the end of a run of `amal()` on smoothed labels, clean ones among them."""
    set_seed(bench.place.seed)
    body, rows = bench.body, bench.rows(("train", "meta"))
    steps = round(body.epochs * -(-len(bench.splits["train"]) // body.batch_size))
    student, looks = body.student(bench.classes), Looks(bench.metric)
    trainer = train(bench, student, rows, steps, looks, learning_rate=body.learning_rate, method=amal(), smoothing=0.1)
    weights = trainer.example_weights().with_format("numpy")["labels"][:]
    return np.nan_to_num(weights[: len(bench.splits["train"])])
