"""Example ids and the columns of losses reach the batch beside the right example, whatever collator, order or worker
made it.
"""

import datasets
import numpy as np
import pytest
import torch
from conftest import toy_rows
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    default_data_collator,
)

from amal_hf.collator import ExampleCollator, NumberedDataset, is_stream, numbered, rows_of
from amal_hf.shapes import EXAMPLE_ID


ROWS = 12


@pytest.fixture(scope="module")
def tokenizer():
    words = {"[PAD]": 0, "[UNK]": 1} | {f"w{number}": number + 2 for number in range(ROWS)}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def ragged(tokenizer, token_labels):
    """Row i is i % 3 + 1 times the word i, so that a batch shows which rows it is made of and has to be padded."""
    rows = []
    for number in range(ROWS):
        encoded = tokenizer(" ".join([f"w{number}"] * (number % 3 + 1)))
        labels = [1] * (number % 3 + 1) if token_labels else number % 2
        rows.append({**encoded, "labels": labels, "votes": [number, -number], "score": number / 2})
    return datasets.Dataset.from_list(rows)


def shown_row(batch):
    """Which row each example of a batch is, read off its first word."""
    return batch["input_ids"][:, 0] - 2


COLLATORS = [(DataCollatorWithPadding, False), (DataCollatorForTokenClassification, True)]


@pytest.mark.parametrize(("collator", "token_labels"), COLLATORS)
@pytest.mark.parametrize("workers", [0, 2])
def test_ids_and_columns_stay_with_their_examples(tokenizer, collator, token_labels, workers):
    """Shuffled, padded and made by worker processes, an example still comes with its own id and columns, as tensors: a
    weight would else go to a stranger.
    """
    dataset, _ = numbered(ragged(tokenizer, token_labels))
    collate = ExampleCollator(collator(tokenizer), ["votes", "score"])
    loader = DataLoader(dataset, batch_size=5, shuffle=True, num_workers=workers, collate_fn=collate)
    ids = []
    for batch in loader:
        row = shown_row(batch)
        ids += batch["example_id"].tolist()
        assert batch["example_id"].equal(row)
        assert batch["example_id"].dtype == torch.int64
        assert batch["votes"].equal(torch.stack([row, -row], 1))
        torch.testing.assert_close(batch["score"], row / 2)
        assert batch["labels"].shape == (batch["input_ids"].shape if token_labels else row.shape)
    assert sorted(ids) == list(range(ROWS))
    assert ids != sorted(ids)


@pytest.mark.parametrize("count", [3, 5], ids=["of two lengths", "of one length"])
def test_columns_of_tokens_are_filled_up_as_their_labels_are(tokenizer, count):
    """To the length of the batch, be that longer than every row; labels with what losses ignore, votes with what
    abstains. A second column of labels was filled with -1, a class that no student has.
    """
    sizes = [2 + (number == 4) for number in range(count)]
    rows = [
        {
            "input_ids": [5] * size,
            "labels": [1] * size,
            "majority": [2] * size,
            "soft": [[0.5, 0.5]] * size,
            "votes": [[0, 1, 2]] * size,
            "of_all": [7, 7, 7],
        }
        for size in sizes
    ]
    inner = DataCollatorForTokenClassification(tokenizer, pad_to_multiple_of=4)
    batch = ExampleCollator(inner, ["majority", "soft", "votes", "of_all"])(rows)
    filled = torch.arange(4) >= torch.tensor(sizes)[:, None]
    assert batch["labels"].shape == batch["majority"].shape == (count, 4)
    assert batch["majority"].equal(torch.where(filled, -100, 2))
    assert batch["soft"].equal(torch.where(filled, -100, 0.5)[..., None].expand(-1, -1, 2))
    assert batch["votes"].equal(torch.where(filled[..., None], -1, torch.arange(3)))
    assert batch["of_all"].shape == (count, 3)


@pytest.mark.parametrize("labelled", [True, False], ids=["one label a row", "no labels"])
def test_rows_without_labels_of_tokens_are_filled_up_as_their_input_is(tokenizer, labelled):
    """On the side that is padded, be they of one length or not: votes would stand at other tokens. Where a row has one
    label, as many numbers as it has tokens may be anything, and are left as they are.
    """
    rows = [{"input_ids": [5, 6, 7], "votes": [[0], [1], [0]]} | ({"labels": 1} if labelled else {}) for _ in range(2)]
    tokenizer.padding_side = "left"
    batch = ExampleCollator(DataCollatorWithPadding(tokenizer, pad_to_multiple_of=4), ["votes"])(rows)
    tokenizer.padding_side = "right"
    assert batch["votes"][0].tolist() == ([] if labelled else [[-1]]) + [[0], [1], [0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "b"], "'extra' is read by a loss, and must hold numbers.*'a'"),
        ([[1], [1] * 9], "'extra' has entries of"),
    ],
    ids=["text", "ragged"],
)
def test_columns_that_are_no_tensors_are_named(tokenizer, values, message):
    """What torch says of them names neither the column nor what to do."""
    rows = [{"input_ids": [5, 6], "labels": 0, "extra": value} for value in values]
    with pytest.raises(ValueError, match=message):
        ExampleCollator(DataCollatorWithPadding(tokenizer), ["extra"])(rows)


def test_rows_without_ids_pass_through(tokenizer):
    """Evaluation batches are what the user's own collator makes of them."""
    rows = ragged(tokenizer, False).remove_columns(["votes", "score"])
    rows = [rows[number] for number in range(3)]
    plain = DataCollatorWithPadding(tokenizer)
    batch, expected = ExampleCollator(plain, ["votes"])(rows), plain(rows)
    assert type(batch) is type(expected)
    assert {name: column.tolist() for name, column in batch.items()} == {n: c.tolist() for n, c in expected.items()}


def test_the_tokenizer_of_the_inner_collator_shows(tokenizer):
    """`Trainer` saves it with the model where it was given no other."""
    assert ExampleCollator(DataCollatorWithPadding(tokenizer), []).tokenizer is tokenizer
    assert ExampleCollator(default_data_collator, []).tokenizer is None


@pytest.mark.parametrize("formatted", ["numpy", pytest.param("torch")])
@pytest.mark.filterwarnings("ignore:Creating a tensor from a list")
def test_columns_of_a_formatted_dataset_become_tensors(formatted):
    """`with_format` gives rows of arrays or tensors rather than lists; a loss's column with several numbers a row
    works in both.
    """
    dataset = toy_rows(4).add_column("votes", [[i, -i] for i in range(4)]).with_format(formatted)
    dataset, _ = numbered(dataset)
    batch = ExampleCollator(default_data_collator, ["votes"])([dataset[i] for i in (2, 0)])
    assert batch["example_id"].tolist() == [2, 0]
    assert batch["votes"].tolist() == [[2, -2], [0, 0]]


ARRANGED = {
    "as it is": lambda rows: rows,
    "shuffled": lambda rows: rows.shuffle(seed=1),
    "selected": lambda rows: rows.select([7, 3, 3, 0]),
    "formatted": lambda rows: rows.with_format("torch", columns=["input_ids", "labels"]),
}


@pytest.mark.parametrize("name", ARRANGED)
def test_a_dataset_is_numbered_as_it_stands(name):
    """The id is the row of the training set as it was passed, also where that is a view of another one; nothing else
    changes.
    """
    dataset = ARRANGED[name](toy_rows(8))
    result, given = numbered(dataset)
    assert given is None
    assert [int(row["example_id"]) for row in result] == list(range(len(dataset)))
    words = [[list(map(int, row["input_ids"])) for row in rows] for rows in (result, dataset)]
    assert words[0] == words[1]
    assert "example_id" not in dataset.column_names


@pytest.mark.parametrize("ids", [["b", "a", "d", "c"], [40, 10, 30, 20]])
def test_given_ids_are_returned_and_replaced_by_row_numbers(ids):
    """Tables are indexed by row; the user's own ids come back in `example_weights()`."""
    result, given = numbered(toy_rows(4).add_column("example_id", ids))
    assert given == ids
    assert result["example_id"][:] == [0, 1, 2, 3]


def test_given_ids_that_repeat_are_refused():
    """Weights could not be told apart; the message names an id and how many rows are too many."""
    with pytest.raises(ValueError, match=r"'example_id'.*'b' stands there more than once \(2 surplus rows\)"):
        numbered(toy_rows(5).add_column("example_id", ["a", "b", "b", "c", "b"]))


class Squares(torch.utils.data.Dataset):
    """A map-style dataset that is not one of `datasets`."""

    def __len__(self):
        return 4

    def __getitem__(self, row):
        return {"input_ids": torch.tensor([row**2]), "labels": row % 2}


def test_any_map_style_dataset_can_be_numbered():
    """Without `datasets` too, rows carry their number through a shuffling loader with workers."""
    dataset, given = numbered(Squares())
    assert given is None
    assert isinstance(dataset, NumberedDataset)
    assert len(dataset) == 4
    collate = ExampleCollator(default_data_collator, [])
    for batch in DataLoader(dataset, batch_size=3, shuffle=True, num_workers=2, collate_fn=collate):
        assert batch["example_id"].square().equal(batch["input_ids"][:, 0])


def test_a_transform_sees_a_batch_as_a_whole():
    """As with `Trainer`: one that pads its rows to one length could not be collated, and asking for row after row took
    twice as long.
    """
    seen = []

    def made(batch):
        seen.append(len(batch["input_ids"]))
        return batch

    dataset, _ = numbered(toy_rows(8).with_transform(made))
    batch = next(iter(DataLoader(dataset, batch_size=4, collate_fn=ExampleCollator(default_data_collator, []))))
    assert batch["example_id"].tolist() == [0, 1, 2, 3]
    rows_of(toy_rows(8).with_transform(made), [5, 2])
    assert seen == [4, 2]
    assert [int(row["input_ids"]) for row in rows_of(Squares(), [3, 1])] == [9, 1]


def test_a_dataset_is_told_of_the_epoch():
    """One that is another in every epoch would be the first for ever."""
    heard = []
    inner = Squares()
    inner.set_epoch = heard.append
    numbered(inner)[0].set_epoch(3)
    numbered(Squares())[0].set_epoch(3)
    assert heard == [3]


def test_rows_without_names_are_refused():
    """A number cannot be added to a tuple."""
    with pytest.raises(TypeError, match="rows must be dictionaries.*has tuples"):
        numbered(torch.utils.data.TensorDataset(torch.arange(3)))


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([{"labels": 0}])


def test_streams_are_left_alone():
    """A stream has no rows to number: it brings ids of its own or none."""
    streams = [Stream(), toy_rows(4).to_iterable_dataset()]
    for stream in streams:
        assert is_stream(stream)
        assert numbered(stream) == (stream, None)
    assert not any(is_stream(dataset) for dataset in (toy_rows(2), Squares(), np.zeros(2)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_are_whole_numbers_of_64_bits(dtype):
    """Whatever a collator of a user's own makes them: an index of bytes is a mask, and -1 does not fit in one."""

    def collate(rows):
        return {"labels": torch.tensor([row["labels"] for row in rows], dtype=dtype)}

    rows = [{"labels": 1, EXAMPLE_ID: 4}, {"labels": 2, EXAMPLE_ID: 7}]
    batch = ExampleCollator(collate, ())(rows)
    assert batch["labels"].dtype == torch.int64 and batch["labels"].tolist() == [1, 2]
    assert ExampleCollator(collate, ())([{"labels": 1}])["labels"].dtype == torch.int64
