"""The cache of teacher logits: right rows, right key, and never half a cache."""

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_vit, toy_arguments
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn

from amal_hf import AMALTrainer, CrossEntropy, Distillation
from amal_hf.shapes import Batch, Logits
from amal_hf.teacher_cache import CachedTeacher, CacheRecipe, digest_folder, digest_model, digest_rows, open_cache
from amal_hf.teacher_inputs import StudentEncoding


LENGTHS = [3, 7, 1, 5, 2, 6, 4]
ROWS = Dataset.from_dict({"input_ids": [[10 * row + place for place in range(n)] for row, n in enumerate(LENGTHS)]})


def collate(rows: list[dict[str, Any]], side: str = "right", width: int = 0, cut: int = 99) -> Mapping[str, Tensor]:
    """Pad with -1 to the longest row, or to `width`; read the first `cut` tokens."""
    rows = [{"input_ids": row["input_ids"][:cut]} for row in rows]
    longest = max(width, *(len(row["input_ids"]) for row in rows))
    ids, mask = torch.full((len(rows), longest), -1), torch.zeros(len(rows), longest, dtype=torch.long)
    for place, row in enumerate(rows):
        here = slice(0, len(row["input_ids"])) if side == "right" else slice(longest - len(row["input_ids"]), None)
        ids[place, here] = torch.tensor(row["input_ids"])
        mask[place, here] = 1
    return {"input_ids": ids, "attention_mask": mask}


def collate_ids(rows: list[dict[str, Any]]) -> Mapping[str, Tensor]:
    """The same, under another name."""
    return collate([{"input_ids": row["ids"]} for row in rows])


class Counting:
    """A teacher that computes something simple and counts its calls."""

    def __init__(self, per_token: bool) -> None:
        self.per_token = per_token
        self.calls = 0

    def __call__(self, batch: Batch) -> Logits:
        self.calls += 1
        hidden = batch["input_ids"].float()
        tokens = torch.stack([hidden, -hidden, hidden**2], dim=-1)
        return tokens if self.per_token else (tokens * batch["attention_mask"][..., None]).sum(dim=1)


def recipe(teacher: Counting, rows: Dataset = ROWS) -> CacheRecipe:
    """A recipe with batches of two rows."""
    return CacheRecipe(
        encoding=StudentEncoding(rows, collate),
        teacher={"teacher": "as it is"},
        label2id={"a": 0, "b": 1, "c": 2},
        load=lambda: teacher,
        batch_size=2,
        device=torch.device("cpu"),
    )


def batch_of(ids: list[int], side: str = "right", width: int = 0) -> dict[str, Tensor]:
    """A training batch of these rows."""
    batch = collate([ROWS[place] for place in ids], side, width)
    return {**batch, "example_id": torch.tensor(ids)}


def only_folder(cache_dir: Path) -> Path:
    """The one cache in a folder; also shows that nothing temporary is left."""
    (folder,) = cache_dir.iterdir()
    return folder


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize(("side", "width"), [("right", 0), ("left", 0), ("right", 12)])
@pytest.mark.parametrize("ids", [[4, 0, 6], [1], [2, 2], list(range(len(LENGTHS)))])
def test_cached_equals_live(tmp_path: Path, per_token: bool, side: str, width: int, ids: list[int]) -> None:
    """Any choice of rows, padded on any side to any width, gives the live logits, with zeros at padding."""
    live = Counting(per_token)
    cached = CachedTeacher(open_cache(tmp_path, recipe(live)))
    batch = batch_of(ids, side, width)
    expected = live(batch)
    if per_token:
        expected = expected * batch["attention_mask"][..., None]
    found = cached(batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_order_puts_labels_in_place() -> None:
    """Class j of the student is class order[j] of the teacher."""
    rows = Dataset.from_dict({"logits": [[1.0, 2.0, 3.0]]})
    assert CachedTeacher(rows, [2, 0, 1])({"example_id": torch.tensor([0])}).tolist() == [[3.0, 1.0, 2.0]]


def test_without_mask_every_token_counts(tmp_path: Path) -> None:
    """Batches without padding need no attention mask."""
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3, 4], [5, 6]]})

    def stack(found: list[dict[str, Any]]) -> Mapping[str, Tensor]:
        return {"input_ids": torch.tensor([row["input_ids"] for row in found])}

    live = Counting(per_token=True)
    cached = CachedTeacher(open_cache(tmp_path, replace(recipe(live), encoding=StudentEncoding(rows, stack))))
    batch = {**stack([rows[2], rows[0]]), "example_id": torch.tensor([2, 0])}
    torch.testing.assert_close(cached(batch), live(batch))


def test_other_tokens_are_refused(tmp_path: Path) -> None:
    """A row with fewer tokens than when cached would shift every logit, so it is refused."""
    cached = CachedTeacher(open_cache(tmp_path, recipe(Counting(per_token=True))))
    batch = batch_of([0, 1])
    batch["attention_mask"][1, -1] = 0
    with pytest.raises(ValueError, match=r"holds \[3, 7\] tokens.*\[3, 6\]"):
        cached(batch)


def test_a_sound_cache_is_used(tmp_path: Path) -> None:
    """The second time the teacher is not even loaded."""
    open_cache(tmp_path, recipe(Counting(per_token=False)))

    def refuse() -> Counting:
        raise RuntimeError("loaded")

    again = open_cache(tmp_path, replace(recipe(Counting(False)), load=refuse))
    assert again.num_rows == len(LENGTHS)
    with pytest.raises(RuntimeError, match="loaded"):
        open_cache(tmp_path / "elsewhere", replace(recipe(Counting(False)), load=refuse))


def test_rows_of_like_length_run_together(tmp_path: Path) -> None:
    """Padding costs time: batches are made of neighbours in length, not of neighbours in the dataset."""
    widths = []

    class Watching(Counting):
        def __call__(self, batch: Batch) -> Logits:
            widths.append(batch["input_ids"].shape[1])
            return super().__call__(batch)

    open_cache(tmp_path, recipe(Watching(per_token=False)))
    assert widths[3:] == [2, 4, 6, 7]  # the first calls ask for the shape only, and what padding does


def cut_arrow(folder: Path) -> None:
    arrow = folder / "logits.arrow"
    arrow.write_bytes(arrow.read_bytes()[:-40])


def flip_a_byte(folder: Path) -> None:
    arrow = folder / "logits.arrow"
    content = bytearray(arrow.read_bytes())
    content[len(content) // 2] ^= 1
    arrow.write_bytes(content)


def fewer_rows(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"rows": 5}))


DAMAGES = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "manifest torn": lambda folder: (folder / "manifest.json").write_text('{"rows": '),
    "no arrow": lambda folder: (folder / "logits.arrow").unlink(),
    "arrow torn": cut_arrow,
    "one bit": flip_a_byte,
    "rows": fewer_rows,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    """Whatever tore the cache, the logits come out right and a warning says so."""
    open_cache(tmp_path, recipe(Counting(per_token=False)))
    damage(only_folder(tmp_path))
    live = Counting(per_token=False)
    with caplog.at_level(logging.WARNING, logger="amal_hf"):
        cached = CachedTeacher(open_cache(tmp_path, recipe(live)))
    assert "damaged" in caplog.text
    assert "computed again" in caplog.text
    assert live.calls
    batch = batch_of([1, 5])
    torch.testing.assert_close(cached(batch), live(batch))
    only_folder(tmp_path)


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    """A teacher that fails half way leaves neither a cache nor its draft."""

    class Failing(Counting):
        def __call__(self, batch: Batch) -> Logits:
            if self.calls == 2:
                raise RuntimeError("stopped")
            return super().__call__(batch)

    with pytest.raises(RuntimeError, match="stopped"):
        open_cache(tmp_path, recipe(Failing(per_token=False)))
    assert not list(tmp_path.iterdir())


def test_a_cache_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the last step nothing stands at the cache's place, so a run killed before it leaves no half cache."""
    wanted = recipe(Counting(per_token=False))

    def killed(draft: Path, folder: Path) -> None:
        assert sorted(file.name for file in draft.iterdir()) == ["logits.arrow", "manifest.json"]
        assert not folder.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path, wanted)
    assert not (tmp_path / wanted.key()).exists()


def test_two_processes_may_compute_the_same(tmp_path: Path) -> None:
    """If another process put the cache in place meanwhile, that one is used."""
    inner = recipe(Counting(per_token=False))

    def slow() -> Counting:
        open_cache(tmp_path, inner)
        return Counting(per_token=False)

    assert open_cache(tmp_path, replace(inner, load=slow)).num_rows == len(LENGTHS)
    only_folder(tmp_path)


CHANGES = {
    "teacher": {"teacher": {"teacher": "another"}},
    "value": {"encoding": StudentEncoding(ROWS.map(lambda row: {"input_ids": [0, *row["input_ids"][1:]]}), collate)},
    "order": {"encoding": StudentEncoding(ROWS.select([1, 0, 2, 3, 4, 5, 6]), collate)},
    "fewer": {"encoding": StudentEncoding(ROWS.select(range(6)), collate)},
    "column": {"encoding": StudentEncoding(ROWS.rename_column("input_ids", "ids"), collate_ids)},
    "collator": {"encoding": StudentEncoding(ROWS, partial(collate, cut=2))},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_key_changes(change: dict[str, Any]) -> None:
    """Everything that decides the logits is in the key."""
    before = recipe(Counting(False))
    assert replace(before, **change).key() != before.key()


def test_a_collator_that_draws_is_refused() -> None:
    """The student would be compared with what the teacher says of other inputs than its own."""

    def masked(rows: list[dict[str, Any]]) -> Mapping[str, Tensor]:
        batch = collate(rows)
        return {**batch, "input_ids": batch["input_ids"] * (torch.rand(batch["input_ids"].shape) < 0.8)}

    with pytest.raises(ValueError, match="makes another batch of the same rows each time.*teacher_cache_dir"):
        replace(recipe(Counting(False)), encoding=StudentEncoding(ROWS, masked)).key()


def test_key_does_not_know_how_rows_are_stored(tmp_path: Path) -> None:
    """The same rows selected, joined, saved or formatted otherwise find the same cache."""
    ROWS.save_to_disk(tmp_path / "rows")
    same = [
        ROWS.select([6, 5, 4, 3, 2, 1, 0]).select([6, 5, 4, 3, 2, 1, 0]),
        concatenate_datasets([ROWS.select(range(3)), ROWS.select(range(3, 7))]),
        Dataset.load_from_disk(str(tmp_path / "rows")),
        ROWS.with_format("torch"),
    ]
    assert {digest_rows(rows) for rows in same} == {digest_rows(ROWS)}


def test_rows_of_every_kind_have_a_digest() -> None:
    """Text, missing text, numbers, truth values and nested lists all count."""
    values = {"text": "a", "gap": None, "number": 1.5, "truth": True, "nested": [[1, 2], [3]]}
    changed = {"text": "b", "gap": "c", "number": 1.25, "truth": False, "nested": [[1], [2, 3]]}
    digests = {digest_rows(Dataset.from_list([values]))}
    for name in values:
        digests.add(digest_rows(Dataset.from_list([values | {name: changed[name]}])))
    assert len(digests) == 1 + len(values)


def test_digest_of_a_model_in_memory() -> None:
    """One weight or one setting changes it; its name and the library's version do not. bfloat16 works."""
    torch.manual_seed(0)
    last = nn.Linear(2, 2).bfloat16()
    model = nn.Sequential(nn.Linear(3, 2), last)
    config = {"size": 3, "_name_or_path": "here", "transformers_version": "5"}
    before = digest_model(model, config)
    assert (
        digest_model(copy.deepcopy(model), config | {"_name_or_path": "there", "transformers_version": "6"}) == before
    )
    assert digest_model(model, config | {"size": 4}) != before
    with torch.no_grad():
        last.bias[1] += 1
    assert digest_model(model, config) != before


def test_digest_of_a_folder(tmp_path: Path) -> None:
    """Weights and configuration count; the Trainer's other files do not."""
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_text(name)
    before = digest_folder(tmp_path)
    (tmp_path / "training_args.bin").write_text("other")
    assert digest_folder(tmp_path) == before
    (tmp_path / "model.safetensors").write_text("trained")
    trained = digest_folder(tmp_path)
    (tmp_path / "config.json").write_text("changed")
    assert len({before, trained, digest_folder(tmp_path)}) == 3


def test_pictures_have_no_padding(tmp_path: Path) -> None:
    """Teachers of what is no text are cached too: they say what they say live."""
    pixels = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": [0, 1, 2] * 2})
    logits = []
    for cache in (None, str(tmp_path / "cache")):
        args = toy_arguments(tmp_path, teacher_cache_dir=cache)
        losses = [CrossEntropy(), Distillation(tiny_vit(1))]
        trainer = AMALTrainer(tiny_vit(), args, train_dataset=rows, losses=losses)
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(6)])
        logits.append(trainer.mixture.prepare(batch)[trainer.mixture.losses[1].logits_key])
    torch.testing.assert_close(*logits)
