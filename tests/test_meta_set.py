"""The meta set is an endless, numbered sequence of batches that disturbs nobody's random numbers."""

import random

import numpy as np
import pytest
import torch
from conftest import toy_rows
from transformers import default_data_collator

from amal_hf.meta_set import MetaSet


def meta_set(rows=10, batch_size=4, seed=0, collate=list):
    return MetaSet(range(rows), collate, batch_size, seed)


@pytest.mark.parametrize(("rows", "batch_size"), [(10, 4), (12, 4), (1, 1), (7, 6), (3, 100)])
def test_every_pass_brings_every_example_once(rows, batch_size):
    """Batches run on across the end of a pass, so none is short and no clean example is used less than another; a set
    smaller than a batch gives all it has.
    """
    meta, passes = meta_set(rows, batch_size), 6
    batches = [meta.batch(number) for number in range(passes * rows)]
    assert {len(batch) for batch in batches} == {min(batch_size, rows)}
    drawn = [row for batch in batches for row in batch][: passes * rows]
    orders = [drawn[start : start + rows] for start in range(0, len(drawn), rows)]
    assert all(sorted(order) == list(range(rows)) for order in orders)
    assert rows == 1 or len({tuple(order) for order in orders}) > 1


def test_a_batch_depends_on_its_number_and_the_seed_alone():
    """A resumed run asks for batch 17 first and must get what an uninterrupted run got as its 18th."""
    in_order = [meta_set().batch(0)] + [meta_set().batch(number) for number in range(1, 20)]
    meta = meta_set()
    jumping = {number: meta.batch(number) for number in (17, 3, 18, 0, 17, 2)}
    assert all(in_order[number] == batch for number, batch in jumping.items())
    assert [meta_set(seed=1).batch(number) for number in range(20)] != in_order


def three_draws(rows):
    """What a collator that masks tokens at random might use."""
    return random.random(), np.random.rand(), torch.rand(1).item()


def generator_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_a_set_is_known_by_its_size_and_first_rows():
    """Whatever batches are drawn from it, it is the same set; another is another. Nothing is drawn for it."""
    sets = [
        MetaSet(toy_rows(rows, seed), default_data_collator, size, order).identity
        for rows, seed, size, order in ((20, 0, 4, 0), (20, 0, 8, 1), (21, 0, 4, 0), (20, 1, 4, 0))
    ]
    assert sets[0] == sets[1] and sets[0][0] == 20
    assert sets[0] != sets[2] and sets[0] != sets[3]
    drawn = MetaSet(range(6), lambda rows: {"drawn": torch.tensor(three_draws(rows))}, 2, seed=0)
    before = generator_states()
    assert drawn.identity == MetaSet(range(6), drawn.collate, 3, seed=1).identity
    assert generator_states() == before


def test_a_collator_that_draws_leaves_all_generators_as_they_were():
    """Training must go on with the dropout masks and shuffles it would have had without meta steps, even if the
    collator fails.
    """
    before = generator_states()
    meta_set(collate=three_draws).batch(3)
    assert generator_states() == before
    with pytest.raises(ZeroDivisionError):
        meta_set(collate=lambda rows: three_draws(rows)[0] / 0).batch(0)
    assert generator_states() == before


def test_rows_that_draw_leave_all_generators_as_they_were():
    """As a dataset with a transform that augments does."""

    class Drawn(list):
        def __getitem__(self, row):
            return three_draws([])

    drawn = [MetaSet(Drawn(range(6)), list, 2, seed=0) for _ in range(2)]
    before = generator_states()
    first = drawn[0].batch(1)
    assert generator_states() == before
    three_draws([])
    assert drawn[1].batch(1) == first


def test_a_collator_that_draws_gives_the_same_batch_again():
    """The batch is a function of seed and number also where the collator masks at random."""
    first = meta_set(collate=three_draws).batch(3)
    three_draws([])
    assert meta_set(collate=three_draws).batch(3) == first != meta_set(collate=three_draws).batch(4)


def test_rows_of_a_dataset_go_through_the_collator():
    """The meta batch has the form of a training batch."""
    rows = toy_rows(5)
    batch = MetaSet(rows, default_data_collator, 5, seed=0).batch(2)
    assert batch["input_ids"].shape == (5, 10)
    assert sorted(batch["labels"].tolist()) == sorted(rows["labels"])


@pytest.mark.parametrize(("rows", "batch_size"), [(0, 4), (4, 0), (4, -1)])
def test_an_empty_set_or_batch_is_refused(rows, batch_size):
    """There would be nothing to learn from; the message says which of the two it is."""
    with pytest.raises(ValueError, match=f"{rows} rows and meta_batch_size is {batch_size}.*at least 1"):
        meta_set(rows, batch_size)
