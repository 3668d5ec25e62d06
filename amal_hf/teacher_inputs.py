"""What a teacher is fed: the student's own tensors, or the raw text through the teacher's tokenizer.

Both encodings turn row numbers of the training set into model inputs, so live and cached teachers see the same rows.
A teacher shares the student's encoding when both tokenizers have the same vocabulary; otherwise it reads the text.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from amal_hf.columns import is_transformed
from amal_hf.label_order import same_words
from amal_hf.shapes import EXAMPLE_ID, Batch
from amal_hf.text_limit import text_limit


PROBED = 64
"""Of the first rows so many are looked at, to see what a collator or a teacher does with them."""

_TENSORS = ("torch", "numpy", "tensorflow", "jax")
"""Formats of a dataset that only say of what kind a row's values are."""


@dataclass(frozen=True)
class TeacherInputs:
    """Where the inputs of a teacher come from.

    Attributes:
        dataset: the training set; its row numbers are the example ids. Only a `datasets.Dataset` can be looked up by
            row; anything else serves a live teacher that shares the student's encoding.
        collator: rows (a list of dicts) → a batch, as the student gets it.
        columns: the columns of `dataset` handed to the collator for the teacher (input ids, attention mask ...,
            no labels). Needed for a cache.
        tokenizer: the student's tokenizer, to compare with the teacher's.
        text_columns: one or two columns of raw text, for a teacher with another vocabulary.
        batch_size: rows in one forward pass while a cache is filled.
    """

    dataset: Any
    collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    columns: Sequence[str] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    text_columns: Sequence[str] = ()
    batch_size: int = 32


class Encoding(Protocol):
    """Row numbers of the training set → model inputs on the CPU."""

    @property
    def rows(self) -> Dataset:
        """The columns that decide the inputs, nothing else."""

    def __call__(self, numbers: list[int]) -> Batch:
        """Model inputs of these rows."""

    def settings(self) -> dict[str, str]:
        """What else decides the inputs, for the key of a cache."""


@dataclass(frozen=True)
class StudentEncoding:
    """The tokenised columns through the student's collator."""

    rows: Dataset
    collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]]

    def __call__(self, numbers: list[int]) -> Batch:
        """Model inputs of these rows.

        Raises:
            ValueError: the collator needs more of a row.
        """
        try:
            return self.collator([self.rows[number] for number in numbers])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"A cache shows the data collator the student's inputs alone, {self.rows.column_names}, and it failed "
                f"on them ({type(error).__name__}: {error}). Have it do without other columns, or leave "
                f"teacher_cache_dir out: a live teacher reads the batches that the student reads."
            ) from error

    def settings(self) -> dict[str, str]:
        """What the collator makes of the first rows, beside the columns: it may cut texts, or mark them.

        Raises:
            ValueError: it makes another batch of the same rows each time.
        """
        first = list(range(min(PROBED, self.rows.num_rows)))
        made, again = _digest(self(first)), _digest(self(first))
        if made != again:
            raise ValueError(
                "The data collator makes another batch of the same rows each time (it masks at random, say), so that "
                "cached logits would be those of inputs that the student never sees. Leave teacher_cache_dir out: a "
                "live teacher reads what the student reads."
            )
        return {"collated": made}


@dataclass(frozen=True)
class TextEncoding:
    """The raw text through the teacher's own tokenizer, cut at `max_length` tokens, by default where that one cuts."""

    rows: Dataset
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None

    def __call__(self, numbers: list[int]) -> Batch:
        """Model inputs of these rows, padded to the longest."""
        texts = self.rows[numbers]
        columns = [texts[name] for name in self.rows.column_names]
        return dict(
            self.tokenizer(*columns, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt")
        )

    def settings(self) -> dict[str, str]:
        """The tokenizer's content and the maximum length."""
        return {"tokenizer": _tokenizer_digest(self.tokenizer), "max_length": str(self.max_length)}


def student_encoding(inputs: TeacherInputs) -> StudentEncoding:
    """The student's encoding, row by row, in the format that the training set has.

    Raises:
        ValueError: the training set has no rows to look up, or none of these columns, or a function
            (`with_transform`) makes others of them.
    """
    if isinstance(inputs.dataset, Dataset) and not inputs.columns:
        raise ValueError(
            f"A cache shows the data collator the student's inputs alone, and the training set has none, but "
            f"{inputs.dataset.column_names}. Tokenise it by dataset.map(...), or leave teacher_cache_dir out: a live "
            f"teacher reads what the student reads."
        )
    rows = _looked_up(inputs.dataset, inputs.columns, "columns")
    kept = inputs.dataset.format
    if kept["type"] in _TENSORS:
        return StudentEncoding(rows.with_format(kept["type"], **kept["format_kwargs"]), inputs.collator)
    encoding, first = StudentEncoding(rows, inputs.collator), list(range(min(PROBED, len(rows))))
    if is_transformed(inputs.dataset) and _digest(_transformed(inputs, first)) != _digest(encoding(first)):
        raise ValueError(
            "The training set makes its rows by a function (with_transform), which a cache of a teacher's answers "
            "does not see. Use dataset.map(...), or leave teacher_cache_dir out: a live teacher reads what the "
            "student reads."
        )
    return encoding


def _transformed(inputs: TeacherInputs, numbers: list[int]) -> Batch:
    """A batch of these rows as the training set's function makes them, of what the teacher reads."""
    rows = (inputs.dataset[number] for number in numbers)
    return inputs.collator([{name: row[name] for name in inputs.columns if name in row} for row in rows])


def text_encoding(inputs: TeacherInputs, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> TextEncoding:
    """The teacher's own encoding of the raw text.

    Raises:
        ValueError: the training set has no rows to look up, or not these columns, or there are more than two.
    """
    if len(inputs.text_columns) > 2:
        raise ValueError(
            f"Distillation: text_columns is {list(inputs.text_columns)}, but a tokenizer reads one text or a pair. "
            "Join the columns into one."
        )
    rows = _looked_up(inputs.dataset, inputs.text_columns, "text columns")
    return TextEncoding(rows, tokenizer, text_limit(tokenizer, config))


def own_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None,
    config: PreTrainedConfig,
    student_tokenizer: PreTrainedTokenizerBase | None,
    student_config: PreTrainedConfig,
) -> PreTrainedTokenizerBase | None:
    """The teacher's tokenizer if the student's ids mean nothing to it, None if both share one encoding.

    Vocabularies are compared token by token; where one tokenizer is unknown, by size.

    Raises:
        ValueError: a tokenizer is unknown and the vocabularies differ in size.
    """
    if tokenizer is not None and student_tokenizer is not None:
        return None if same_words(tokenizer, student_tokenizer) else tokenizer
    theirs, ours = (getattr(one.get_text_config(), "vocab_size", None) for one in (config, student_config))
    # What reads no words, as pictures, has none to mistake.
    if theirs != ours and theirs is not None and ours is not None:
        raise ValueError(
            f"The teacher knows {theirs} tokens and the student {ours}, so the student's input ids would mean other "
            "words to it. Give both tokenizers, the teacher's as Distillation(teacher, tokenizer=...) and the "
            "student's as the trainer's `processing_class`, and keep the column of raw text among the training rows "
            "(`text_columns`)."
        )
    return None


def row_numbers(batch: Batch, rows: int) -> list[int]:
    """The example ids of a batch, `(B,)`, once they are known to lie in a training set of `rows` rows.

    Raises:
        ValueError: the batch carries no ids (an evaluation batch), or ids of another dataset.
    """
    if EXAMPLE_ID not in batch:
        raise ValueError(
            f"This teacher looks training rows up by the column {EXAMPLE_ID!r}, but the batch has only "
            f"{sorted(batch)}. Use it on training batches only, or a live teacher that shares the student's encoding."
        )
    numbers: list[int] = batch[EXAMPLE_ID].tolist()
    strangers = [number for number in numbers if not 0 <= number < rows]
    if strangers:
        raise ValueError(
            f"Example ids {strangers[:5]} lie outside the {rows} training rows the teacher was opened with. "
            f"{EXAMPLE_ID!r} must be the row number in that dataset."
        )
    return numbers


def _digest(batch: Batch) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(batch.items()):
        told = value.tolist() if isinstance(value, Tensor) else value
        digest.update(f"{name} {json.dumps(told, default=str)}\n".encode())
    return digest.hexdigest()


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of what it does, wherever and however it was read from."""
    told = copy.deepcopy(tokenizer)
    told.name_or_path, told.init_kwargs = "", {}
    digest: str = Hasher.hash(told)
    return digest


def _looked_up(dataset: Any, columns: Sequence[str], field: str) -> Dataset:
    """These columns of the training set, as plain Python values."""
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"The teacher must look rows up by number, which a {type(dataset).__name__} does not allow. Pass a "
            "datasets.Dataset, or use a live teacher (no cache) that shares the student's tokenizer."
        )
    missing = [name for name in columns if name not in dataset.column_names]
    if missing or not columns:
        raise ValueError(
            f"The teacher reads the {field} {list(columns)} of the training set, which has {dataset.column_names}. "
            f"Keep them when tokenising, or name others: Distillation(teacher, text_columns=(...,))."
        )
    return dataset.with_format(None).select_columns(list(columns))
