"""Datasets read, and their splits and columns named as a trainer knows them. No tensors here.

How `read_dataset` gets from a source to a `DatasetDict` that a trainer understands:

1. A folder with `label.json` beside a `train.json` that is one object of rows is read as WRENCH (labels and votes of
   rules).
2. A table file, or a folder of table files named after their splits, is read as JSON lines, CSV or TSV.
3. Anything else is left to `datasets.load_dataset`: a Hub id, or a folder that it knows.
4. Splits get their usual names, the text columns are looked for, and the label column becomes `label` (a
   `ClassLabel`, or float32 for regression), or `labels` where every token has its own.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset

from amal_hf.columns import find_text_columns, first_present, require_columns
from amal_hf.label_column import with_label, without_nulls
from amal_hf.shapes import VOTES


_SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}
_FOLDER_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "labeled")
_LABEL_COLUMNS = ("label", "labels", "intent", "category", "class", "target", "coarse_label", "ner_tags")
_TABLE_OPTIONS: dict[str, dict[str, Any]] = {
    ".jsonl": {},
    ".json": {},
    ".csv": {},
    ".tsv": {"sep": "\t", "quoting": csv.QUOTE_NONE},  # in TSV files a quote is a character like others
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
        ValueError: if text or labels are not found; the message lists the columns there are. Or a text is null, a
            file is empty or of another kind, or a table has lines of more fields than columns, as texts do whose
            commas are not quoted.
    """
    path = Path(source)
    if (path / "label.json").is_file() and _is_wrench(path / "train.json"):
        return _read_wrench(path)
    dataset = _read_tables(path) or cast(DatasetDict, load_dataset(str(source), config))
    dataset = DatasetDict({_SPLIT_NAMES.get(name, name): split for name, split in dataset.items()})
    columns = next(iter(dataset.values())).column_names
    texts = text_columns or find_text_columns(columns)
    require_columns(columns, texts)
    _require_texts(dataset, texts)
    names = _read_names(path / "label.json") if (path / "label.json").is_file() else None
    # Rules are for training texts without labels, and those to score them on have some.
    labelled = next((s.column_names for s in dataset.values() if set(_LABEL_COLUMNS) & set(s.column_names)), columns)
    return with_label(dataset, label_column or first_present(labelled, _LABEL_COLUMNS, "label_column=...")[0], names)


def _require_texts(dataset: DatasetDict, columns: Sequence[str]) -> None:
    """Refuse texts that are null, in the splits that have such columns."""
    for name, split in dataset.items():
        for column in set(columns) & set(split.column_names):
            if split.data.column(column).null_count:
                missing = [row for row, text in enumerate(split.with_format(None)[column]) if text is None]
                raise ValueError(
                    f"Split {name!r} has {len(missing)} rows whose {column!r} is null, the first is row {missing[0]}. "
                    f'Leave them out, or write "" there.'
                )


def _read_wrench(folder: Path) -> DatasetDict:
    names = _read_names(folder / "label.json")
    files = {_SPLIT_NAMES.get(name, name): folder / f"{name}.json" for name in ("train", "valid", "test", "labeled")}
    return DatasetDict({split: _read_wrench_file(file, names) for split, file in files.items() if file.is_file()})


def _is_wrench(file: Path) -> bool:
    """Whether it is one object of objects; a table is a list, or many objects."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(rows, dict) and all(isinstance(row, dict) for row in rows.values())


def _read_wrench_file(file: Path, names: list[str]) -> Dataset:
    rows = json.loads(file.read_text(encoding="utf-8"))
    if not rows or not all("text" in row.get("data", {}) for row in rows.values()):
        raise ValueError(f"{file} should be an object of rows with data.text, but has no row or a row without text.")
    votes, label, text = List(Value("int16")), ClassLabel(names=names), Value("string")
    tokenwise = any(
        isinstance(part, list) for row in rows.values() for part in (row["data"]["text"], row.get("label"))
    )
    features = (
        {"id": Value("string"), "tokens": List(text), "labels": List(label), VOTES: List(votes)}
        if tokenwise
        else {"id": Value("string"), "text": text, "label": label, VOTES: votes}
    )
    if not any(VOTES in row for row in rows.values()):  # labelled by hand: no rule has looked at these rows
        del features[VOTES]
    values = ((key, row["data"]["text"], _label(row, tokenwise), row.get(VOTES)) for key, row in rows.items())
    table = [dict(zip(features, value, strict=False)) for value in values]
    read = Dataset.from_list(table, features=Features(features))
    target = "labels" if tokenwise else "label"
    return without_nulls(read, target, features[target])


def _label(row: dict[str, Any], tokenwise: bool) -> Any:
    """As the row has it; of tokens, one number for all of them says that there are none."""
    label = row.get("label")
    return None if tokenwise and not isinstance(label, list) else label


def _read_names(file: Path) -> list[str]:
    names = json.loads(file.read_text(encoding="utf-8"))
    codes = [str(code) for code in range(len(names))]
    if set(names) != set(codes):
        raise ValueError(f"{file} should name the classes 0 to {len(codes) - 1}, but names {list(names)}.")
    return [names[code] for code in codes]


def _read_tables(path: Path) -> DatasetDict | None:
    """The file, or the split files of the folder; None if the path is neither."""
    if path.suffix.lower() in _TABLE_OPTIONS:
        return DatasetDict({"train": _read_table(path)})
    if path.is_file():
        raise ValueError(
            f"{path} is none of {list(_TABLE_OPTIONS)}. Another file that `datasets` knows, as of parquet, is read by "
            f"its folder: put it into one of its own, and call read_dataset with that."
        )
    stems = [(name, path / f"{name}{suffix}") for name in _FOLDER_SPLITS for suffix in _TABLE_OPTIONS]
    splits = {name: _read_table(file) for name, file in stems if file.is_file()}
    return DatasetDict(splits) if splits else None


def _read_table(file: Path) -> Dataset:
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file} (looked in {Path.cwd()}).")
    if not file.stat().st_size:
        raise ValueError(f"{file} is empty.")
    if file.suffix.lower().startswith(".json"):
        return load_dataset("json", data_files=str(file), split="train")
    # A text may be "NA" or "null", which is no missing value. Not by `load_dataset`, which reads in pieces: a column
    # would have the type of the first, and a blank further down, which makes text of numbers, be an error.
    options = {"keep_default_na": False, "low_memory": False, **_TABLE_OPTIONS[file.suffix.lower()]}
    table = pd.read_csv(file, **options)
    if not isinstance(table.index, pd.RangeIndex) and (table.iloc[:, -1] == "").all():
        # Each line ends with a delimiter: the first column was taken for names of rows.
        table = pd.read_csv(file, index_col=False, usecols=range(len(table.columns)), **options)
    elif not pd.api.types.is_integer_dtype(table.index):  # no numbers of rows, as R writes them
        raise ValueError(
            f"{file}: the first line names {len(table.columns)} columns, {list(table.columns)}, and other lines have "
            f"more fields. Quote texts that have the delimiter in them."
        )
    read = Dataset.from_pandas(table, preserve_index=False)
    # Words of pandas 3 are of another type, which does not go with other datasets.
    words = {name: Value("string") for name, feature in read.features.items() if feature == Value("large_string")}
    return read.cast(Features({**read.features, **words}))
