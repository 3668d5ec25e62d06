"""Example ids and the columns of losses on their way from the dataset into the batch, whatever collator is used."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import torch
from torch.utils.data import Dataset

from amal_hf.columns import is_transformed
from amal_hf.shapes import ABSTAIN, EXAMPLE_ID, IGNORED, KEPT, REPEATED


class ExampleCollator:
    """Takes ids and extra columns off the rows, lets another collator make the batch, and puts them back as tensors.

    Collators pad or refuse columns that they do not know; this one shows them only what they do know. Rows without
    such columns pass through untouched.

    Args:
        collate: the collator that makes the batch.
        columns: extra columns, beside the example id; each becomes one tensor. Its entries have one shape, or as many
            parts as the row has labels (tokens, if it has none): these are filled up, labels with -100 and votes,
            which are several a token, with -1.
        put_back: without it these columns are left out of the batch, whatever they hold: evaluation reads none.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], columns: Sequence[str], *, put_back: bool = True) -> None:
        self.collate = collate
        self.columns = (EXAMPLE_ID, REPEATED, *columns)
        self.put_back = put_back
        # `Trainer` saves the collator's tokenizer where it was given none itself.
        self.tokenizer = getattr(collate, "tokenizer", None)

    def __call__(self, rows: list[Any]) -> Any:
        """A batch of `rows`."""
        taken = [name for name in self.columns if isinstance(rows[0], Mapping) and name in rows[0]]
        if not taken:
            return with_whole_labels(self.collate(rows))
        known = [{name: value for name, value in row.items() if name not in taken} for row in rows]
        batch = with_whole_labels(self.collate(known))
        if not self.put_back:
            return batch
        _check_rows(batch, len(rows))
        # Names of a user's own: training rows are numbered, and nobody asks for those of others.
        taken = [name for name in taken if name != EXAMPLE_ID or not isinstance(rows[0][name], str)]
        tokens = _tokens_of(known, batch)
        columns: dict[str, Any] = {name: self._column(name, [row[name] for row in rows], tokens) for name in taken}
        if REPEATED in columns:
            columns[KEPT] = int((~columns.pop(REPEATED)).sum())
        return {**batch, **columns}

    def _column(self, name: str, values: list[Any], tokens: "_Tokens") -> torch.Tensor:
        """One tensor; entries that belong to tokens are filled up as these are."""
        tensors = _as_tensors(name, values)
        of_tokens = all(tensor.ndim for tensor in tensors) and [len(tensor) for tensor in tensors] == tokens.counts
        if len({tensor.shape for tensor in tensors}) == 1 and not (of_tokens and tokens.certain):
            return torch.stack(tensors)
        if any(not tensor.ndim or len(tensor) > tokens.length for tensor in tensors):
            raise ValueError(
                f"Column '{name}' has entries of the shapes {[tuple(t.shape) for t in tensors][:5]}, which are "
                f"neither alike nor one part for each of at most {tokens.length} tokens."
            )
        left = getattr(self.tokenizer, "padding_side", "right") == "left"
        return torch.stack([_filled_up(tensor, tokens.length, left) for tensor in tensors])


class _Tokens(NamedTuple):
    """The tokens that an entry may belong to: those that have labels or, without any, those of the input.

    Attributes:
        counts: of each row.
        length: of the batch.
        certain: whether as many parts as tokens must mean these: not where a row has one label in all.
    """

    counts: list[int]
    length: int
    certain: bool


def _tokens_of(rows: Sequence[Mapping[str, Any]], batch: Mapping[str, Any]) -> _Tokens:
    labelled = all(is_several(row.get("labels")) for row in rows)
    name = "labels" if labelled else "input_ids"
    counts = [len(row[name]) for row in rows if is_several(row.get(name))]
    length = batch[name].shape[1] if getattr(batch.get(name), "ndim", 0) > 1 else 0
    return _Tokens(counts, length, labelled or not any({"label", "labels"} & row.keys() for row in rows))


def _as_tensors(name: str, values: list[Any]) -> list[torch.Tensor]:
    try:
        return [torch.as_tensor(value) for value in values]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Column '{name}' is read by a loss, and must hold numbers or lists of numbers of one length; it holds "
            f"{values[0]!r}. Turn it into numbers when preparing the dataset."
        ) from error


def with_whole_labels(batch: Any) -> Any:
    """The batch with labels that are whole numbers as int64: bytes would be read as a mask."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.dtype in (torch.bool, torch.int64):
        return batch
    return {**batch, "labels": labels.long()}


def _filled_up(tensor: torch.Tensor, length: int, left: bool) -> torch.Tensor:
    """Labels with -100, votes, of which a token has several, with -1."""
    votes = tensor.ndim > 1 and not tensor.is_floating_point()
    missing = tensor.new_full((length - len(tensor), *tensor.shape[1:]), ABSTAIN if votes else IGNORED)
    return torch.cat([missing, tensor] if left else [tensor, missing])


def _check_rows(batch: Mapping[str, Any], rows: int) -> None:
    sizes = {len(value) for value in batch.values() if isinstance(value, torch.Tensor) and value.ndim}
    if sizes and rows not in sizes:
        raise ValueError(
            f"The data collator made a batch of {sorted(sizes)[0]} rows from {rows} examples. Weights belong to "
            f"examples: use a collator that keeps one row for each (no packing, no augmented copies)."
        )


def is_several(value: Any) -> bool:
    """Whether an entry of a row is a list or an array of several, and not one number."""
    return value.ndim > 0 if hasattr(value, "ndim") else isinstance(value, Sequence)


class NumberedDataset(Dataset[dict[str, Any]]):
    """A map-style dataset whose rows carry their number as the example id."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self.dataset[row], EXAMPLE_ID: row}

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of a batch."""
        return [{**row, EXAMPLE_ID: n} for n, row in zip(numbers, rows_of(self.dataset, numbers), strict=True)]

    def set_epoch(self, epoch: int) -> None:
        """Passed on to a dataset that is another one in every epoch."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


def rows_of(dataset: Any, numbers: Sequence[int]) -> list[Any]:
    """Rows by number, asked for together where a dataset can, as torch's loader does: a transform may pad them."""
    together = getattr(dataset, "__getitems__", None)
    return [dataset[number] for number in numbers] if together is None else together(list(numbers))


def is_stream(dataset: Any) -> bool:
    """Whether the dataset can only be iterated over."""
    return isinstance(dataset, torch.utils.data.IterableDataset)


def numbered(dataset: Any) -> tuple[Any, list[Any] | None]:
    """The dataset with each row's number as its example id, and the ids that the user had given, if any.

    A stream is returned as it is: it has to bring ids of its own, or go without; so is no dataset at all.

    Raises:
        TypeError: rows without names.
        ValueError: ids that are not unique.
    """
    if dataset is None or is_stream(dataset):
        return dataset, None
    if not isinstance(dataset, datasets.Dataset):
        if not isinstance(dataset[0], Mapping):
            raise TypeError(
                f"AMALTrainer: rows must be dictionaries, as they get a number as their '{EXAMPLE_ID}'; train_dataset "
                f"has {type(dataset[0]).__name__}s. Give the parts names."
            )
        return NumberedDataset(dataset), None
    given = None
    if EXAMPLE_ID in dataset.column_names:
        given = dataset.with_format(None)[EXAMPLE_ID][:]
        _check_unique(given)
        dataset = dataset.remove_columns(EXAMPLE_ID)
    if is_transformed(dataset):
        return NumberedDataset(dataset), given
    return dataset.add_column(EXAMPLE_ID, range(len(dataset))), given


def _check_unique(ids: list[Any]) -> None:
    if len(set(ids)) == len(ids):
        return
    twice = Counter(ids).most_common(1)[0][0]
    raise ValueError(
        f"Column '{EXAMPLE_ID}' of the training set must hold a different id for every row, but {twice!r} stands "
        f"there more than once ({len(ids) - len(set(ids))} surplus rows). Remove the duplicates, or the column: rows "
        f"are then numbered."
    )
