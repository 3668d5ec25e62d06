"""Trackers get scalars under names that they take, and histograms of the weights where they show such."""

import os

import numpy as np
import pytest
from conftest import tiny_bert, toy_arguments, toy_rows

from amal_hf import AMALArguments, AMALTrainer, CrossEntropy, random_weights


def second(outputs, batch):
    """A second loss."""
    return outputs.logits.square().mean(1)


def run(folder, **options):
    trainer = AMALTrainer(
        model=tiny_bert(),
        args=toy_arguments(folder, **options),
        train_dataset=toy_rows(24),
        losses=[CrossEntropy(), second],
        method=random_weights(),
    )
    trainer.train()
    return trainer


def accumulated(file):
    """An event file, read whole."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(os.fspath(file), size_guidance={"histograms": 0}).Reload()


def test_no_callback_without_a_tracker(tmp_path):
    """Nothing is added to a run that reports to nobody, or to a tracker without histograms."""
    names = [type(callback).__name__ for callback in run(tmp_path, report_to="none").callback_handler.callbacks]
    assert not [name for name in names if "Histograms" in name]


def test_tensorboard(tmp_path):
    """Read back from the event file: a histogram of each loss at every log, of the weights that scalars summarise."""
    pytest.importorskip("tensorboard")
    trainer = run(tmp_path, report_to="tensorboard")
    (file,) = tmp_path.rglob("events.out.tfevents*")
    events = accumulated(file)
    assert set(events.Tags()["histograms"]) == {"weights/labels", "weights/second"}
    assert {"train/loss_labels", "train/weight_second_p50", "train/weight_labels_mean"} <= set(
        events.Tags()["scalars"]
    )
    histograms = events.Histograms("weights/second")
    assert [event.step for event in histograms] == [2, 4, 6]
    means = [entry["weight_second_mean"] for entry in trainer.state.log_history if "loss" in entry]
    for event, mean in zip(histograms, means, strict=True):
        assert event.histogram_value.num == 8  # two steps of four examples
        assert event.histogram_value.sum / 8 == pytest.approx(mean, rel=1e-5)


def test_evaluation_after_training_writes_no_histogram(tmp_path):
    """A log without weights must neither repeat the last ones nor fail on a writer that is closed."""
    pytest.importorskip("tensorboard")
    trainer = run(tmp_path, report_to="tensorboard")
    trainer.evaluate(toy_rows(8))
    counts = [
        len(events.Histograms("weights/labels"))
        for file in tmp_path.rglob("events.out.tfevents*")
        if "weights/labels" in (events := accumulated(file)).Tags()["histograms"]
    ]
    assert counts == [3]


def test_trackio(tmp_path, monkeypatch):
    """Read back from its database on this machine: scalars and a histogram of each loss."""
    pytest.importorskip("trackio")
    from trackio import utils
    from trackio.sqlite_storage import SQLiteStorage

    assert AMALArguments(output_dir=str(tmp_path), use_cpu=True).trackio_static_space_id is False
    for module in ("trackio.utils", "trackio.sqlite_storage"):
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    assert tmp_path / "trackio" == utils.TRACKIO_DIR
    run(tmp_path, report_to="trackio", project="weights", run_name="one")
    entries = SQLiteStorage.get_logs("weights", "one")
    histograms = [entry["weights/labels"] for entry in entries if "weights/labels" in entry]
    assert len(histograms) == 3
    assert [np.sum(histogram["values"]) for histogram in histograms] == [8, 8, 8]
    assert any("train/weight_labels_p50" in entry for entry in entries)
