"""The quality benchmark: finished cells are not run again, every run takes the same budget."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import cell  # noqa: E402
import contenders  # noqa: E402
import correction  # noqa: E402
import first_weights  # noqa: E402
import phases  # noqa: E402
import quality  # noqa: E402
import settings  # noqa: E402
import teaching  # noqa: E402
from bodies import Body  # noqa: E402
from frozen_head import new_head, standardised  # noqa: E402
from kept_arrays import kept_array  # noqa: E402
from rivals import BelievedLabels  # noqa: E402
from settings import TRUSTED, Bench, Place, marked  # noqa: E402
from test_teachers import tokenizer  # noqa: E402

from amal_hf import amal  # noqa: E402
from amal_hf.policies.policy import Signals  # noqa: E402
from amal_hf.task import Task  # noqa: E402


CLASSES, TRAIN, OTHER = 3, 40, 12


class TinyBody(Body):
    """A small head over random rows."""

    kind = "tiny"
    epochs, learning_rate, batch_size = 4, 1e-2, 20
    teacher_epochs, teacher_rate = 1, 1e-2

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.table = standardised(torch.randn(TRAIN + 4 * OTHER, 6, generator=generator))

    def encode(self, rows):
        return rows

    def student(self, classes):
        return new_head(self.table, classes, hidden=4)

    teacher = student


def rows_from(first, count, **columns):
    label = {"row": Value("int64"), "label": ClassLabel(num_classes=CLASSES), **columns.pop("features", {})}
    numbers = list(range(first, first + count))
    return Dataset.from_dict(
        {"row": numbers, "label": [n % CLASSES for n in numbers], **columns}, features=Features(label)
    )


def tiny_bench(setting, rules=0):
    votes = {}
    if rules:
        votes = {
            "weak_labels": [
                [(n + (j == 0)) % CLASSES if (n + j) % 3 else -1 for j in range(rules)] for n in range(TRAIN)
            ],
            "majority": [n % CLASSES for n in range(TRAIN)],
            "label_model": [[1 / CLASSES] * CLASSES] * TRAIN,
            "true_label": [n % CLASSES for n in range(TRAIN)],
            "features": {
                "weak_labels": List(Value("int8")),
                "majority": Value("int64"),
                "label_model": List(Value("float64")),
                "true_label": Value("int64"),
            },
        }
    names = ["meta", "validation", "test", *(["labelled"] if rules else [])]
    splits = {name: rows_from(TRAIN + OTHER * i, OTHER) for i, name in enumerate(names)}
    splits = {"train": rows_from(0, TRAIN, **votes), **splits}
    splits = DatasetDict({name: marked(name, rows) for name, rows in splits.items()})
    right = None if rules else torch.arange(TRAIN).remainder(4).bool().numpy()
    return Bench(Place(Path("tiny"), "tiny", setting, 0), splits, TinyBody(), CLASSES, "accuracy", right, rules)


RUNS = [("flipped40", name) for name in contenders.DISTILLATION] + [("rules", name) for name in contenders.VOTES]


@pytest.mark.parametrize(("setting", "run"), RUNS)
def test_every_run_takes_the_same_number_of_steps_and_can_be_measured(setting, run, monkeypatch, tmp_path):
    """Whatever its phases: the budget is that of the training rows, and the table's numbers come out."""
    monkeypatch.setattr(phases, "teacher_logits", lambda bench: torch.randn(TRAIN + OTHER, CLASSES))
    monkeypatch.setattr(phases, "clean_teacher_calibration", lambda bench: 2.0)  # it knows nothing of random rows
    for chosen in ("kept_rows", "kept_by_weights"):
        monkeypatch.setattr(phases, chosen, lambda bench: torch.arange(TRAIN).remainder(4).bool().numpy())
    monkeypatch.setattr(phases, "regression_logits", lambda *which: torch.randn(TRAIN + OTHER, CLASSES))
    monkeypatch.setattr(teaching, "CACHE", tmp_path)
    bench = tiny_bench(setting, rules=4 if setting == "rules" else 0)
    monkeypatch.setattr(cell, "bench_of", lambda place: bench)
    monkeypatch.setattr(cell, "available", lambda: False)
    option, chosen = next(iter(contenders.contenders(setting)[run].options.items()))
    assert sum(cell.steps_of(bench, chosen)) == 4 * TRAIN // 20
    record = cell.run_cell(cell.Cell(bench.place, run, option))
    assert {"accuracy", "macro_f1", "f1"} == record["test"].keys()
    assert -1 <= record["auc"].pop("rule order", 0.0) <= 1
    assert all(0 <= value <= 1 for value in [record["dev"], *record["test"].values(), *record["auc"].values()])
    if run in ("amal()", "meta_weight_net()", "learning_to_reweight()"):
        assert ("vote weight" if setting == "rules" else "label weight") in record["auc"]


def test_rows_that_are_left_out_cost_no_steps(monkeypatch):
    """Those that are kept, and the clean ones, are seen more often instead."""
    bench = tiny_bench("flipped40")
    phase = replace(contenders.CLEANED, kept=phases.surely_right)
    rows = cell.rows_of(bench, phase)
    assert rows["row"][:] == [*np.flatnonzero(bench.right), *bench.splits["meta"]["row"][:]]
    assert cell.steps_of(bench, (phase,)) == cell.steps_of(bench, (contenders.CLEANED,))


def test_an_array_is_made_once(tmp_path):
    """And nothing is left of it but the whole file."""
    made = []

    def make():
        made.append(0)
        return np.arange(3)

    for _ in range(2):
        assert kept_array(tmp_path / "here" / "numbers.npy", make).tolist() == [0, 1, 2]
    assert len(made) == len(list((tmp_path / "here").iterdir())) == 1


def test_labels_are_judged_before_the_student_sees_them():
    """All training rows, by the run over features."""
    bench = tiny_bench("flipped40")
    assert first_weights.probably_right(bench.body.table, bench).shape == (TRAIN,)


def test_a_regression_is_fitted_to_the_rows_that_are_kept_and_to_clean_ones(monkeypatch, tmp_path):
    """Their labels and no others, in the order of the embeddings' table; as sure as it may be by the clean rows."""
    monkeypatch.setattr(teaching, "CACHE", tmp_path)
    bench, asked = tiny_bench("flipped40"), []
    monkeypatch.setattr(teaching, "over_features", lambda place: (bench, bench.body.table))

    def answer(features, labels, classes):
        asked.append((features, labels))
        return 2.0 * torch.nn.functional.one_hot(labels.clamp(min=0), classes).float()

    monkeypatch.setattr(teaching, "out_of_fold_logits", answer)
    monkeypatch.setattr(teaching, "calibrated_temperature", lambda logits, labels: 0.5 * len(logits) / OTHER)
    logits = teaching.regression_logits(bench, "some", phases.surely_right(bench))
    ((features, labels),) = asked
    rows = [*bench.splits["train"]["row"][:], *bench.splits["meta"]["row"][:]]
    given = torch.tensor([*bench.splits["train"]["label"][:], *bench.splits["meta"]["label"][:]])
    given[:TRAIN][~torch.from_numpy(bench.right)] = -1
    assert torch.equal(features, bench.body.table[rows]) and torch.equal(labels, given)
    assert logits.shape == (TRAIN + OTHER, CLASSES) and logits.max() == 4.0


def test_a_student_may_have_another_learning_rate(tmp_path):
    """Its name says so; the bodies differ in nothing else."""
    tokenizer().save_pretrained(tmp_path)
    data = DatasetDict(train=Dataset.from_dict({"text": ["a text"]}))
    usual, faster = (
        settings._body(Place(Path("tiny"), student, "clean", 0, tmp_path), data) for student in ("2", "2@4e-4")
    )
    assert (usual.learning_rate, faster.learning_rate) == (2e-4, 4e-4)
    assert usual.layers == faster.layers == 2 and usual.known == faster.known


def test_a_clean_teacher_has_seen_the_clean_rows_alone(monkeypatch, tmp_path):
    """Whatever the labels of the training rows are; it is made once, and says what it thinks of both."""
    monkeypatch.setattr(teaching, "CACHE", tmp_path)
    bench = tiny_bench("flipped40")
    wrong = bench.splits["train"].map(lambda row: {"label": (row["label"] + 1) % CLASSES})
    other = replace(bench, splits=DatasetDict({**bench.splits, "train": wrong}))
    logits = teaching.clean_teacher_logits(bench)
    assert logits.shape == (TRAIN + OTHER, CLASSES)
    (file,) = (tmp_path / "teachers").iterdir()
    file.unlink()
    assert torch.equal(teaching.clean_teacher_logits(other), logits)


def test_teachers_of_other_clean_rows_are_others():
    """Each number of clean rows has its own training rows, and so its own teachers."""
    place = tiny_bench("flipped40").place
    more = replace(place, clean_rows=2 * place.clean_rows)
    assert teaching.teacher_file(place) != teaching.teacher_file(more)
    assert teaching.clean_teacher_file(place) != teaching.clean_teacher_file(more)


def test_a_phase_has_arguments_of_its_own():
    """The trainer of a phase has what all have, and what this one says."""
    phase = phases.Phase(method=phases.always(amal), arguments={"meta_batch_size": 4, "meta_warmup_steps": 2})
    trainer, _, _ = cell.run_phases(tiny_bench("flipped40"), (phase,))
    assert (trainer.args.meta_batch_size, trainer.args.meta_warmup_steps) == (4, 2)
    assert trainer.args.save_strategy == "no"


def test_dev_says_how_sure_a_clean_teacher_may_be(monkeypatch, tmp_path):
    """What it thinks of dev, and the labels there; nothing of the rows that students are trained on."""
    monkeypatch.setattr(teaching, "CACHE", tmp_path)
    asked = []
    monkeypatch.setattr(teaching, "calibrated_temperature", lambda *known: asked.extend(known) or 2.0)
    bench = tiny_bench("flipped40")
    assert teaching.clean_teacher_calibration(bench) == 2.0
    (file,) = (tmp_path / "teachers").iterdir()
    logits, labels = asked
    assert labels == bench.splits["validation"]["label"][:] and len(np.load(file)) == TRAIN + 2 * OTHER
    assert (logits == np.load(file)[-OTHER:]).all()


def test_a_calibrated_teacher_is_read_at_its_temperature(monkeypatch):
    """By Bayes' rule, and where labels count for what it believes of them."""
    monkeypatch.setattr(phases, "clean_teacher_calibration", lambda bench: 2.0)
    monkeypatch.setattr(phases, "clean_teacher_logits", lambda bench: torch.zeros(TRAIN + OTHER, CLASSES))
    bench = tiny_bench("flipped40")
    _, teacher = phases.with_calibrated_teacher(bench)
    assert teacher.calibrated_at == 2.0 and not teacher.has_seen_labels
    logits, labels = torch.tensor([[2.0, 0, 0], [0, 4.0, 0]]), torch.tensor([0, 0])
    signals = Signals(torch.zeros(2, 2), logits, (logits,), {"labels": labels}, Task())
    policy = phases.labels_believed(bench).policy
    belief = (logits / 2).softmax(1)[:, :1]
    torch.testing.assert_close(policy.observe(signals), belief)
    torch.testing.assert_close(BelievedLabels().observe(signals), logits.softmax(1)[:, :1])


@pytest.mark.parametrize(("a_class", "steps"), [(0, 150), (40, 150), (60, 60 * CLASSES)])
def test_a_clean_teacher_has_steps_for_all_its_classes(a_class, steps, monkeypatch, tmp_path):
    """So many a class, and never less than the least of any teacher; the teacher of the labels goes by its rows."""
    monkeypatch.setattr(teaching, "CACHE", tmp_path)
    monkeypatch.setattr(TinyBody, "clean_steps_a_class", a_class)
    taken = []

    def counted(bench, student, rows, steps, *args, **options):
        taken.append(steps)
        return train(bench, student, rows, 1, *args, **options)

    train = teaching.train
    monkeypatch.setattr(teaching, "train", counted)
    teaching.make_clean_teacher(tiny_bench("flipped40"))
    teaching.make_teacher(tiny_bench("flipped40"))
    assert taken == [steps, 150]


def test_gold_loss_correction_finds_how_labels_go_wrong():
    """By the answers of a classifier that says what labels are; a class without clean rows keeps its label."""
    garble = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]])
    classes = torch.tensor([0, 1, 2, 2])
    matrix = correction.corruption_matrix(garble.clamp(min=1e-9).log()[classes], classes)
    torch.testing.assert_close(matrix, garble)
    unseen = correction.corruption_matrix(torch.zeros(2, 3), torch.tensor([0, 1]))
    assert unseen[2].tolist() == [0, 0, 1]


def test_labels_are_corrected_by_the_confusions_of_bayes_rule(monkeypatch):
    """A sure teacher, and labels that are each the next class: right answers cost little, those of the label much; but
    for clean rows, which are known as such.
    """
    bench = tiny_bench("flipped40")
    labels = torch.tensor(bench.splits["train"]["label"][:])
    sure = 20 * torch.nn.functional.one_hot((labels - 1) % CLASSES, CLASSES).double()
    monkeypatch.setattr(phases, "clean_teacher_logits", lambda bench: torch.cat([sure, sure[:OTHER]]))
    monkeypatch.setattr(phases, "clean_teacher_calibration", lambda bench: 1.0)
    (loss,) = phases.corrected_by_bayes(bench)
    rows = bench.rows(phases.ALL)
    trusted = torch.tensor(rows[TRUSTED][:])
    assert trusted.tolist() == [False] * TRAIN + [True] * OTHER
    labels = torch.tensor(rows["label"][:])
    right, as_labelled = (
        loss(
            SimpleNamespace(logits=20 * torch.nn.functional.one_hot(classes, CLASSES).float()),
            {"labels": labels, TRUSTED: trusted},
        )
        for classes in ((labels - 1) % CLASSES, labels)
    )
    assert right[:TRAIN].mean() < as_labelled[:TRAIN].mean()
    assert as_labelled[TRAIN:].max() < 1e-3 < right[TRAIN:].min()


def test_the_test_set_is_not_touched_while_tuning(monkeypatch):
    """A cell at the tuning seed knows dev alone."""
    bench = tiny_bench("flipped40")
    monkeypatch.setattr(cell, "bench_of", lambda place: bench)
    place = Place(Path("tiny"), "tiny", "flipped40", cell.TUNING_SEED)
    record = cell.run_cell(cell.Cell(place, "labels only", "rate 0.3"))
    assert "test" not in record
    assert 0 <= record["dev"] <= 1


def record_of(setting, run, option, seed, dev, test=None):
    found = {"data": "tiny", "student": "frozen", "setting": setting, "run": run, "option": option, "seed": seed}
    found |= {"kind": contenders.contenders(setting)[run].kind, "metric": "accuracy", "dev": dev, "auc": {}}
    return found if test is None else found | {"test": {"accuracy": test}}


def matrix(folder, **chosen):
    options = {
        "data": [Path("tiny")],
        "student": "frozen",
        "settings": ["flipped40"],
        "runs": ["labels only", "amal()"],
        "seeds": [0, 1],
        "tuned_student": None,
        "model": None,
        "workers": 1,
        "minutes": 1.0,
        "results": folder,
        "merge": None,
    }
    return quality.Matrix(argparse.Namespace(**{**options, **chosen}))


def write(folder, *records):
    (folder / "tiny-frozen.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_dev_chooses_among_options_and_finished_cells_are_left_alone(tmp_path):
    """Options first, all of them; then the best one at the seeds that are reported, less what is there."""
    assert [one.option for one in matrix(tmp_path).tuning()] == ["rate 1.0", "rate 0.3"]
    assert [one.run for one in matrix(tmp_path).cells()] == ["amal()", "amal()"]
    tried = [
        record_of("flipped40", "labels only", option, cell.TUNING_SEED, dev)
        for option, dev in (("rate 1.0", 0.5), ("rate 0.3", 0.6))
    ]
    write(tmp_path, *tried, record_of("flipped40", "labels only", "rate 0.3", 1, 0.5, 0.5))
    known = matrix(tmp_path)
    labels = [one for one in known.cells() if one.run == "labels only"]
    assert [(one.option, one.place.seed) for one in labels] == [("rate 0.3", 0), ("rate 0.3", 1)]
    assert [one.place.seed for one in labels if one.key not in known.records] == [0]


def test_a_large_student_may_take_the_options_of_a_small_one(tmp_path):
    """What was best there is taken, and only what was not tried there is tried, there."""
    tried = [
        record_of("flipped40", "labels only", option, cell.TUNING_SEED, dev)
        for option, dev in (("rate 1.0", 0.5), ("rate 0.3", 0.6))
    ]
    large = {"student": "6", "tuned_student": "frozen"}
    assert {one.place.student for one in matrix(tmp_path, **large).tuning()} == {"frozen"}
    write(tmp_path, *tried)
    labels = [one for one in matrix(tmp_path, **large).cells() if one.run == "labels only"]
    assert [(one.option, one.place.student) for one in labels] == [("rate 0.3", "6"), ("rate 0.3", "6")]


def test_no_cell_is_begun_when_the_time_is_up(tmp_path):
    """What is left is left for the next call."""
    late = matrix(tmp_path, minutes=0.0)
    late.go("cells", quality.run_cell, late.cells())
    assert not list(tmp_path.glob("*.jsonl"))


def test_cells_of_another_folder_are_taken_over_once(tmp_path, monkeypatch):
    """However often they are merged; into the file of their data set and student."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.setattr(quality, "RESULTS", here)
    write(there, record_of("flipped40", "amal()", "", 0, 0.5, 0.5), record_of("flipped40", "amal()", "", 1, 0.5, 0.5))
    quality.merge(there)
    quality.merge(there)
    assert len(list(quality.read_records(here))) == 2
    assert [file.name for file in here.iterdir()] == ["tiny-frozen.jsonl"]
