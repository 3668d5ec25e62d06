"""A row store keeps one row an example, whether the number of examples is known or not, in memory or in a file."""

import io

import pytest
import torch

from amal_hf.policies.store import RowStore


FILL = torch.tensor([0.25, 0.75])
BOTH = pytest.mark.parametrize("examples", [50, None])
GROWING = pytest.mark.parametrize("examples", [50, pytest.param(None)])


def rows_for(ids):
    return torch.tensor([[i % 1000, -(i % 1000)] for i in ids], dtype=torch.float32)


def ids_in_use(examples):
    """More than a stream's first table holds, in no order; a stream's ids may be of any size."""
    ids = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:40].tolist()
    return ids if examples else [10**12 + 7 * i for i in ids]


@BOTH
def test_a_row_is_the_fill_until_it_is_written(examples):
    """Every example starts at the same mixture."""
    store = RowStore(examples, FILL)
    assert store.read(torch.tensor([3, 0, 3])).equal(FILL.expand(3, -1))


@GROWING
def test_rows_are_found_by_id_in_any_order_and_batch(examples):
    """Written in batches of seven and read back shuffled, every id has its own row, and an id that was not written the
    fill; the table grows on the way.
    """
    store, ids = RowStore(examples, FILL), ids_in_use(examples)
    for start in range(0, len(ids), 7):
        part = ids[start : start + 7]
        store.write(torch.tensor(part), rows_for(part))
    assert store.read(torch.tensor(ids[::-1])).equal(rows_for(ids[::-1]))
    unwritten = next(i for i in range(50) if i not in ids)
    assert store.read(torch.tensor([unwritten])).equal(FILL[None])


@GROWING
def test_one_read_or_write_may_bring_more_new_ids_than_the_table_has_rows(examples):
    """Growth happens before the rows are looked up; on the old table the write would be lost or fail."""
    ids = ids_in_use(examples)
    read, written = RowStore(examples, FILL), RowStore(examples, FILL)
    written.write(torch.tensor(ids), rows_for(ids))
    assert read.read(torch.tensor(ids)).equal(FILL.expand(len(ids), -1))
    assert written.read(torch.tensor(ids)).equal(rows_for(ids))


def test_an_id_that_stands_twice_in_a_batch_keeps_one_of_its_values():
    """Sampling with replacement must not mix up rows or sum them."""
    store = RowStore(4, FILL)
    store.write(torch.tensor([2, 2, 1]), rows_for([5, 6, 7]))
    assert store.read(torch.tensor([2]))[0].tolist() in rows_for([5, 6]).tolist()
    assert store.read(torch.tensor([1])).equal(rows_for([7]))


def test_what_was_read_does_not_change_afterwards():
    """Weights in use are not rewritten by an update in between."""
    store = RowStore(4, FILL)
    before = store.read(torch.arange(4))
    store.write(torch.arange(4), rows_for(range(4)))
    assert before.equal(FILL.expand(4, -1))


def test_contents_are_all_rows_or_all_that_a_stream_has_shown():
    """`example_weights()` reports these: of a known set every row, of a stream only the ids seen, without the spare
    rows of the table.
    """
    fixed, stream = RowStore(3, FILL), RowStore(None, FILL)
    fixed.write(torch.tensor([1]), rows_for([1]))
    stream.write(torch.tensor([900, 5]), rows_for([1, 2]))
    ids, table = fixed.contents()
    assert (fixed.size, stream.size) == (3, None)
    assert ids.tolist() == [0, 1, 2]
    assert table.equal(torch.stack([FILL, rows_for([1])[0], FILL]))
    ids, table = stream.contents()
    assert ids.tolist() == [900, 5]
    assert table.equal(rows_for([1, 2]))


@GROWING
def test_a_state_loads_into_a_fresh_store(examples):
    """A resumed run begins with a small table and must come out with all rows of the old one, ids included, and go on
    growing.
    """
    store, fresh, ids = RowStore(examples, FILL), RowStore(examples, FILL), ids_in_use(examples)
    for i in ids:
        store.write(torch.tensor([i]), rows_for([i]))
    file = io.BytesIO()
    torch.save(store.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for mine, theirs in zip(fresh.contents(), store.contents(), strict=True):
        assert mine.equal(theirs)
    assert fresh.read(torch.tensor(ids)).equal(rows_for(ids))
    fresh.write(torch.tensor([1]), rows_for([9]))
    assert fresh.read(torch.tensor([1, ids[0]])).equal(rows_for([9, ids[0]]))


def test_the_state_of_another_training_set_is_refused():
    """Rows of a set of another size would belong to other examples."""
    with pytest.raises(RuntimeError, match="size mismatch"):
        RowStore(4, FILL).load_state_dict(RowStore(5, FILL).state_dict())
