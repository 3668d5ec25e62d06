"""What a teacher reads: the student's tensors or the raw text."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, PreTrainedTokenizerFast

from amal_hf.teacher_inputs import TeacherInputs, own_tokenizer, row_numbers, student_encoding, text_encoding


def tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *words])}
    model = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]")


def inputs(dataset: Any, **more: Any) -> TeacherInputs:
    """Inputs whose collator only stacks."""
    return TeacherInputs(dataset, lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])}, **more)


ROWS = Dataset.from_dict(
    {
        "input_ids": [[2, 3], [3, 2], [2, 2]],
        "label": [0, 1, 0],
        "text": ["a b", "b", "a"],
        "more": ["b b", "a", "b"],
    }
)


def test_student_encoding_is_the_collators() -> None:
    """Rows reach the collator with the chosen columns only, so text or labels cannot break it."""
    encoding = student_encoding(inputs(ROWS, columns=["input_ids"]))
    assert encoding.rows.column_names == ["input_ids"]
    assert encoding([2, 0])["input_ids"].tolist() == [[2, 2], [2, 3]]


def test_a_cache_shows_the_collator_what_training_shows_it() -> None:
    """Rows in the format of the training set: tensors to a collator of tensors. One that needs the labels is told so,
    and so is a training set in which a function makes others of the columns that the teacher reads.
    """
    stacked = TeacherInputs(
        ROWS.with_format("torch"), lambda rows: {"input_ids": torch.stack([row["input_ids"] for row in rows])}
    )
    encoding = student_encoding(replace(stacked, columns=["input_ids"]))
    assert encoding([2, 0])["input_ids"].tolist() == [[2, 2], [2, 3]]
    greedy = replace(stacked, columns=["input_ids"], collator=lambda rows: [row["label"] for row in rows])
    with pytest.raises(ValueError, match=r"the student's inputs alone, \['input_ids'\].*KeyError: 'label'"):
        student_encoding(greedy)([0])
    plain = replace(
        inputs(ROWS, columns=["input_ids"]), dataset=ROWS.with_transform(lambda rows: {**rows, "label": rows["text"]})
    )
    assert student_encoding(plain)([2, 0])["input_ids"].tolist() == [[2, 2], [2, 3]]
    changed = ROWS.with_transform(lambda rows: {"input_ids": [ids[::-1] for ids in rows["input_ids"]]})
    with pytest.raises(ValueError, match="with_transform"):
        student_encoding(replace(plain, dataset=changed))


def test_a_cache_of_rows_that_the_collator_tokenises() -> None:
    """It would be of nothing; naming text columns, of which the teacher reads none, would not help."""
    with pytest.raises(
        ValueError, match=r"has none, but \['text', 'more'\]\. Tokenise it.*leave teacher_cache_dir out"
    ):
        student_encoding(inputs(ROWS.select_columns(["text", "more"])))


@pytest.mark.parametrize(
    ("columns", "places", "ids"),
    [
        (["text"], 512, [[3, 0], [3, 2]]),
        (["text"], 1, [[3], [3]]),
        (["text", "more"], 512, [[3, 2, 0, 0], [3, 2, 2, 2]]),
    ],
)
def test_text_encoding_tokenises_anew(columns: list[str], places: int, ids: list[list[int]]) -> None:
    """Texts and pairs go through the teacher's tokenizer, cut at what the teacher can read, padded to the longest."""
    other_way_round = tokenizer("b", "a")  # so that reading the student's ids would be noticed
    config = BertConfig(max_position_embeddings=places)
    encoding = text_encoding(inputs(ROWS, text_columns=columns), other_way_round, config)
    assert encoding([2, 0])["input_ids"].tolist() == ids


def test_text_encoding_ignores_the_dataset_format() -> None:
    """A dataset formatted for torch still gives its text."""
    encoding = text_encoding(
        inputs(ROWS.with_format("torch"), text_columns=["text"]), tokenizer("a", "b"), BertConfig()
    )
    assert encoding([0])["input_ids"].tolist() == [[2, 3]]


def test_settings_know_tokenizer_and_length() -> None:
    """Another vocabulary or longest text is another cache; having been used is not."""
    first = tokenizer("a", "b")
    encoding = text_encoding(inputs(ROWS, text_columns=["text"]), first, BertConfig())
    before = encoding.settings()
    encoding([0, 1])
    assert encoding.settings() == before
    assert text_encoding(inputs(ROWS, text_columns=["text"]), tokenizer("a", "b"), BertConfig()).settings() == before
    assert text_encoding(inputs(ROWS, text_columns=["text"]), tokenizer("b", "a"), BertConfig()).settings() != before
    shorter = BertConfig(max_position_embeddings=8)
    assert text_encoding(inputs(ROWS, text_columns=["text"]), first, shorter).settings() != before


def test_same_vocabulary_is_one_encoding() -> None:
    """Equal vocabularies share the student's tensors; the order of the words matters."""
    small = BertConfig(vocab_size=4)
    assert own_tokenizer(tokenizer("a", "b"), small, tokenizer("a", "b"), small) is None
    other = tokenizer("b", "a")
    assert own_tokenizer(other, small, tokenizer("a", "b"), small) is other


@pytest.mark.parametrize("known", [None, tokenizer("a")])
def test_sizes_are_compared_without_a_tokenizer(known: PreTrainedTokenizerFast | None) -> None:
    """With one tokenizer unknown, ids beyond the other's vocabulary would crash or mean other words: refused."""
    assert own_tokenizer(known, BertConfig(vocab_size=4), None, BertConfig(vocab_size=4)) is None
    with pytest.raises(ValueError, match=r"4 tokens and the student 5.*text_columns"):
        own_tokenizer(known, BertConfig(vocab_size=4), None, BertConfig(vocab_size=5))


@pytest.mark.parametrize(
    ("dataset", "columns", "message"),
    [
        (ROWS.to_iterable_dataset(), ["text"], "IterableDataset does not allow"),
        (None, ["text"], "NoneType does not allow"),
        (ROWS, ["words"], r"text columns \['words'\].*input_ids"),
        (ROWS, [], r"text columns \[\]"),
        (ROWS, ["text", "more", "label"], "one text or a pair"),
    ],
)
def test_texts_that_cannot_be_looked_up(dataset: Any, columns: list[str], message: str) -> None:
    """Streams, missing and surplus columns are refused when the teacher is opened, not in the middle of training."""
    with pytest.raises(ValueError, match=message):
        text_encoding(inputs(dataset, text_columns=columns), tokenizer("a"), BertConfig())


def test_row_numbers_must_be_of_this_dataset() -> None:
    """Without ids, or with those of another dataset, a look-up would give the logits of the wrong example."""
    assert row_numbers({"example_id": torch.tensor([2, 0])}, rows=3) == [2, 0]
    with pytest.raises(ValueError, match="training batches only"):
        row_numbers({"input_ids": torch.zeros(1, 2)}, rows=3)
    for stranger in (3, -1):
        with pytest.raises(ValueError, match=rf"\[{stranger}\] lie outside the 3"):
            row_numbers({"example_id": torch.tensor([0, stranger])}, rows=3)
