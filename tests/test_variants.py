"""Neighbours of the default: what the ensembles average, and the tables, by hand."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_tables import columns

from amal_hf import LossNetwork


@pytest.fixture
def variants(monkeypatch):
    """The script."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import variants

    return variants


def test_meta_gradients_are_averaged_with_those_before(variants):
    """By hand: after 3 and 6 the mean that keeps half is (3/4 + 6/2) / (3/4) = 5; the first is its own mean."""
    direction = variants.MeanOfGradients(0.5)
    params = {"w": torch.zeros(1, requires_grad=True)}
    optimizer = torch.optim.SGD(params.values())
    found = [direction({"w": torch.tensor([g])}, params, optimizer, None)["w"].item() for g in (3.0, 6.0)]
    assert found == pytest.approx([3.0, 5.0])


def test_slopes_are_averaged_with_the_last_ones_of_the_example(variants, monkeypatch):
    """By hand: 1, 3, 2 of one example become 1, 2, 2, beside another's 5; from then on the new one counts a fifth."""
    seen = []
    monkeypatch.setattr(LossNetwork, "update", lambda self, observation, slopes: seen.append(slopes))
    policy = variants.MeanOfSlopes()
    policy.known = {}
    for ids, slopes in [([7], [1.0]), ([7, 8], [3.0, 5.0]), ([7], [2.0]), *[([7], [2.0])] * 3, ([7], [7.0])]:
        policy.update(SimpleNamespace(ids=torch.tensor(ids)), torch.tensor(slopes)[:, None])
    assert [step[:, 0].tolist() for step in seen[:3]] == [[1.0], [2.0, 5.0], [2.0]]
    assert seen[-1].item() == pytest.approx(3.0)


def test_tables_have_means_over_settings_and_gains_by_seed(variants, monkeypatch):
    """By hand: 80 and 90 % are 85, a neighbour one and three points lower is -2 with no interval for two seeds; of
    clean rows only what has as many is compared; what was never run has no row.
    """
    monkeypatch.setattr(variants, "VARIANTS", {variants.DEFAULT: (), "never run": (), "other": ()})
    monkeypatch.setattr(variants, "SIZES", (100,))

    def record(name, seed, setting, dev, size=300):
        return {"data": "trec", "setting": setting, "seed": seed, "variant": name, "clean_rows": size, "dev": dev}

    records = [
        record(name, seed, setting, dev - lower * (1 + 2 * seed), size)
        for name, lower, size in (
            (variants.DEFAULT, 0, 300),
            ("other", 0.01, 300),
            *[(n, 0, 100) for n in variants.BESIDE],
        )
        for seed in (0, 1)
        for setting, dev in (("flipped40", 0.8), ("instance40", 0.9))
    ]
    row = columns(variants.variants_table(records), "other")
    assert (row["trec"], row["over the default"]) == ("83.0", "-2.0")
    assert columns(variants.variants_table(records), "`amal()`")["trec"] == "85.0"
    assert columns(variants.clean_rows_table(records), "100")["gain over all rows alike"] == "+0.0"


def test_no_run_is_made_twice(variants, monkeypatch, tmp_path):
    """The default among its neighbours is that beside the controls too; a second call finds all that there is."""
    made = []

    def run(place, name, phases):
        made.append((place.student, place.setting, name, place.clean_rows))
        found = {"data": place.data.name, "student": place.student, "setting": place.setting, "seed": place.seed}
        return {**found, "variant": name, "clean_rows": place.clean_rows, "dev": 0.5}

    monkeypatch.setattr(variants, "run", run)
    monkeypatch.setattr(variants, "quiet", lambda workers: None)
    command = ["variants.py", "--data", "trec", "--seeds", "100", "--results", str(tmp_path / "made.jsonl")]
    monkeypatch.setattr(sys, "argv", command)
    variants.main()
    assert len(set(made)) == len(made) == len(variants.SETTINGS) * (len(variants.VARIANTS) + 8)
    variants.main()
    assert len(made) == len(variants.read(tmp_path / "made.jsonl"))

    monkeypatch.setattr(sys, "argv", [*command, "--student", "2", "--settings", "flipped40"])
    heads = len(made)
    variants.main()
    assert made[heads:] == [("2", "flipped40", name, 300) for name in variants.VARIANTS]
    variants.main()
    assert len(made) == heads + len(variants.VARIANTS)


def test_each_student_has_its_recipe(variants):
    """Over features smoothed labels and the clean rows last; with layers the clean teacher; the same thing changed."""
    changed = variants.Variant(arguments={"meta_batch_size": 64})
    first, last = changed.phases("frozen")
    (only,) = changed.phases("2")
    assert (first.smoothing, last.rows, only.smoothing) == (0.1, variants.CLEAN, 0.0)
    assert only.losses is variants.with_clean_teacher is not first.losses
    for phase in (first, only):
        assert (phase.rows, phase.arguments, phase.method(None).name) == (variants.ALL, changed.arguments, "amal")
