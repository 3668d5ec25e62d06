"""Weights for a translator beside controls: the runs, and their table by hand."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_tables import columns

from amal_hf.demo_translation import translation_corpus


@pytest.fixture
def script(monkeypatch):
    """The script, for a few small sentences."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import translation

    monkeypatch.setattr(translation, "ROWS", 120)
    monkeypatch.setattr(translation, "HELD_OUT", 20)
    monkeypatch.setattr(translation, "EPOCHS", 6)
    return translation


@pytest.fixture
def data(tmp_path):
    """Pairs as they are read."""
    lines = [json.dumps({"de": row["de"], "en": row["en"]}) for row in translation_corpus(120)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    return tmp_path


def made(run, seed, bleu, last=False, auc=None):
    """A record."""
    return {"run": run, "seed": seed, "clean_last": last, "dev": 9.0, "bleu": bleu, "loss": 2.0, "auc": auc}


def test_runs_differ_in_pairs_and_weights_alone(script, data, monkeypatch):
    """All 60 pairs, or those that are right, for as many steps; then in each run the 20 clean ones, more slowly."""
    seen = []

    def fitted(student, corpus, rows, steps, method=None, rate=1.0):
        seen.append((len(rows), steps, rate, method is not None))
        return SimpleNamespace(example_weights=lambda: {"labels": 1.0 - corpus.wrong})

    monkeypatch.setattr(script, "fitted", fitted)
    monkeypatch.setattr(script, "scores", lambda trainer, corpus: {})
    corpus = script.corpus_of(data, 0)
    records = [record for name in script.RUNS for record in script.scored(name, corpus)]
    right, steps = 60 - corpus.wrong.sum(), 6 * 60 // 16
    first = [(60, steps, 1.0, False), (60, steps, 1.0, True), (60, steps, 1.0, True), (right, steps, 1.0, False)]
    assert seen[::2] == first and set(seen[1::2]) == {(20, 5 * 20 // 16, 0.25, False)}
    assert [record["clean_last"] for record in records] == [False, True] * 4
    assert [record["auc"] for record in records] == [None, None, 1.0, 1.0, 1.0, 1.0, None, None]


def test_table_has_gains_by_seed_over_the_same_end(script):
    """By hand: 3, 4 and 5 over all pairs alike, with clean pairs last 1 over the same; AUC where pairs are weighed."""
    ours, alike = "deep_interactions()", script.ALIKE
    records = [
        *[made(alike, seed, 20.0 + seed) for seed in range(3)],
        *[made(alike, seed, 30.0, last=True) for seed in range(3)],
        *[made(ours, seed, 23.0 + 2 * seed, auc=0.9) for seed in range(3)],
        *[made(ours, seed, 31.0, last=True) for seed in range(3)],
    ]
    table = script.results_table(records)
    row = columns(table, "`deep_interactions()`")
    assert (row["BLEU"], row["over all pairs alike"], row["AUC"]) == ("25.0 ± 5.0", "+4.0 ± 2.5", "0.90 ± 0.00")
    assert columns(table, "`deep_interactions()`, then clean pairs")["over all pairs alike"] == "+1.0 ± 0.0"
    assert columns(table, alike)["over all pairs alike"] == columns(table, alike)["AUC"] == ""
    assert "oracle" not in table


@pytest.mark.slow
def test_a_finished_run_is_not_made_again(script, data, monkeypatch, tmp_path):
    """From the command line to two lines a run, BLEU among them; a second call adds nothing."""
    pytest.importorskip("sacrebleu")
    file = tmp_path / "made.jsonl"
    command = ["translation.py", "--data", str(data), "--seeds", "0", "--results", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    once = file.read_text()
    assert len(script.read(file)) == 2 * len(script.RUNS)
    assert all(0 <= record["bleu"] <= 100 for record in script.read(file))
    script.main()
    assert file.read_text() == once
