"""Datasets read, split and named by their content. No tensors here.

How `read_dataset` gets from a source to a `DatasetDict` that a trainer understands:

1. A folder with `label.json` beside `train.json` is read as WRENCH (labels and votes of rules).
2. A table file, or a folder of table files named after their splits, is read as JSON lines, CSV or TSV.
3. Anything else is left to `datasets.load_dataset`: a Hub id, or a folder that it knows.
4. Splits get their usual names, the text columns are looked for, and the label column becomes `label` (a
   `ClassLabel`, or float32 for regression), or `labels` where every token has its own.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset


UNLABELLED = -1
"""The code of a missing label, as in the test splits of GLUE."""

_Code: TypeAlias = str | int | bool | None

_SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}
_FOLDER_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "labeled")
_TEXT_PAIRS = ("sentence1 sentence2", "premise hypothesis", "question1 question2", "question sentence", "text1 text2")
_TEXT_COLUMNS = (*_TEXT_PAIRS, "text", "sentence", "tokens", "utterance", "question", "content", "review", "comment")
_LABEL_COLUMNS = ("label", "labels", "intent", "category", "class", "target", "coarse_label", "ner_tags")
_TABLE_OPTIONS: dict[str, dict[str, Any]] = {
    ".jsonl": {},
    ".json": {},
    # A text may be "NA" or "null": pandas must not take it for a missing value.
    ".csv": {"keep_default_na": False},
    # In TSV files a quote is a character like others; 3 is csv.QUOTE_NONE.
    ".tsv": {"sep": "\t", "quoting": 3, "keep_default_na": False},
}


def read_dataset(
    source: str | Path,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    config: str | None = None,
) -> DatasetDict:
    """Reads a labelled dataset from a WRENCH folder, table files or the Hub.

    Args:
        source: a folder in WRENCH format (columns `id`, `text`, `label`, `weak_labels`; `tokens` and `labels` in
            place of `text` and `label` where tokens are labelled; a `labeled.json` becomes the split `labeled`, whose
            rows may also stand in `train`); a `.jsonl`, `.json`, `.csv` or `.tsv` file (one split, `train`); a folder
            of such files named train, valid/validation/val/dev, test or labeled; or a Hub id.
        text_columns: the columns that hold the text. Default: found by name, see `find_text_columns`.
        label_column: the column to become `label`; another one of that name is left out. Default: the first of the
            usual names (label, labels, intent...).
        config: the configuration of a Hub dataset, such as `"sst2"` of GLUE.

    Returns:
        All splits with all their columns. Classes are named by the folder's `label.json` (and are then numbers into it
        or its names, with -1 for unlabelled), otherwise by the sorted distinct labels of all splits together. Missing
        and empty labels become -1.

    Raises:
        FileNotFoundError: if `source` is named like a table file and there is none.
        ValueError: if text or labels are not found; the message lists the columns there are.
    """
    path = Path(source)
    if path.is_dir() and all((path / name).is_file() for name in ("label.json", "train.json")):
        return _read_wrench(path)
    dataset = _read_tables(path) or cast(DatasetDict, load_dataset(str(source), config))
    dataset = DatasetDict({_SPLIT_NAMES.get(name, name): split for name, split in dataset.items()})
    columns = next(iter(dataset.values())).column_names
    texts = text_columns or find_text_columns(columns)
    _require_columns(columns, texts)
    names = _read_names(path / "label.json") if (path / "label.json").is_file() else None
    return _with_label(dataset, label_column or _first_present(columns, _LABEL_COLUMNS, "label_column=...")[0], names)


def find_text_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """The column of text among `columns`, or the two of a pair such as sentence1 and sentence2.

    Raises:
        ValueError: if none of the usual names is there.
    """
    return _first_present(columns, _TEXT_COLUMNS, "text_columns=[...]")


def normalise_text(text: Any) -> str:
    """The text with case folded and runs of white space made one blank; tokens are joined by blanks.

    A file may have numbers for texts, or nothing.
    """
    joined = " ".join(map(str, text)) if isinstance(text, (list, tuple)) else str("" if text is None else text)
    return " ".join(joined.casefold().split())


def split_dataset(dataset: Dataset, sizes: Mapping[str, int | float], seed: int) -> DatasetDict:
    """Carves splits out of a dataset: seeded, stratified by `label`, with no text in two splits.

    Args:
        dataset: the rows to divide; texts are compared by `normalise_text`.
        sizes: name of the split to its rows (an int), or its share of all rows (a float below 1). Without `"train"`
            among them the rest becomes `train`, less the rows whose text went to another split; with it, the rest is
            left out. Of a text that occurs more than once only the first row can be drawn.
        seed: the same seed draws the same rows.

    Returns:
        The splits, `train` first. Drawn splits are shuffled so that every run of rows has about the classes' shares of
        the whole (where `label` is a `ClassLabel`; otherwise they are simply shuffled); a rest keeps its order.

    Raises:
        ValueError: if a size is neither a positive int nor a share, or if there are too few different texts.
    """
    keys = _text_keys(dataset, find_text_columns(dataset.column_names))
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    order = _stratified_order(dataset, np.array(sorted(first.values()), dtype=np.int64), seed)
    counts = _row_counts(sizes, len(dataset))
    if sum(counts.values()) > len(order):
        raise ValueError(
            f"The splits {counts} need {sum(counts.values())} rows, but the dataset has only {len(order)} different "
            f"texts in {len(dataset)} rows. Ask for smaller splits."
        )
    ends = np.cumsum(list(counts.values()))
    drawn = dict(zip(counts, np.split(order, ends)[:-1], strict=True))
    if "train" not in drawn:
        taken = {keys[row] for rows in drawn.values() for row in rows}
        drawn["train"] = np.array([row for row, key in enumerate(keys) if key not in taken], dtype=np.int64)
    names = sorted(drawn, key=lambda name: name != "train")
    return DatasetDict({name: dataset.select(drawn[name]) for name in names})


def complete_splits(data: DatasetDict, meta_rows: int, seed: int) -> DatasetDict:
    """Train, meta, validation and test, of labelled rows alone; what is missing is taken out of the training set.

    Test sets without labels are no use: the validation set takes their place, and a tenth of the training set its own.

    Args:
        data: with `train`, and a column `label` that is -1 where there is none.
        meta_rows: of the meta set.
        seed: of the draws.

    Raises:
        ValueError: as `split_dataset`.
    """
    labelled = {name: split.filter(lambda row: row["label"] >= 0) for name, split in data.items()}
    given = {name: split for name, split in labelled.items() if len(split) and name in ("validation", "test")}
    if "test" not in given and "validation" in given:
        given = {"test": given["validation"]}
    missing = {name: 0.1 for name in ("validation", "test") if name not in given}
    return DatasetDict({**split_dataset(labelled["train"], {"meta": meta_rows, **missing}, seed), **given})


def overlap(a: Dataset, b: Dataset, columns: Sequence[str]) -> list[int]:
    """The rows of `a` whose text in `columns`, after `normalise_text`, also stands in `b`."""
    known = set(_text_keys(b, columns))
    return [row for row, key in enumerate(_text_keys(a, columns)) if key in known]


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
        _require_columns(splits[name].column_names, columns)
        digest.update(json.dumps([name, list(columns), len(splits[name])]).encode())
        for row in splits[name].select_columns(list(columns)).with_format(None):
            digest.update(json.dumps([row[column] for column in columns], default=str).encode())
    return digest.hexdigest()[:16]


def _read_wrench(folder: Path) -> DatasetDict:
    names = _read_names(folder / "label.json")
    files = {_SPLIT_NAMES.get(name, name): folder / f"{name}.json" for name in ("train", "valid", "test", "labeled")}
    return DatasetDict({split: _read_wrench_file(file, names) for split, file in files.items() if file.is_file()})


def _read_wrench_file(file: Path, names: list[str]) -> Dataset:
    rows = json.loads(file.read_text(encoding="utf-8"))
    if not rows or not all("text" in row["data"] for row in rows.values()):
        raise ValueError(f"{file} should be an object of rows with data.text, but has no row or a row without text.")
    votes, label, text = List(Value("int16")), ClassLabel(names=names), Value("string")
    if isinstance(next(iter(rows.values()))["label"], list):
        keys = ("id", "tokens", "labels", "weak_labels")
        features = (Value("string"), List(text), List(label), List(votes))
    else:
        keys = ("id", "text", "label", "weak_labels")
        features = (Value("string"), text, label, votes)
    values = ((key, row["data"]["text"], row["label"], row["weak_labels"]) for key, row in rows.items())
    table = [dict(zip(keys, value, strict=True)) for value in values]
    return Dataset.from_list(table, features=Features(dict(zip(keys, features, strict=True))))


def _read_names(file: Path) -> list[str]:
    names = json.loads(file.read_text(encoding="utf-8"))
    codes = sorted(names, key=int)
    if [int(code) for code in codes] != list(range(len(codes))):
        raise ValueError(f"{file} should name the classes 0 to {len(codes) - 1}, but names {codes}.")
    return [names[code] for code in codes]


def _read_tables(path: Path) -> DatasetDict | None:
    """The file, or the split files of the folder; None if the path is neither."""
    if path.suffix in _TABLE_OPTIONS:
        return DatasetDict({"train": _read_table(path)})
    stems = [(name, path / f"{name}{suffix}") for name in _FOLDER_SPLITS for suffix in _TABLE_OPTIONS]
    splits = {name: _read_table(file) for name, file in stems if file.is_file()}
    return DatasetDict(splits) if splits else None


def _read_table(file: Path) -> Dataset:
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file} (looked in {Path.cwd()}).")
    kind = "json" if file.suffix.startswith(".json") else "csv"
    return load_dataset(kind, data_files=str(file), split="train", **_TABLE_OPTIONS[file.suffix])


def _first_present(columns: Sequence[str], candidates: Sequence[str], option: str) -> tuple[str, ...]:
    """The first candidate (one name, or two with a blank between) whose names are all among the columns."""
    for candidate in map(str.split, candidates):
        if set(candidate) <= set(columns):
            return tuple(candidate)
    raise ValueError(f"Expected one of {list(candidates)} among the columns {list(columns)}. Name yours with {option}")


def _with_label(dataset: DatasetDict, column: str, names: list[str] | None) -> DatasetDict:
    """The dataset with `column` as `label` (or `labels` of tokens), encoded as classes unless it is a number."""
    splits = list(dataset.values())
    _require_columns(splits[0].column_names, [column])
    feature = splits[0].features[column]
    tokenwise = isinstance(feature, List)
    inner = feature.feature if isinstance(feature, List) else feature
    target = "labels" if tokenwise else "label"
    if tokenwise and "tokens" not in splits[0].column_names:
        raise ValueError(
            f"Column {column!r} holds lists, one label a token, but there is no column 'tokens' to go with them among "
            f"{splits[0].column_names}. Several labels a text are not supported."
        )
    if column != target:
        dataset = DatasetDict({name: _renamed(split, column, target) for name, split in dataset.items()})
    if isinstance(inner, ClassLabel):
        return DatasetDict({name: _without_nulls(split, target, feature) for name, split in dataset.items()})
    if not tokenwise and _are_numbers(dataset, target):
        return dataset.cast_column(target, Value("float32"))
    return _encode(dataset, target, tokenwise, names)


def _renamed(split: Dataset, column: str, target: str) -> Dataset:
    """With the column under the name that it is read by; another one of that name was not asked for."""
    if column not in split.column_names:
        return split
    left = split.remove_columns(target) if target in split.column_names else split
    return left.rename_column(column, target)


def _without_nulls(split: Dataset, column: str, feature: Any) -> Dataset:
    values = _column(split, column)
    if all(value is not None for value in values):
        return split
    return replace_column(split, column, with_unlabelled(values, split, isinstance(feature, List)), feature)


def with_unlabelled(labels: list[Any], split: Dataset, tokenwise: bool) -> list[Any]:
    """Labels of a split, `None` for none: such rows say so by -1, or by one for each of their tokens."""
    if all(label is not None for label in labels):
        return labels
    tokens = split.with_format(None)["tokens"] if tokenwise else [None] * len(split)
    return [
        label if label is not None else UNLABELLED if words is None else [UNLABELLED] * len(words)
        for label, words in zip(labels, tokens, strict=True)
    ]


def _are_numbers(dataset: DatasetDict, column: str) -> bool:
    """Whether labels are numbers to be hit rather than classes.

    Raises:
        ValueError: they are, and some are missing, which no code could stand for.
    """
    values = [value for split in dataset.values() for value in _column(split, column)]
    known = [value for value in values if value not in (None, "")]
    if not any(isinstance(value, float) or _is_fraction(value) for value in known):
        return False
    if len(known) < len(values) and all(isinstance(value, float) or _is_number(value) for value in known):
        raise ValueError(
            f"Column {column!r} holds numbers, and {len(values) - len(known)} rows have none. Remove these rows."
        )
    return all(isinstance(value, float) for value in known)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_fraction(value: Any) -> bool:
    return isinstance(value, str) and _is_number(value) and not float(value).is_integer()


def _column(split: Dataset, column: str) -> list[Any]:
    """The values of a column, `None` where a split lacks it: test sets often come without labels."""
    if column not in split.column_names:
        return [None] * len(split)
    values: list[Any] = split.with_format(None)[column][:]
    return values


def _encode(dataset: DatasetDict, column: str, tokenwise: bool, names: list[str] | None) -> DatasetDict:
    plain = {name: _column(split, column) for name, split in dataset.items()}
    seen = set(_flatten(value for values in plain.values() for value in values))
    # A blank makes a table's whole column text, where that of another split is of numbers.
    alike = {str(value): value for value in seen if value is not None and not isinstance(value, str)}
    if alike:
        plain = {name: [alike.get(v, v) if isinstance(v, str) else v for v in vs] for name, vs in plain.items()}
        seen = set(_flatten(value for values in plain.values() for value in values))
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


def _coded(value: Any, codes: Mapping[_Code, int]) -> Any:
    return [codes[part] for part in value] if isinstance(value, list) else codes[value]


def _class_codes(seen: set[_Code], names: list[str] | None) -> dict[_Code, int]:
    missing: dict[_Code, int] = {None: UNLABELLED, "": UNLABELLED}
    if names is None:
        # Without names -1 is a class like others: files with -1/1 or -1/0/1 (sentiment) mean it so.
        ordered = sorted(seen, key=lambda value: (isinstance(value, str), value))
        return {value: code for code, value in enumerate(ordered)} | missing
    by_number: dict[_Code, int] = {code: code for code in range(UNLABELLED, len(names))}
    return by_number | {name: code for code, name in enumerate(names)} | missing


def _flatten(values: Iterable[Any]) -> Iterator[_Code]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def _text_keys(dataset: Dataset, columns: Sequence[str]) -> list[tuple[str, ...]]:
    _require_columns(dataset.column_names, columns)
    plain = dataset.with_format(None)
    texts = ([normalise_text(text) for text in plain[column]] for column in columns)
    return list(zip(*texts, strict=True))


def _stratified_order(dataset: Dataset, rows: np.ndarray, seed: int) -> np.ndarray:
    """The rows shuffled so that each stretch of them has about the classes' shares of the whole.

    The n rows of a class get one random place in each n-th of the unit interval; sorting by place mixes the classes.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(rows)
    if not isinstance(dataset.features.get("label"), ClassLabel):
        return rows
    labels = np.asarray(dataset.with_format(None)["label"][:], dtype=np.int64)[rows]
    places = np.empty(len(rows))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        places[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return rows[np.argsort(places, kind="stable")]


def _row_counts(sizes: Mapping[str, int | float], total: int) -> dict[str, int]:
    """Rows of every split. Shares are rounded where one ends and the next begins: those of a whole add up to it."""
    counts, end = {}, 0.0
    for name, size in sizes.items():
        whole = isinstance(size, Integral)
        counts[name] = int(size) if whole else round((end + size) * total) - round(end * total)
        end += 0.0 if whole else size
        if counts[name] < 1 or not (whole or size < 1):
            raise ValueError(
                f"Split {name!r} should be a positive number of rows or a share below 1, but came as {size} of "
                f"{total} rows."
            )
    return counts


def _require_columns(columns: Sequence[str], wanted: Sequence[str]) -> None:
    if missing := [column for column in wanted if column not in columns]:
        raise ValueError(f"Columns {missing} are not among the dataset's columns {list(columns)}.")
