"""Columns of datasets: found by their usual names, asked for, replaced, and what stands in them as a fingerprint."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, cast

from datasets import Dataset, DatasetDict


_TEXT_PAIRS = ("sentence1 sentence2", "premise hypothesis", "question1 question2", "question sentence", "text1 text2")
_TEXT_COLUMNS = (*_TEXT_PAIRS, "text", "sentence", "tokens", "utterance", "question", "content", "review", "comment")


def is_transformed(dataset: Any) -> bool:
    """Whether rows are made by a function (`with_transform`), so that they need not have the dataset's columns."""
    return isinstance(dataset, Dataset) and dataset.format["type"] == "custom"


def find_text_columns(columns: Sequence[str], option: str = "text_columns=[...]") -> tuple[str, ...]:
    """The column of text among `columns`, or the two of a pair such as sentence1 and sentence2.

    Raises:
        ValueError: if none of the usual names is there; `option` is how to name one's own.
    """
    return first_present(columns, _TEXT_COLUMNS, option)


def first_present(columns: Sequence[str], candidates: Sequence[str], option: str) -> tuple[str, ...]:
    """The first candidate (one name, or two with a blank between) whose names are all among the columns.

    Raises:
        ValueError: there is none; `option` is how to name one's own.
    """
    for candidate in map(str.split, candidates):
        if set(candidate) <= set(columns):
            return tuple(candidate)
    raise ValueError(f"Expected one of {list(candidates)} among the columns {list(columns)}. Name yours with {option}")


def require_columns(columns: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse a dataset that lacks some.

    Raises:
        ValueError: some of `wanted` are not among `columns`.
    """
    if missing := [column for column in wanted if column not in columns]:
        raise ValueError(f"Columns {missing} are not among the dataset's columns {list(columns)}.")


def replace_column(dataset: Dataset, column: str, values: list[Any], feature: Any) -> Dataset:
    """The dataset with `column` holding `values` of the type `feature`; the column need not have been there."""
    kept = dataset.remove_columns(column) if column in dataset.column_names else dataset
    # `add_column` is decorated in a way that hides its return type.
    return cast(Dataset, kept.add_column(column, values, feature=feature))


def dataset_fingerprint(dataset: Dataset | DatasetDict, columns: Sequence[str]) -> str:
    """Sixteen hex digits (of SHA-256) that stand for the content of `columns`, whatever files it came from.

    Rows count in their order, splits by their names. Class labels count as numbers.
    """
    digest = hashlib.sha256()
    splits = {"": dataset} if isinstance(dataset, Dataset) else {str(name): dataset[name] for name in dataset}
    for name in sorted(splits):
        require_columns(splits[name].column_names, columns)
        digest.update(json.dumps([name, list(columns), len(splits[name])]).encode())
        for row in splits[name].select_columns(list(columns)).with_format(None):
            digest.update(json.dumps([row[column] for column in columns], default=str).encode())
    return digest.hexdigest()[:16]
