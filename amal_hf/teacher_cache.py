"""Teacher logits computed once and kept on disk.

1. The key is a checksum over all that decides the logits: the teacher's weights and configuration, the rows it reads
   and what the collator makes of the first (or its own tokenizer, if it has one), the numeric precision, the format of
   the cache.
2. `cache_dir/<key>/` holds `logits.arrow` (one row an example, in the order of the training set, float32, in the
   teacher's own label order) and `manifest.json` (rows, labels, checksum of the Arrow file).
3. A cache is written to a temporary folder and moved into place when complete, so a killed run leaves none.
4. A damaged cache is computed again, with a warning. A sound one is used without loading the teacher.

Tokens hidden by the attention mask are not stored, so a batch may be padded in another way than the cache was (a
teacher that answers otherwise then is refused); of an encoder-decoder, only tokens with a label are. With `top_k` a
second column, `classes`, says which logits were kept.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor, nn

from amal_hf.loggers import logger_of
from amal_hf.shapes import EXAMPLE_ID, IGNORED, Batch, Logits, Teacher
from amal_hf.teacher_inputs import PROBED, Encoding, row_numbers
from amal_hf.top_logits import TopK, TopLogits


logger = logger_of(__name__)

FORMAT = "1"
"""Raise it when what a cache holds changes its meaning: older caches are then never found."""

_ROUNDING = 0.05
"""Of the largest logit: half precision stays well below, other positions are far above."""

_ARROW, _MANIFEST, _COLUMN, _CLASSES = "logits.arrow", "manifest.json", "logits", "classes"
_BATCHES_IN_A_WINDOW = 32  # rows are sorted by length within a window only, so memory stays bounded


class CachedTeacher:
    """Logits by example id from a memory-mapped dataset."""

    def __init__(self, rows: Dataset, order: list[int] | slice | None = None) -> None:
        """Serve a cache.

        Args:
            rows: one row an example with the column `logits`, `(C,)` or `(T_i, C)`.
            order: which logits are for the student's classes, in their order; None means all as they are.
        """
        self._rows = rows.with_format("arrow")  # many times faster than "torch" for ragged rows
        self._per_token = isinstance(rows.features[_COLUMN].feature, List)
        self._order = order

    def __call__(self, batch: Batch) -> Logits | TopLogits:
        """`(B, C)`, or `(B, T, C)` with zeros at padding, float32 on the batch's device; merged if the cache is.

        Raises:
            ValueError: ids are missing or foreign, or a row has not as many tokens as when it was cached.
        """
        table = self._rows[row_numbers(batch, self._rows.num_rows)]
        found, device = table[_COLUMN].combine_chunks(), batch[EXAMPLE_ID].device
        mask = token_mask(batch).cpu() if self._per_token else None
        logits = (_table(found) if mask is None else _padded(found, mask)).to(device)
        if mask is not None and _CLASSES in self._rows.column_names:
            return TopLogits(logits, _padded(table[_CLASSES].combine_chunks(), mask).to(device))
        return logits if self._order is None else logits[..., self._order]


@dataclass(frozen=True)
class CacheRecipe:
    """All that is needed to know a cache, and to compute it.

    Attributes:
        encoding: the rows, and how they become model inputs.
        teacher: what decides the logits beside the rows, by name; part of the key.
        label2id: the teacher's labels, noted in the manifest.
        load: opens the live teacher; called only when the cache must be computed.
        batch_size: rows in one forward pass.
        device: where the teacher runs.
        top: which logits of a token are kept; None keeps all.
    """

    encoding: Encoding
    teacher: Mapping[str, str]
    label2id: Mapping[str, int]
    load: Callable[[], Teacher]
    batch_size: int
    device: torch.device
    top: TopK | None = None

    def key(self) -> str:
        """Name of the cache's folder: 64 hexadecimal digits."""
        parts = {"format": FORMAT, "rows": digest_rows(self.encoding.rows), **self.teacher, **self.encoding.settings()}
        parts |= {} if self.top is None else self.top.settings()
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def open_cache(cache_dir: Path, recipe: CacheRecipe) -> Dataset:
    """The cached logits, memory-mapped; computed first if there is no sound cache yet."""
    folder = cache_dir / recipe.key()
    damage = _damage(folder, recipe)
    if damage is not None:
        if folder.exists():
            logger.warning("The teacher cache %s is damaged (%s), so it is computed again.", folder, damage)
            shutil.rmtree(folder)
        _compute(folder, recipe)
    return Dataset.from_file(str(folder / _ARROW))


def digest_folder(folder: Path) -> str:
    """Checksum of the weights and configuration of a saved model."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"), folder / "config.json"]):
        digest.update(f"{file.name} {_file_digest(file)}\n".encode())
    return digest.hexdigest()


def digest_model(model: nn.Module, config: Mapping[str, Any]) -> str:
    """Checksum of the weights of a model in memory and of its configuration."""
    told = {name: value for name, value in config.items() if name not in ("_name_or_path", "transformers_version")}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def digest_rows(rows: Dataset) -> str:
    """Checksum of the content of all columns, row after row; how the data is chunked on disk does not count."""
    digest = hashlib.sha256()
    for table in rows.with_format("arrow").iter(batch_size=1000):
        for name in table.column_names:
            digest.update(f"{name} {table[name].type}\n".encode())
            _digest_column(digest, table[name].combine_chunks())
    return digest.hexdigest()


def token_mask(batch: Batch) -> Tensor:
    """`(B, T)`, True where logits are kept: at a token and not padding; for a decoder at a labelled one."""
    if "decoder_input_ids" in batch:
        labels: Tensor = batch["labels"]
        return labels != IGNORED
    if "attention_mask" in batch:
        mask: Tensor = batch["attention_mask"]
        return mask.bool()
    return torch.ones_like(batch["input_ids"], dtype=torch.bool)


def _digest_column(digest: Any, column: pa.Array) -> None:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        digest.update(pc.list_value_length(column).to_numpy(zero_copy_only=False).tobytes())
        _digest_column(digest, pc.list_flatten(column))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        digest.update(column.to_numpy(zero_copy_only=False).tobytes())
    else:
        digest.update(json.dumps(column.to_pylist(), default=str).encode())


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _manifest(folder: Path, recipe: CacheRecipe) -> dict[str, Any]:
    """What the manifest beside this Arrow file must say."""
    return {
        "format": FORMAT,
        "rows": recipe.encoding.rows.num_rows,
        "label2id": dict(recipe.label2id),
        "sha256": _file_digest(folder / _ARROW),
    }


def _damage(folder: Path, recipe: CacheRecipe) -> str | None:
    """What is wrong with a cache; None if nothing is."""
    missing = [name for name in (_ARROW, _MANIFEST) if not (folder / name).is_file()]
    if missing:
        return f"no {' and no '.join(missing)}"
    try:
        noted = json.loads((folder / _MANIFEST).read_text())
    except ValueError:
        return f"{_MANIFEST} is not JSON"
    expected = _manifest(folder, recipe)
    return None if noted == expected else f"{_MANIFEST} says {noted}, expected {expected}"


def _compute(folder: Path, recipe: CacheRecipe) -> None:
    """Write the cache beside its place, then move it there whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unfinished-") as workplace:
        draft = Path(workplace) / "cache"  # a folder of its own: the temporary one is private to this user
        draft.mkdir()
        _write_logits(draft / _ARROW, recipe)
        (draft / _MANIFEST).write_text(json.dumps(_manifest(draft, recipe), indent=2))
        try:
            os.replace(draft, folder)
        except OSError:
            if _damage(folder, recipe) is not None:  # else another process has just put the same cache there
                raise


def _write_logits(file: Path, recipe: CacheRecipe) -> None:
    """Run the teacher over all rows into one Arrow file."""
    teacher = recipe.load()
    _check_padding(teacher, recipe)
    probe = _kept(teacher(_encoded([0], recipe)), recipe)
    kinds = {_COLUMN: "float32", _CLASSES: "int32"}
    rows = {name: List(Value(kinds[name]), length=column.shape[-1]) for name, column in probe.items()}
    recipe.encoding.rows.map(
        lambda window, numbers: _window_columns(teacher, recipe, window, numbers),
        batched=True,
        batch_size=recipe.batch_size * _BATCHES_IN_A_WINDOW,
        with_indices=True,
        remove_columns=recipe.encoding.rows.column_names,
        features=Features({name: row if probe[name].dim() == 2 else List(row) for name, row in rows.items()}),
        cache_file_name=str(file),
        load_from_cache_file=False,
        new_fingerprint="teacher-logits",  # fixed, or the whole teacher would be hashed once more
        desc="Teacher logits",
    )


def _check_padding(teacher: Teacher, recipe: CacheRecipe) -> None:
    """Refuse a teacher that answers otherwise where a row is padded further: it would not say so live.

    Positions that are counted from the left, with padding there, are such a case (GPT-2).
    """
    few = list(range(min(PROBED, recipe.encoding.rows.num_rows)))
    probe = _encoded(few, recipe)
    if "decoder_input_ids" not in probe and getattr(probe.get("input_ids"), "ndim", 0) != 2:
        return  # pictures, sounds, several texts a row
    lengths = token_mask(probe).sum(1)
    short, long = int(lengths.argmin()), int(lengths.argmax())
    alone, beside = (
        torch.as_tensor(list(_unpadded(teacher(batch), batch))[-1]).float()
        for batch in (_encoded([short], recipe), _encoded([long, short], recipe))
    )
    if lengths[short] < lengths[long] and (alone - beside).abs().max() > _ROUNDING * alone.abs().max():
        raise ValueError(
            "The teacher's logits for a row depend on how far it is padded, so that a cache would not hold what the "
            "live teacher says. Pad on the right (tokenizer.padding_side = 'right'), or leave teacher_cache_dir out."
        )


def _kept(logits: Logits, recipe: CacheRecipe) -> dict[str, Tensor]:
    """The columns of the cache: all logits, or the largest and which classes they are."""
    if recipe.top is None:
        return {_COLUMN: logits}
    top = recipe.top(logits)
    return {_COLUMN: top.logits, _CLASSES: top.classes.int()}


def _window_columns(
    teacher: Teacher, recipe: CacheRecipe, window: Mapping[str, list[Any]], numbers: list[int]
) -> dict[str, list[Any]]:
    """Logits of consecutive rows, in their order; rows of like length run together to save padding."""
    sizes = [sum(map(_size, row)) for row in zip(*window.values(), strict=True)]
    places = sorted(range(len(numbers)), key=sizes.__getitem__)
    columns: dict[str, list[Any]] = {}
    for start in range(0, len(places), recipe.batch_size):
        together = places[start : start + recipe.batch_size]
        batch = _encoded([numbers[place] for place in together], recipe)
        for name, column in _kept(teacher(batch), recipe).items():
            rows = columns.setdefault(name, [None] * len(numbers))
            for place, row in zip(together, _unpadded(column, batch), strict=True):
                rows[place] = (row.float() if row.is_floating_point() else row).cpu().numpy()
    return columns


def _encoded(numbers: list[int], recipe: CacheRecipe) -> Batch:
    # Some collators say None for what a row does not have, such as labels.
    batch = {name: value for name, value in recipe.encoding(numbers).items() if value is not None}
    return {name: value.to(recipe.device) for name, value in batch.items()}


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list) else 1


def _unpadded(logits: Logits, batch: Batch) -> Iterable[Tensor]:
    """One tensor an example: `(C,)`, or `(T_i, C)` for its real tokens."""
    if logits.dim() == 2:
        return logits
    return [row[mask] for row, mask in zip(logits, token_mask(batch), strict=True)]


def _table(rows: pa.Array) -> Tensor:
    """A column of lists of one length as a table, `(rows, C)`, float32 or int64."""
    numbers = torch.tensor(pc.list_flatten(rows).to_numpy(zero_copy_only=False))
    return (numbers.float() if numbers.is_floating_point() else numbers.long()).view(len(rows), -1)


def _padded(rows: pa.Array, mask: Tensor) -> Logits:
    """`(B, T, C)`: the rows at the places of the mask, whichever side is padded; zeros elsewhere."""
    cached, present = pc.list_value_length(rows).to_pylist(), mask.sum(dim=1).tolist()
    if cached != present:
        raise ValueError(
            f"The teacher's cache holds {cached} tokens for the examples of this batch, which has {present}. The "
            "training rows must reach the student as they were when the teacher was opened: check the collator."
        )
    tokens = _table(pc.list_flatten(rows))
    logits = tokens.new_zeros(*mask.shape, tokens.shape[-1])
    logits[mask] = tokens
    return logits
