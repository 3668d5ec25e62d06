"""At the end of training figures and, if asked for, the report page lie beside the student; at no price."""

import pytest
from conftest import tiny_bert, toy_arguments, toy_rows
from toy_run import toy_record

from amal_hf import (
    AMALTrainer,
    AnnealedWeights,
    CrossEntropy,
    FixedWeights,
    LabelBlend,
    Method,
    amal,
    commentaries,
    example_notes,
    run_figures,
    run_outputs,
)
from amal_hf.card_facts import CardDetails
from amal_hf.policies.store import RowStore
from amal_hf.run_facts import gather
from amal_hf.run_record import record_of


pytest.importorskip("matplotlib")


def trainer(folder, method=True, **options):
    return AMALTrainer(
        model=tiny_bert(),
        args=toy_arguments(folder, **{"write_figures": True, **options}),
        train_dataset=toy_rows(24),
        meta_dataset=toy_rows(10, 4),
        losses=[CrossEntropy(), other],
        method=amal() if method else None,
    )


def other(outputs, batch):
    """A second loss."""
    return outputs.logits.square().mean(1)


def test_figures_lie_in_the_output_folder(tmp_path):
    """Those that the data allow; no page, since it holds the training examples."""
    trainer(tmp_path).train()
    assert {file.name for file in tmp_path.iterdir()} == {"figures"}
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {"weights.png", "weight_against_loss.png"}


@pytest.mark.parametrize(("method", "options"), [(False, {}), (True, {"write_figures": False})])
def test_no_figures_of_fixed_weights_or_where_switched_off(tmp_path, method, options):
    """A band of no width shows nothing."""
    trainer(tmp_path, method, **options).train()
    assert not list(tmp_path.rglob("*.png"))


def test_the_page_is_written_if_asked_for(tmp_path):
    """By an argument at the end of training, or by one call with results and a path of one's own."""
    run = trainer(tmp_path, write_figures=False, write_report=True)
    run.train()
    assert "Training examples" in (tmp_path / "report.html").read_text(encoding="utf-8")
    path = run.write_report(str(tmp_path / "other" / "page.html"), [{"name": "this one", "test": 0.5}])
    assert "this one" in (tmp_path / "other" / "page.html").read_text(encoding="utf-8")
    assert path == str(tmp_path / "other" / "page.html")


def test_weights_in_a_file_are_read_where_they_stand(tmp_path):
    """Figures, page and card are as of weights in memory, and leave no copy of all weights behind, one for each."""
    found, folder = [], tmp_path / "weights"
    for place in (None, str(folder)):
        run = trainer(tmp_path / f"in {place and 'a file'}", write_report=True, weights_dir=place)
        run.train()
        record, facts = record_of(run), gather(run, CardDetails(shown_examples=2))
        found.append((record.ids, record.weights["labels"].tolist(), facts.weights, facts.lowest, facts.highest))
    assert found[0] == found[1]
    assert not list(folder.iterdir())


def test_of_a_very_large_set_no_examples_are_shown(tmp_path, monkeypatch):
    """All that is known of a hundred million is 14 GB, and would end the process before the student is saved: their
    weights and texts are not even read.
    """
    monkeypatch.setattr(example_notes, "IN_MEMORY", 10)
    monkeypatch.setattr(RowStore, "contents", None)
    monkeypatch.setattr(run_outputs, "texts_of", None)
    trainer(tmp_path, write_report=True).train()
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["weights.png"]
    assert '"ids":[]' in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_matplotlib_there_is_one_notice(tmp_path, monkeypatch, caplog):
    """It is an extra: training ends as always, and the page is written without pictures."""
    monkeypatch.setattr(run_figures, "find_spec", lambda name: None)
    trainer(tmp_path, write_report=True).train()
    assert [r.message for r in caplog.records if "amal_hf[plots]" in r.message].__len__() == 1
    assert not (tmp_path / "figures").exists()
    assert "<figure>" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_failure_does_not_cost_the_training(tmp_path, monkeypatch, caplog):
    """A full disk at the end of a long run must not take the trained student with it."""

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(run_outputs, "write_figures", full)
    assert trainer(tmp_path).train().global_step == 6
    assert "Training is complete" in caplog.text and "No space left" in caplog.text


def test_a_call_without_losses_says_so(tmp_path):
    """There is nothing to show of plain training."""
    plain = AMALTrainer(model=tiny_bert(), args=toy_arguments(tmp_path), train_dataset=toy_rows(8))
    with pytest.raises(RuntimeError, match="neither losses nor a method"):
        plain.write_report()


def test_changes_of_batches_are_drawn_and_fixed_weights_are_not(tmp_path):
    """Also where weights are fixed; of an earlier run nothing is left, its pictures of texts included."""
    old = tmp_path / "figures" / "data" / "old.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    names = {}
    for method in (commentaries(LabelBlend(3)), Method("fixed", FixedWeights()), Method("a", AnnealedWeights([1.0]))):
        run = AMALTrainer(
            tiny_bert(),
            toy_arguments(tmp_path, write_figures=True, max_steps=2, logging_steps=1, meta_warmup_steps=0),
            train_dataset=toy_rows(12),
            meta_dataset=toy_rows(8, 1),
            losses=[CrossEntropy()],
            method=method,
        )
        run.train()
        names[method.name] = {file.stem for file in (tmp_path / "figures").rglob("*.png")}
    assert names["commentaries"] == {"blends"} and names["fixed"] == set() and "weights" in names["a"]


def test_all_pictures_of_a_full_record(tmp_path):
    """A run with a teacher, rules and a known truth has them all; those with texts lie apart, not to be published."""
    record = toy_record()
    record.shares = [[0.5, 1.0, 1.0], [1.0, 0.5, 1.0], [1.0, 1.0, 0.5]]
    record.masked = [(["a", "b"], [0.1, 1.0])]
    files = run_figures.write_figures(record, tmp_path)
    names = ["weights", "weight_against_loss", "weight_against_teacher", "clean_against_flipped", "rules", "blends"]
    assert files == [tmp_path / f"{name}.png" for name in (*names, "data/masks")]
    assert all(file.stat().st_size > 5000 for file in files[:-1])
    captions = [picture.caption for picture in run_figures.pictures(record)]
    assert len(set(captions)) == 7


def test_teachers_of_any_name_have_a_picture_each(tmp_path):
    """Of names that a file cannot have, that differ in what it leaves out or in capitals alone, or that are long."""
    record = toy_record(60)
    teachers = ("a/b", "a_b", "A:b", "\U0001f600" * 300)
    record.teachers = dict.fromkeys(teachers, record.teachers["teacher"])
    files = run_figures.write_figures(record, tmp_path)
    assert len({file.name.lower() for file in files if file.is_file()}) == 8
    assert all(len(file.name.encode()) < 256 for file in files)
    assert [file.name for file in files[2:5]] == [f"weight_against_{n}.png" for n in ("a_b", "a_b_2", "A_b_2_2")]


def test_pictures_leave_out_what_was_never_seen():
    """A loss without any weight, and a teacher without logits, must not stop the other pictures."""
    record = toy_record()
    record.weights["teacher"][:] = float("nan")
    record.teachers["teacher"][:] = float("nan")
    record.truth = None
    names = [picture.name for picture in run_figures.pictures(record)]
    assert names == ["weights", "weight_against_loss", "rules"]
    record.rules, record.log_history = None, []
    record.weights = {}
    assert list(run_figures.pictures(record)) == []
