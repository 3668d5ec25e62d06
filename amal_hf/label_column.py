"""The column of labels, as classes or as numbers to be hit. No tensors here."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from datasets import ClassLabel, Dataset, DatasetDict, List, Value

from amal_hf.columns import replace_column, require_columns


UNLABELLED = -1
"""The code of a missing label, as in the test splits of GLUE."""

_MISSING = {"", "na", "n/a", "nan", "null", "none"}
"""What tables say where they have no number, in small letters."""

_Code: TypeAlias = str | int | bool | None


def with_label(dataset: DatasetDict, column: str, names: list[str] | None) -> DatasetDict:
    """The dataset with `column` as `label` (or `labels` of tokens), encoded as classes unless it is a number.

    Args:
        dataset: its splits; a split without the column has no labels, -1.
        column: of labels.
        names: of the classes by code; the distinct labels by default, sorted.

    Raises:
        ValueError: no such column, lists of labels without tokens, labels that `names` lacks, or missing numbers.
    """
    splits = list(dataset.values())
    labelled = next((split for split in splits if column in split.column_names), splits[0])
    require_columns(labelled.column_names, [column])
    feature = labelled.features[column]
    tokenwise = isinstance(feature, List)
    inner = feature.feature if isinstance(feature, List) else feature
    target = "labels" if tokenwise else "label"
    if tokenwise and "tokens" not in labelled.column_names:
        raise ValueError(
            f"Column {column!r} holds lists, one label a token, but there is no column 'tokens' to go with them among "
            f"{labelled.column_names}. Several labels a text are not supported."
        )
    if column != target:
        dataset = DatasetDict({name: _renamed(split, column, target) for name, split in dataset.items()})
    if isinstance(inner, ClassLabel):
        return DatasetDict({name: without_nulls(split, target, feature) for name, split in dataset.items()})
    if not tokenwise and _are_numbers(dataset, target, names or []):
        return dataset.cast_column(target, Value("float32"))
    return _encode(dataset, target, tokenwise, names)


def _renamed(split: Dataset, column: str, target: str) -> Dataset:
    """With the column under the name that it is read by; another one of that name was not asked for."""
    left = split.remove_columns(target) if target in split.column_names else split
    return left.rename_column(column, target) if column in split.column_names else left


def without_nulls(split: Dataset, column: str, feature: Any) -> Dataset:
    """The split with -1 in the place of missing labels, of rows and of tokens."""
    values = _column(split, column)
    if None not in _flatten(values):
        return split
    known = [[_known(part) for part in value] if isinstance(value, list) else value for value in values]
    return replace_column(split, column, with_unlabelled(known, split, isinstance(feature, List)), feature)


def _known(code: int | None) -> int:
    return UNLABELLED if code is None else code


def label_feature(split: Dataset, column: str) -> Any:
    """The type of a column of labels that are to be written anew: with the names of its classes, if it has any."""
    feature = split.features.get(column)
    tokenwise = column == "labels" if feature is None else isinstance(feature, List)
    inner = feature.feature if isinstance(feature, List) else feature
    label = inner if isinstance(inner, ClassLabel) else Value("int64")
    return List(label) if tokenwise else label


def with_unlabelled(labels: list[Any], split: Dataset, tokenwise: bool) -> list[Any]:
    """Labels of a split, `None` for none: such rows say so by -1, or by one for each of their tokens."""
    if all(label is not None for label in labels):
        return labels
    tokens = split.with_format(None)["tokens"] if tokenwise else [None] * len(split)
    return [
        label if label is not None else UNLABELLED if words is None else [UNLABELLED] * len(words)
        for label, words in zip(labels, tokens, strict=True)
    ]


def _are_numbers(dataset: DatasetDict, column: str, names: list[str]) -> bool:
    """Whether labels are numbers to be hit rather than classes, of which these are the names.

    Raises:
        ValueError: they are, and some are missing, which no code could stand for.
    """
    values = [value for split in dataset.values() for value in _column(split, column)]
    known = [value for value in values if value in names or not _is_missing(value)]
    floats, fractions = (isinstance(value, float) for value in known), map(_is_fraction, known)
    measured = all(floats) or any(fractions)
    if not (known and measured and all(map(_is_number, known))):
        return False
    if len(known) < len(values):
        raise ValueError(
            f"Column {column!r} holds numbers, and {len(values) - len(known)} rows have none. Remove these rows."
        )
    return not any(isinstance(value, str) for value in known)


def _is_missing(value: Any) -> bool:
    """Whether a row has no number: nothing, a word that says so, or NaN, which is not equal to itself."""
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in _MISSING)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_fraction(value: Any) -> bool:
    return isinstance(value, str | float) and _is_number(value) and not float(value).is_integer()


def _is_whole(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()) is not None


def _column(split: Dataset, column: str) -> list[Any]:
    """The values of a column, `None` where a split lacks it: test sets often come without labels."""
    if column not in split.column_names:
        return [None] * len(split)
    values: list[Any] = split.with_format(None)[column][:]
    return values


def _encode(dataset: DatasetDict, column: str, tokenwise: bool, names: list[str] | None) -> DatasetDict:
    plain = _of_one_type({name: _column(split, column) for name, split in dataset.items()})
    seen = _distinct(plain)
    codes = _class_codes(seen - {None, ""}, names)
    if unknown := seen - set(codes):
        raise ValueError(f"Column {column!r} has labels {sorted(map(str, unknown))} that label.json does not name.")
    label = ClassLabel(names=names or [str(value) for value, code in codes.items() if code != UNLABELLED])
    encoded = DatasetDict()
    for name, split in dataset.items():
        coded = [None if value is None else _coded(value, codes) for value in plain[name]]
        values = with_unlabelled(coded, split, tokenwise)
        encoded[name] = replace_column(split, column, values, List(label) if tokenwise else label)
    return encoded


def _of_one_type(splits: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Labels of all splits; a blank makes a table's whole column text, where that of another split is of numbers."""
    numbers = {str(value): value for value in _distinct(splits) if value is not None and not isinstance(value, str)}
    return {
        name: [numbers.get(value, value) if isinstance(value, str) else value for value in values]
        for name, values in splits.items()
    }


def _distinct(splits: dict[str, list[Any]]) -> set[_Code]:
    return {value for values in splits.values() for value in _flatten(values)}


def _coded(value: Any, codes: Mapping[_Code, int]) -> Any:
    return [codes[part] for part in value] if isinstance(value, list) else codes[value]


def _class_codes(seen: set[_Code], names: list[str] | None) -> dict[_Code, int]:
    missing: dict[_Code, int] = {None: UNLABELLED, "": UNLABELLED}
    if names is None:
        # Without names -1 is a class like others: files with -1/1 or -1/0/1 (sentiment) mean it so. One blank makes
        # text of a column of numbers, whose order is theirs all the same.
        numbers = all(map(_is_whole, seen))
        ordered = sorted(seen, key=lambda value: (isinstance(value, str), int(value or 0) if numbers else 0, value))
        return {value: code for code, value in enumerate(ordered)} | missing
    by_number: dict[_Code, int] = {}
    for code in range(UNLABELLED, len(names)):
        by_number |= {code: code, str(code): code}
    return by_number | {name: code for code, name in enumerate(names)} | missing


def _flatten(values: Iterable[Any]) -> Iterator[_Code]:
    for value in values:
        yield from value if isinstance(value, list) else [value]
