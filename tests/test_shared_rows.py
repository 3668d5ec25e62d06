"""Rows that two sets share are counted, however they are stored."""

import datasets
import numpy as np
import pytest
from datasets import Dataset, Value

from amal_hf.shared_rows import _tells_rows_apart, count_shared


def slowly(rows, others, columns):
    keys = {repr([row[column] for column in columns]) for row in others}
    return sum(repr([row[column] for column in columns]) in keys for row in rows)


def sets(seed, width):
    """Few words and short rows, so that many rows are alike, or have the same words in another order."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 3, rng.integers(0, width)).tolist() for _ in range(200)]
    table = {
        "input_ids": rows,
        "text": [" ".join(map(str, row)) for row in rows],
        "choices": [[row, row[::-1]] for row in rows],
        "other": [str(len(row) % 2) for row in rows],
        "example_id": rng.integers(0, 300, 200).tolist(),
    }
    whole = Dataset.from_dict(table)
    return whole.select(range(120)), whole.select(range(120, 200))


VIEWS = {
    "plain": lambda rows: rows,
    "shuffled": lambda rows: rows.shuffle(seed=3),
    "torch": lambda rows: rows.with_format("torch"),
    "joined": lambda rows: datasets.concatenate_datasets([rows.select(range(7)), rows.select(range(7, len(rows)))]),
}


@pytest.mark.parametrize("columns", [["input_ids"], ["choices"], ["text"], ["other", "text"], ["example_id"]], ids=str)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_as_many_rows_are_shared_as_comparing_each_with_each_gives(columns, view):
    """Neither more, where hashes meet by chance or words are in another order, nor less."""
    for seed in range(5):
        rows, others = sets(seed, width=5)
        expected = slowly(rows, others, columns)
        assert 0 < expected < len(rows)
        assert count_shared(view(rows), view(others), columns) == expected


def test_nothing_is_shared_with_nothing():
    """An empty set has no rows."""
    rows, others = sets(0, width=5)
    assert count_shared(rows.select([]), others, ["text"]) == 0 == count_shared(rows, others.select([]), ["text"])


def test_texts_of_long_columns_are_texts():
    """pandas 3 makes such of its words."""
    rows = Dataset.from_dict({"text": ["a", "b"]}).cast_column("text", Value("large_string"))
    assert _tells_rows_apart(rows, "text")
