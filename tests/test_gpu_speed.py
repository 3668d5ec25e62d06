"""`benchmarks/gpu_speed.py` is kept running without a GPU."""

import json
import runpy
import sys
import time
from pathlib import Path

import pytest

from amal_hf import AMALTrainer, bayes_mixture


FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    """It, and `overhead.py`, which it imports, with few steps."""
    monkeypatch.syspath_prepend(FOLDER)
    import gpu_speed
    import overhead

    for script in (gpu_speed, overhead):
        monkeypatch.setattr(script, "PAIRS", 1)
        monkeypatch.setattr(script, "STEPS_PER_EPOCH", 16)
    return gpu_speed


def test_a_meta_step_is_timed_with_the_steps_that_learn(scripts, tmp_path, monkeypatch):
    """Judging takes a second at two steps of eight, so a quarter of a second a step; the fixed mixture has none."""
    take_step = AMALTrainer._meta_step

    def slow(self, *args, **options):
        time.sleep(1.0)
        return take_step(self, *args, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AMALTrainer, "_meta_step", slow)
    found = scripts.measure("amal()", "BERT-base", False, scripts.TINY)
    assert 0.2 < found["seconds"] - found["fixed_seconds"] < 0.6
    assert found["tokens"] == 64
    assert found["fixed_bytes"] == 0  # of a CPU no such figure is kept


def test_a_method_that_is_shown_labels_is_shown_them_in_its_own_turn(scripts, tmp_path, monkeypatch):
    """And not in the first, which is the fixed mixture's."""
    import overhead

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(overhead, "ROWS", 32)
    monkeypatch.setattr(overhead, "STEPS_PER_EPOCH", 1)
    trainer, ticks = overhead.turns_of(bayes_mixture(), overhead.Load(4, layers=1, has_seen_labels=False))
    assert trainer.method.policy.rows_wanted == 0 and len(ticks) == 4


def test_operations_are_those_of_the_literature(scripts):
    """BERT-base: 86 million parameters beside its embeddings, 12 layers of width 768."""
    model = scripts.new_student("BERT-base", scripts.FULL)
    assert scripts.flops_per_token(model, 128) == pytest.approx(6 * 86e6 + 12 * 12 * 768 * 128, rel=0.01)


@pytest.mark.slow
def test_every_cell_is_measured(tmp_path, monkeypatch):
    """Both students, compiled and not, each variant beside the fixed mixture: eight cells, all of them positive, and
    the device is used less by as much as a step takes longer. How long that is depends on who else is there.
    """
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu_speed.py", "--tiny", "--out", str(tmp_path / "out.json")])
    runpy.run_path(str(FOLDER / "gpu_speed.py"), run_name="__main__")
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert len({(cell["student"], cell["compile"], cell["variant"]) for cell in cells}) == len(cells) == 8
    assert all(cell["fixed_seconds"] > 0 and cell["utilisation"] > 0 for cell in cells)
    for cell in cells:
        assert cell["time"] == pytest.approx(cell["fixed_utilisation"] / cell["utilisation"])
