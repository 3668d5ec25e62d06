"""Weights for a translator beside controls: the runs, and their table by hand."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import DatasetDict
from transformers import get_scheduler

from amal_hf.demo_translation import translation_corpus


@pytest.fixture
def script(monkeypatch):
    """The script, for a few small sentences."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import translation

    monkeypatch.setattr(translation, "ROWS", 120)
    monkeypatch.setattr(translation, "HELD_OUT", 20)
    monkeypatch.setattr(translation, "EPOCHS", 10)
    return translation


@pytest.fixture
def data(tmp_path):
    """Pairs as they are read."""
    lines = [json.dumps({"de": row["de"], "en": row["en"]}) for row in translation_corpus(120)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    return tmp_path


class FakeTrainer:
    """Trains nothing."""

    def remove_callback(self, callback):
        """None there."""

    def train(self):
        """Not at all."""


def made(run, seed, bleu, rate="falls from the start", last=False, auc=None):
    """A record."""
    of = {"run": run, "rate": rate, "seed": seed, "clean_last": last}
    return {**of, "dev": 9.0, "bleu": bleu, "loss": 2.0, "auc": auc}


def test_runs_differ_in_pairs_weights_and_rate_alone(script, data, monkeypatch):
    """All 60 pairs, or those that are right, for as many steps; then in each run the 20 clean ones, more slowly."""
    seen, plain = [], script.Run()

    def fitted(student, corpus, rows, steps, run=plain, **schedule):
        seen.append((len(rows), steps, run, schedule))
        return SimpleNamespace(example_weights=lambda: {"labels": 1.0 - corpus.wrong})

    monkeypatch.setattr(script, "fitted", fitted)
    monkeypatch.setattr(script, "scores", lambda trainer, corpus: {})
    corpus = script.corpus_of(data, 0)
    right, steps = 60 - corpus.wrong.sum(), 10 * 60 // 16
    for rate, schedule_of in script.RATES.items():
        schedule = schedule_of(steps)
        records = [record for name in script.RUNS for record in script.scored(name, rate, corpus)]
        rows = {name: right if "oracle" in name else 60 for name in script.RUNS}
        assert seen[::2] == [(rows[name], steps, run, schedule) for name, run in script.RUNS.items()]
        assert seen[1::2] == len(script.RUNS) * [(20, 5 * 20 // 16, plain, {"learning_rate": 3e-3 / 4})]
        assert {record["rate"] for record in records} == {rate}
        assert [record["clean_last"] for record in records] == len(script.RUNS) * [False, True]
        told = [1.0 if "selection" in name or "deep_" in name else None for name in script.RUNS]
        assert [record["auc"] for record in records[::2]] == told
        assert [record["auc"] for record in records[1::2]] == [record["auc"] for record in records[::2]]
        seen.clear()


def test_a_run_is_what_its_trainer_trains_on(script, data):
    """Loss, smoothing and weights of each run reach the trainer; without a run it has none of them."""
    corpus = script.corpus_of(data, 0)
    found = []
    for run in (*script.RUNS.values(), script.Run()):
        trainer = script.fitted(corpus.student(), corpus, corpus.sets["train"], 32, run)
        loss = trainer.mixture.losses[0]
        found.append((type(loss).__name__, loss.exponent, loss.task.label_smoothing, trainer.method.name))
    plain, robust = ("CrossEntropy", 0.0), ("GeneralizedCrossEntropy", 0.3)
    assert found == [
        (*plain, 0.0, "fixed"),
        (*plain, 0.1, "fixed"),
        (*robust, 0.0, "fixed"),
        (*plain, 0.0, "small_loss"),
        (*robust, 0.0, "small_loss"),
        (*plain, 0.0, "source_gain"),
        (*robust, 0.0, "source_gain"),
        *2 * [(*plain, 0.0, "deep_interactions"), (*robust, 0.0, "deep_interactions")],
        (*robust, 0.0, "deep_interactions"),
        (*plain, 0.0, "fixed"),
        (*plain, 0.0, "fixed"),
    ]


def test_late_rate_falls_from_where_weights_begin_to_act(script):
    """After the warm-up it stays until the middle, when learned weights act and a selection by source gain is
    complete, and then falls to nothing.
    """
    schedule = script.RATES[script.LATE](100)
    scheduler = get_scheduler(
        schedule["lr_scheduler_type"],
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0),
        num_warmup_steps=10,
        num_training_steps=100,
        scheduler_specific_kwargs=schedule["lr_scheduler_kwargs"],
    )
    rates = []
    for _ in range(101):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    assert rates[10:51] == [1.0] * 41
    assert rates[50:] == pytest.approx([step / 50 for step in range(50, -1, -1)])
    learned = [make(0.3).policy.until for make in (script.by_weighing, script.by_memory)]
    assert max(*learned, script.by_source_gain(0.3).policy.ramp) == 0.5


def test_two_selections_differ_in_what_they_look_at_alone(script):
    """Share, which they are told, ramp and the number of pairs compared are the same for losses and for gains."""
    chosen = ("source-gain selection", "small-loss selection among as many")
    gain, loss = (script.RUNS[f"{name}, generalised cross-entropy"].method(0.45).policy for name in chosen)
    assert (gain.ramp, gain.among) == (loss.ramp, loss.among) and gain.forgotten == loss.forgotten == 0.45
    assert gain.needs_source_gain and not loss.needs_source_gain


@pytest.mark.parametrize("shuffled", ["0", "0.45"])
def test_selections_of_the_recipe_are_told_how_many_pairs_it_makes_wrong(script, shuffled):
    """Whatever that share is."""
    what, _ = script.recipe.parse(["--shuffled", shuffled])
    chosen = [script.recipe.RUNS[f"{name} selection"](what.shuffled).policy for name in ("small-loss", "source-gain")]
    assert [policy.forgotten for policy in chosen] == 2 * [float(shuffled)]


@pytest.mark.parametrize("shuffled", ["-0.1", "1", "30"])
def test_a_share_that_is_none_is_refused_by_the_recipe(script, shuffled):
    """Before anything is read."""
    with pytest.raises(ValueError, match=r"--shuffled: expected a share of the pairs in \[0, 1\)"):
        script.recipe.parse(["--shuffled", shuffled])


def test_two_networks_differ_in_what_they_read_alone(script):
    """What a pair did so far, or what its target gains."""
    gain, memory = (make(0.3).policy.policy for make in (script.by_weighing, script.by_memory))
    told = [policy.describe().split(", ") for policy in (gain, memory)]
    assert {*told[0]} ^ {*told[1]} == {"source gain", "memory"}
    assert gain.learning_rate == memory.learning_rate


def test_table_has_gains_by_seed_over_the_same_rate(script):
    """By hand: 3, 4 and 5 over all pairs alike, under the other rate 1; AUC where pairs are weighed."""
    ours, alike, other = "deep_interactions(), memory", script.ALIKE, script.LATE
    records = [
        *[made(alike, seed, 20.0 + seed) for seed in range(3)],
        *[made(alike, seed, 30.0, other) for seed in range(3)],
        *[made(ours, seed, 23.0 + 2 * seed, auc=0.9) for seed in range(3)],
        *[made(ours, seed, 11.0, last=True) for seed in range(3)],
        *[made(ours, seed, 31.0, other) for seed in range(3)],
        *[made(ours, seed, 12.0, other, last=True) for seed in range(3)],
        *[made(alike, seed, 13.0, rate, last=True) for seed in range(3) for rate in script.RATES],
    ]
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in script.results_table(records).splitlines()
    )
    table = {(row[0].strip("`"), row[1]): dict(zip(head, row, strict=True)) for row in rows}
    found = table[ours, script.FALLING]
    assert (found["BLEU"], found["over all pairs alike"]) == ("25.0 ± 5.0", "+4.0 ± 2.5")
    assert (found["then clean pairs"], found["AUC"]) == ("11.0 ± 0.0", "0.90 ± 0.00")
    found = table[ours, other]
    assert (found["over all pairs alike"], found["then clean pairs"]) == ("+1.0 ± 0.0", "12.0 ± 0.0")
    assert table[alike, other]["over all pairs alike"] == table[alike, other]["AUC"] == ""
    assert len(table) == 4


def test_each_share_of_wrong_pairs_has_a_table_of_its_own(script):
    """A record that says none is of the usual share; gains are over the control that is named."""
    usual = [made(script.ALIKE, seed, 20.0, last=last) for seed in range(3) for last in (False, True)]
    others = [{**record, "bleu": 10.0, "wrong": 0.5} for record in usual]
    assert script.results_table([*usual, *others]) == script.results_table(usual)
    robust = [{**record, "run": "generalised cross-entropy", "bleu": 12.0} for record in others]
    found = script.results_table([*usual, *others, *robust], 0.5, "generalised cross-entropy")
    assert "over generalised cross-entropy" in found and "20.0" not in found
    assert "-2.0 ± 0.0" in found
    assert script.results_table([{**record, "wrong": 0.3} for record in usual]) == script.results_table(usual)


def test_as_many_pairs_are_wrong_as_is_said(script, data):
    """Half of 60, each with the target of another."""
    corpus = script.corpus_of(data, 0, 0.5)
    assert len(corpus.sets["train"]) == 60 and 25 <= corpus.wrong.sum() <= 30
    assert script.corpus_of(data, 0).wrong.sum() <= 18


def test_settings_of_the_recipe_are_those_of_the_benchmark(script, monkeypatch):
    """`recipes/multi30k.yaml` has the data, the student, the loss and the arguments of the best run."""
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr(script.recipe, "new_trainer", lambda *given: seen.append(given) or FakeTrainer())
    file = Path(__file__).parents[1] / "recipes" / "multi30k.yaml"
    what, args = script.recipe.parse([str(file), "--dataset", "pairs"])
    steps = int(args.num_train_epochs) * (what.rows - 3 * what.held_out) // args.per_device_train_batch_size
    corpus = SimpleNamespace(seed=args.seed, what=what, sets=DatasetDict(train=range(10_000)), tokenizer=None)
    run = script.RUNS["deep_interactions(), source gain, drawn, generalised cross-entropy"]
    script.fitted(None, corpus, range(10_000), steps, run, **script.RATES[script.LATE](steps))
    own = {"output_dir", "max_steps", "num_train_epochs", "report_to", "disable_tqdm", "write_figures"}
    theirs, ours = (
        {name: value for name, value in one.to_dict().items() if name not in own} for one in (seen[0][2], args)
    )
    assert theirs == ours and seen[0][2].max_steps == steps
    assert (what.loss_q, what.runs[-1]) == (0.3, "long_runs_drawn")
    ours, theirs = script.recipe.RUNS["long_runs_drawn"](what.shuffled), run.method(script.WRONG)
    found = [(one.name, one.window, one.policy.describe()) for one in (ours, theirs)]
    assert found[0] == found[1] and ours.policy.draws
    assert (what.rows, what.held_out, what.shuffled) == (script.ROWS, script.HELD_OUT, script.WRONG)


def test_short_table_has_every_share_beside_the_loss_that_runs_have_in_common(script):
    """By hand: 4 above it with the usual share of wrong pairs, 1 below with another; under the rate that falls late,
    and nothing where no run was made.
    """
    ours, alike, base, late = script.SHORT[3], script.ALIKE, script.ROBUST_LOSS, script.LATE
    usual = [
        made(run, seed, bleu + seed, rate, last=last)
        for run, bleu in ((ours, 24.0), (base, 20.0), (alike, 19.0))
        for seed in range(3)
        for rate, last in ((late, False), (late, True), (script.FALLING, False))
    ]
    others = [
        {**one, "bleu": 9.0 if one["run"] == ours else 10.0, "wrong": 0.5} for one in usual if one["run"] != alike
    ]
    usual = [{**one, "bleu": 99.0} if (one["rate"], one["clean_last"]) != (late, False) else one for one in usual]
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in script.short_table([*usual, *others]).splitlines()
    )
    gain = "over generalised cross-entropy"
    assert head == ["run", "BLEU, 30 % wrong", gain, "BLEU, 50 % wrong", gain]
    table = {row[0].strip("`"): row[1:] for row in rows}
    assert list(table) == script.SHORT and set(table) <= set(script.RUNS)
    assert table[ours] == ["25.0 ± 2.5", "+4.0 ± 0.0", "9.0 ± 0.0", "-1.0 ± 0.0"]
    assert table[base] == ["21.0 ± 2.5", "", "10.0 ± 0.0", ""]
    assert table[alike] == ["20.0 ± 2.5", "-1.0 ± 0.0", "", ""]
    assert table[script.SHORT[-1]] == 4 * [""]


@pytest.mark.slow
def test_a_finished_run_is_not_made_again(script, data, monkeypatch, tmp_path):
    """From the command line to two lines a run and rate, BLEU among them; a second call adds nothing."""
    pytest.importorskip("sacrebleu")
    file = tmp_path / "made.jsonl"
    command = ["translation.py", "--data", str(data), "--seeds", "0", "--results", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    once = file.read_text()
    assert len(script.read(file)) == 2 * len(script.RUNS) * len(script.RATES)
    assert all(0 <= record["bleu"] <= 100 for record in script.read(file))
    script.main()
    assert file.read_text() == once
