"""Killed, out of disk or out of memory: the last whole checkpoint resumes to the same numbers, and nothing is lost."""

import json
import logging
import multiprocessing
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import toy_arguments, toy_rows
from test_trainer import METHODS, StopAt, new_trainer, state_of, table_teacher
from transformers import TrainerCallback, TrainerState
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from amal_hf import AMALTrainer, CrossEntropy, Distillation, last_checkpoint
from amal_hf.checkpoints import FILES_NAME, fault
from amal_hf.learner import WeightLearner


OPTIONS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "meta_interval": 1}
BOTH = pytest.mark.parametrize("name", ["network", "table"])


def trained(folder, name="table", resume=None, callbacks=None, **options):
    trainer = new_trainer(folder, METHODS[name], rows=18, callbacks=callbacks, **{**OPTIONS, **options})
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_same(trainer, other):
    for ours, theirs in zip(state_of(trainer), state_of(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not interrupted."""
    return trained(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of its checkpoints, to be damaged."""
    return Path(shutil.copytree(whole.args.output_dir, tmp_path / "run"))


def files_of(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_every_file_of_a_checkpoint_counts(folder):
    """Whichever file is missing or cut off, the checkpoint before is the last; `get_last_checkpoint` would take the
    newest folder.
    """
    newest, before = folder / "checkpoint-6", folder / "checkpoint-4"
    assert last_checkpoint(folder) == str(newest)
    names = files_of(newest)
    assert {"amal.pt", "model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"} <= set(names)
    for name in names:
        content = (newest / name).read_bytes()
        for damaged in (None, content[: len(content) // 2]):
            (newest / name).unlink() if damaged is None else (newest / name).write_bytes(damaged)
            assert fault(newest)
            assert last_checkpoint(folder) == str(before)
        (newest / name).write_bytes(content)
        assert fault(newest) is None
    assert last_checkpoint(folder / "nowhere") is None


def test_a_checkpoint_that_a_signal_asked_for_is_whole(tmp_path):
    """While it is written a file says that it is not, which is gone when it is."""

    class Signal(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            asked = [one for one in trainer.callback_handler.callbacks if hasattr(one, "jit_manager")]
            if state.global_step == 2:
                asked[0].jit_manager.is_checkpoint_requested = True

    options = {"save_strategy": "steps", "save_steps": 100, "enable_jit_checkpoint": True}
    trainer = new_trainer(tmp_path, METHODS["network"], callbacks=[Signal()], **options)
    trainer.train()
    (found,) = tmp_path.glob("checkpoint-*")
    assert last_checkpoint(tmp_path) == str(found)


@pytest.mark.parametrize("event", ["on_step_begin", "on_pre_optimizer_step"])
def test_a_run_goes_on_from_what_a_signal_asked_for_within_a_step(tmp_path, event):
    """To the same numbers: the step is ended first, or its meta step would be taken twice."""

    def trainer(name, **options):
        options = {"save_strategy": "steps", "save_steps": 100, "meta_interval": 1, **options}
        return new_trainer(tmp_path / name, METHODS["network"], **options)

    def asked(self, args, state, control, **kwargs):
        for one in cut.callback_handler.callbacks:
            if state.global_step == 2 and isinstance(one, JITCheckpointCallback):
                one.jit_manager.is_checkpoint_requested = True

    whole = trainer("whole")
    whole.train()
    cut = trainer("cut", enable_jit_checkpoint=True)
    cut.callback_handler.callbacks.insert(0, type("Signal", (TrainerCallback,), {event: asked})())
    cut.train()
    resumed = trainer("cut")
    resumed.train(resume_from_checkpoint=True)
    assert 2 < cut.state.global_step < whole.state.global_step
    assert_same(resumed, whole)


def test_a_torn_checkpoint_is_passed_over_with_a_warning(folder, whole, caplog):
    """`resume_from_checkpoint=True` resumes from the newest whole checkpoint, names the other, and ends at the same
    numbers.
    """
    (folder / "checkpoint-6" / "optimizer.pt").unlink()
    with caplog.at_level(logging.WARNING):
        resumed = trained(folder, resume=True)
    assert re.search(r"checkpoint-6 is passed over: optimizer\.pt is missing", caplog.text)
    assert_same(resumed, whole)
    assert fault(folder / "checkpoint-6") is None


@pytest.mark.parametrize("max_steps", [5, 6])
def test_a_run_that_is_resumed_from_its_end_stays_what_it_was(tmp_path, max_steps):
    """At the end of an epoch and within one: a process that died after its last checkpoint has nothing to train."""
    options = {"max_steps": max_steps, "save_steps": max_steps, "lr_scheduler_type": "constant"}
    whole = state_of(trained(tmp_path, **options))
    resumed = trained(tmp_path, resume=True, **options)
    for ours, theirs in zip(state_of(resumed), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert resumed.state.global_step == max_steps


def test_a_torn_checkpoint_that_was_asked_for_is_refused(folder):
    """Before anything is loaded or overwritten, with the reason; so is a run without a whole checkpoint."""
    state = folder / "checkpoint-6" / "trainer_state.json"
    state.write_text(state.read_text()[:-20])
    with pytest.raises(
        ValueError, match=r"checkpoint-6 cannot be resumed from: trainer_state\.json is missing or cut"
    ):
        trained(folder, resume=str(folder / "checkpoint-6"))
    for checkpoint in folder.glob("checkpoint-*"):
        (checkpoint / FILES_NAME).unlink()
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        trained(folder, resume=True)


class Killed(BaseException):
    """Ends a run at once, as a signal would."""


@BOTH
def test_an_older_checkpoint_of_the_same_step_never_passes_for_the_new_one(tmp_path, name, monkeypatch):
    """A save that dies over an older checkpoint of the same step leaves none there, wherever it died; with
    save_total_limit=1 the one before is still there.
    """
    options = {"save_total_limit": 1, "max_steps": 4}
    trained(tmp_path, name, **options)
    shutil.rmtree(tmp_path / "checkpoint-4")
    trained(tmp_path, name, **{**options, "max_steps": 2})
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-4")

    def dies(*args, **kwargs):
        raise Killed

    for owner, function in ((torch, "save"), (TrainerState, "save_to_json")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, function, dies)
            with pytest.raises(Killed):
                trained(tmp_path, name, resume=str(tmp_path / "checkpoint-2"), **options)
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_a_full_disk_is_named_and_costs_only_the_checkpoint_being_written(tmp_path, whole):
    """`/dev/full` is a disk without room. The error says so, the checkpoint before is bit for bit what it was, and the
    run resumes from it.
    """
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    for step, name in ((4, "optimizer.pt"), (6, "amal.pt.tmp")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / name).symlink_to("/dev/full")
        resume = True if last_checkpoint(tmp_path) else None
        before = {path: path.read_bytes() for path in sorted(tmp_path.glob(f"checkpoint-{step - 2}/*"))}
        with pytest.raises(OSError, match=rf"checkpoint-{step} could not be written.*MB are free.*save_total_limit"):
            trained(tmp_path, resume=resume)
        assert last_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{step - 2}")
        assert all(path.read_bytes() == content for path, content in before.items())
        (tmp_path / f"checkpoint-{step}" / name).unlink()
    assert_same(trained(tmp_path, resume=True), whole)


def test_a_dataset_that_shrank_is_refused(folder):
    """Rows would belong to other examples."""
    trainer = new_trainer(
        folder,
        METHODS["table"],
        train=toy_rows(17),
        losses=[CrossEntropy(), Distillation(table_teacher(17))],
        **OPTIONS,
    )
    with pytest.raises(ValueError, match="examples = 18, this run has examples = 17"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("not enough memory: you tried to allocate")]
)
def test_running_out_of_memory_in_a_meta_step_names_the_settings(tmp_path, monkeypatch, error):
    """The error is the same object, so that `auto_find_batch_size` knows it; other errors are left as they are."""
    notes = []
    for raised in (error, RuntimeError("shapes differ")):

        def fail(self, raised=raised):
            raise raised

        monkeypatch.setattr(WeightLearner, "next_meta_batch", fail)
        with pytest.raises(RuntimeError) as caught:
            trained(tmp_path)
        assert caught.value is raised
        notes.append(" ".join(getattr(raised, "__notes__", [])))
    assert all(word in notes[0] for word in ("meta_batch_size", "meta_interval", "LastLayer()", "checkpointing"))
    assert notes[1] == ""


class KillAt(TrainerCallback):
    """Says which step the run has come to."""

    def __init__(self, connection):
        self.connection = connection

    def on_step_end(self, args, state, control, **kwargs):
        self.connection.send(state.global_step)


LIMIT = 120
"""Seconds to wait for a process."""


def live(folder, name, connection, threads):
    """The life of a process: it resumes, if there is anything to resume from."""
    torch.set_num_threads(threads)  # of their number depends how sums are rounded
    trainer = new_trainer(
        folder, METHODS[name], rows=18, callbacks=[KillAt(connection)], **{**OPTIONS, "save_steps": 1}
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    torch.save(state_of(trainer), folder / "end.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="has a fork server")
@BOTH
def test_a_process_killed_with_signal_9_resumes_to_the_same_numbers(tmp_path, name):
    """Three lives, the first two killed after their second step, while the checkpoint of it is written."""
    # Not by fork: this process may have threads, whose locks a child would wait for.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["amal_hf"])
    for life in range(3):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=live, args=(tmp_path, name, theirs, torch.get_num_threads()))
        process.start()
        theirs.close()
        if life < 2:
            assert [mine.poll(LIMIT) and mine.recv() for _ in range(2)][0] >= 1
            process.kill()
        process.join(LIMIT)
    assert process.exitcode == 0
    expected = trained(tmp_path / "whole", name)
    for ours, theirs in zip(torch.load(tmp_path / "end.pt"), state_of(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_without_losses_and_method_checkpoints_are_those_of_trainer(tmp_path):
    """No file of ours is added, and none is asked for."""
    model, args = new_trainer(tmp_path, METHODS["fixed"]).model, toy_arguments(tmp_path, **OPTIONS)
    AMALTrainer(model, args, train_dataset=toy_rows(18)).train()
    assert FILES_NAME not in files_of(tmp_path / "checkpoint-6")
    again = AMALTrainer(model, args, train_dataset=toy_rows(18), callbacks=[StopAt(4)])
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4
