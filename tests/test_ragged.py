"""Batches that do not come out even: every row counts for exactly one process, and once."""

from types import SimpleNamespace

import pytest
import torch

from amal_hf import ragged
from amal_hf.collator import ExampleCollator
from amal_hf.shapes import KEPT


@pytest.fixture
def as_process(monkeypatch):
    """Makes this process one of several."""

    def become(rank, count):
        monkeypatch.setattr(ragged, "process_rank", lambda: rank)
        monkeypatch.setattr(ragged, "process_count", lambda: count)

    return become


@pytest.mark.parametrize(("rows", "count"), [(8, 2), (7, 4), (2, 4), (1, 3)])
def test_parts_of_a_batch_add_up_to_it(as_process, rows, count):
    """A meta batch is cut over processes; one without a row takes one along that does not count."""
    batch, seen = {"labels": torch.arange(rows), "length": 3}, []
    for rank in range(count):
        as_process(rank, count)
        part = ragged.own_part(batch)
        assert len(part["labels"]) >= 1
        assert part["length"] == 3
        seen += part["labels"][: part[KEPT]].tolist()
    assert seen == list(range(rows))


def test_one_process_takes_all_of_a_batch():
    """As it is."""
    assert KEPT not in ragged.own_part({"labels": torch.arange(3)})


@pytest.mark.parametrize(
    ("examples", "remainder", "split", "real"),
    [
        (22, -1, False, [2, 2, 2, 0]),
        (24, -1, False, [2, 2, 2, 2]),
        (None, 5, False, [2, 2, 1, 0]),
        (3, -1, True, [2, 1, 0, 0]),
    ],
)
def test_repeated_rows_of_the_last_batch_are_told_from_others(as_process, examples, remainder, split, real):
    """Of two rows a process, the first are real until the epoch's examples are used up."""
    loader = SimpleNamespace(remainder=remainder)
    state = SimpleNamespace(end_of_dataloader=True, active_dataloader=loader)
    accelerator = SimpleNamespace(gradient_state=state, split_batches=split)
    for rank, expected in enumerate(real):
        as_process(rank, 4)
        batch = {"labels": torch.zeros(2)}
        assert ragged.without_repeats(batch, accelerator, 8 if split else 2, examples)[KEPT] == expected
    state.end_of_dataloader = False
    assert KEPT not in ragged.without_repeats(batch, accelerator, 2, examples)


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_stream_marks_the_rows_that_it_repeats(count):
    """Whatever its length, it ends with a full batch, in which rows of its own come first."""
    rows = list(ragged.FilledStream([{"labels": number} for number in range(count)], 4))
    assert len(rows) % 4 == 0
    batch = ExampleCollator(lambda given: {"labels": torch.tensor([row["labels"] for row in given])}, [])(rows)
    assert batch[KEPT] == count
    assert batch["labels"][:count].tolist() == list(range(count))
