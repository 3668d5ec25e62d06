"""A table that is a file holds the same bits as one in memory, and costs only what was touched."""

import gc
import mmap
import os
import resource
import shutil

import pytest
import torch
from test_trainer import METHODS, new_trainer, state_of

from amal_hf import last_checkpoint, save_policy
from amal_hf.policies import row_file, row_log, store
from amal_hf.policies.row_file import RowFile
from amal_hf.policies.row_log import RowLog
from amal_hf.policies.store import RowStore


FILL = torch.tensor([0.25, float("nan"), -0.0])


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks in a table of a hundred rows."""
    for module in (row_file, row_log, store):
        monkeypatch.setattr(module, "BLOCK", 32)


def bits(rows):
    return rows.view(torch.int32)


def random_batches(count, rows, seed=0):
    """Row numbers, some of them twice, and what is to stand there: the fill now and then."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        ids = torch.randint(rows, (8,), generator=generator)
        values = torch.randn(8, 3, generator=generator)
        values[0] = FILL
        yield ids.unique(), values[: len(ids.unique())]


def test_it_reads_the_same_bits_as_memory(tmp_path, small_blocks):
    """Written and unwritten rows, NaN and minus zero included, one by one and block by block."""
    memory, file = RowStore(100, FILL), RowStore(100, FILL, str(tmp_path))
    assert memory.in_memory
    assert not file.in_memory
    for ids, values in random_batches(20, 100):
        memory.write(ids, values)
        file.write(ids, values)
        assert bits(file.read(ids)).equal(bits(memory.read(ids)))
    assert len(list(file.blocks())) == 4
    for ours, theirs in zip(file.contents(), memory.contents(), strict=True):
        assert bits(ours.float()).equal(bits(theirs.float()))
    assert file.size == 100


class WindowsMap(mmap.mmap):
    """A map that takes no advice."""

    @property
    def madvise(self):
        raise AttributeError


def test_it_is_there_under_windows(tmp_path, monkeypatch):
    """Where nothing writes to a place in a file, and maps take no advice."""
    monkeypatch.setattr(mmap, "mmap", WindowsMap)
    monkeypatch.delattr(mmap, "MADV_RANDOM")
    monkeypatch.delattr(os, "pwrite")
    table, rows = RowFile(10, FILL, str(tmp_path)), torch.tensor([7, 2, 3])
    table[rows] = torch.arange(9.0).view(3, 3)
    assert table[rows].equal(torch.arange(9.0).view(3, 3))
    assert bits(table[torch.tensor([4])]).equal(bits(FILL[None]))


def test_rows_nobody_has_touched_cost_neither_disk_nor_memory(tmp_path):
    """100 million rows of which 100 are written; the file itself is gone with its table."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    free = shutil.disk_usage(tmp_path).free
    table = RowFile(100_000_000, FILL, str(tmp_path))
    rows = torch.arange(0, 100_000_000, 1_000_000)
    table[rows] = torch.ones(100, 3)
    assert table[rows].equal(torch.ones(100, 3))
    assert os.fstat(table._file.fileno()).st_size == 1_200_000_000
    assert os.fstat(table._file.fileno()).st_blocks * 512 < 2_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes
    assert list(tmp_path.iterdir()) == []
    del table
    gc.collect()
    assert shutil.disk_usage(tmp_path).free > free - 100_000_000


def test_a_large_table_is_a_file_without_being_asked():
    """64 MB and more would be written anew at every checkpoint."""
    assert RowStore(5_000_000, FILL).in_memory
    assert not RowStore(6_000_000, FILL).in_memory


def test_a_disk_without_room_is_refused_before_training(tmp_path):
    """The sparse file would be made without complaint, and fail in the middle of the run."""
    with pytest.raises(OSError, match=r"may take .* MB, and .* has .* MB left.*weights_dir"):
        RowFile(10**14, FILL, str(tmp_path))


def test_a_disk_that_fills_up_is_an_error_and_not_the_end_of_the_process(tmp_path):
    """A write stops half-way, then says why; through the map it would be a signal."""
    table = RowFile(10, FILL, str(tmp_path))
    file, given = table._file, []

    class Short:
        seek = file.seek

        def write(self, content):
            if given:
                raise OSError(28, "No space left on device")
            given.append(content)
            return file.write(content[:5])

    table._file = Short()
    with pytest.raises(OSError, match="No space left.*weights_dir"):
        table[torch.tensor([3])] = torch.ones(1, 3)


class Checkpoints:
    """A table and its log, saved after every batch."""

    def __init__(self, folder, rows=4000):
        self.folder, self.rows = folder, rows
        self.table = RowFile(rows, FILL, str(folder))
        self.log = RowLog(self.table)
        self.saved = 0

    def write(self, ids, values):
        self.log.note(ids)
        self.table[ids] = values

    def save(self):
        folder = self.folder / str(self.saved)
        folder.mkdir()
        self.log.save(folder)
        self.saved += 1
        return folder

    def loaded(self, folder):
        """A fresh table from a checkpoint."""
        other = Checkpoints(self.folder, self.rows)
        other.log.load(folder, sorted(path.name for path in folder.iterdir()))
        other.saved = self.saved
        return other

    def contents(self):
        return bits(self.table[torch.arange(self.rows)])


def new_files(folder):
    return [path for path in folder.iterdir() if path.stat().st_nlink == 1]


def test_every_checkpoint_is_complete_whichever_others_are_removed(tmp_path, small_blocks):
    """Forty checkpoints, only the last one kept, a resumption from every seventh: all rows come back bit for bit."""
    run = Checkpoints(tmp_path)
    for number, (ids, values) in enumerate(random_batches(40, 4000)):
        run.write(ids, values)
        folder = run.save()
        if number:
            shutil.rmtree(tmp_path / str(number - 1))
        expected = run.contents()
        assert run.loaded(folder).contents().equal(expected)
        if number % 7 == 6:
            run = run.loaded(folder)
    assert (expected != bits(FILL)).any(1).sum() > 150


def test_a_run_outlives_its_checkpoints(tmp_path, small_blocks):
    """Who makes room while a run goes on removes the file that the next save would have merged: all is written."""
    run = Checkpoints(tmp_path)
    run.write(torch.tensor([1, 2]), torch.ones(2, 3))
    shutil.rmtree(run.save())
    run.write(torch.tensor([2, 5]), torch.full((2, 3), 7.0))
    assert run.loaded(run.save()).contents().equal(run.contents())


def test_a_checkpoint_costs_what_has_changed(tmp_path):
    """Where 200 rows are written, a save after 8 more writes a few of them; the rest are links, in few files."""
    run = Checkpoints(tmp_path, rows=100_000)
    run.write(torch.arange(0, 2000, 10), torch.ones(200, 3))
    whole = sum(path.stat().st_size for path in run.save().iterdir())
    sizes = []
    for ids, values in random_batches(16, 100_000):
        run.write(ids, values)
        folder = run.save()
        sizes.append(sum(path.stat().st_size for path in new_files(folder)))
        assert len(list(folder.iterdir())) <= 6
    assert sorted(sizes)[8] < whole / 4
    assert run.save() and not new_files(tmp_path / str(run.saved - 1))


def test_too_many_changes_are_not_listed(tmp_path, small_blocks):
    """Beyond a sixteenth of the rows all that hold something are written, and listing has cost no more memory."""
    run = Checkpoints(tmp_path, rows=320)
    for ids, values in random_batches(40, 320):
        run.write(ids, values)
    assert run.log._changed is None
    folder = run.save()
    assert len(list(folder.iterdir())) == 10  # one file a block
    assert run.loaded(folder).contents().equal(run.contents())


def test_without_hard_links_all_is_written(tmp_path, monkeypatch):
    """Not every file system has them, and the last checkpoint may have been removed by hand."""
    run = Checkpoints(tmp_path)
    run.write(torch.arange(100), torch.ones(100, 3))
    shutil.rmtree(run.save())
    run.write(torch.tensor([7]), torch.zeros(1, 3))
    assert run.loaded(run.save()).contents().equal(run.contents())

    def refuse(source, target):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    run.write(torch.tensor([8]), torch.zeros(1, 3))
    assert run.loaded(run.save()).contents().equal(run.contents())


@pytest.mark.parametrize("name", ["table", "network"])
def test_a_run_with_a_file_is_the_run_in_memory(tmp_path, name):
    """Student and weights are the same bits, at the end and after resuming; `example_weights()` is mapped from a file,
    and a run in memory refuses the checkpoint.
    """
    options = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "meta_interval": 1}
    in_file = {**options, "weights_dir": str(tmp_path / "weights")}
    memory = new_trainer(tmp_path / "memory", METHODS[name], rows=18, **options)
    memory.train()
    file = new_trainer(tmp_path / "file", METHODS[name], rows=18, **in_file)
    file.train()
    assert file.example_weights().cache_files
    resumed = new_trainer(tmp_path / "file", METHODS[name], rows=18, **in_file)
    resumed.train(resume_from_checkpoint=str(tmp_path / "file" / "checkpoint-4"))
    for trainer in (file, resumed):
        assert trainer.example_weights().features == memory.example_weights().features
        for ours, theirs in zip(state_of(trainer), state_of(memory), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ValueError, match="weights_in_memory = False, this run has weights_in_memory = True"):
        new_trainer(tmp_path / "memory", METHODS[name], rows=18, **options).train(last_checkpoint(tmp_path / "file"))
    if name == "table":
        with pytest.raises(ValueError, match=r"rows of ExampleTable are a file.*example_weights"):
            save_policy(file.mixture.policy, tmp_path / "policy.safetensors")
