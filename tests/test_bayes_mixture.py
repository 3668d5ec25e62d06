"""`bayes_mixture()`: every label beside a teacher that has not seen it, with the share that Bayes' rule gives it."""

import datasets
import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows
from process_cases import Stream
from test_token_mixture import of_tokens, tagged_rows, tagger

from amal_hf import AMALTrainer, CardDetails, CrossEntropy, Distillation, bayes_mixture, label_posterior
from amal_hf.noisy_labels import label_share
from amal_hf.policies.bayes_share import MOST_CLASSES, BayesShare
from amal_hf.run_facts import gather


LOGITS = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
"""Of a teacher that sees the row's number."""


def mixed(folder, losses=None, rows=None, model=None, **options):
    return AMALTrainer(
        model=tiny_bert() if model is None else model,
        args=toy_arguments(folder, **{"max_steps": 4, **options}),
        train_dataset=toy_rows(16) if rows is None else rows,
        losses=[CrossEntropy(), teacher()] if losses is None else losses,
        method=bayes_mixture(),
    )


def teacher(**options):
    return Distillation(lambda batch: LOGITS[batch["example_id"]], **{"has_seen_labels": False, **options})


def partly_labelled():
    rows = toy_rows(16)
    return rows.remove_columns("labels").add_column("labels", rows["labels"][:15] + [-100])


@pytest.mark.parametrize("teacher_first", [False, True])
def test_a_run_weighs_label_and_teacher_by_it(tmp_path, teacher_first):
    """From the first step on and without a meta set, whatever the order of the losses and a warm-up meant for others;
    log and description say what was found; an example without a label follows its teacher.
    """
    rows = partly_labelled()
    losses = [teacher(), CrossEntropy()] if teacher_first else [CrossEntropy(), teacher()]
    trainer = mixed(tmp_path, losses, rows, meta_warmup_steps=2)
    trainer.train()
    labels = torch.tensor(rows["labels"][:])
    found, weights = label_posterior(LOGITS, labels), trainer.example_weights().with_format("torch")
    beliefs = (LOGITS.double() / found.temperature).softmax(1)
    share = label_share(beliefs[:15], found.confusions, labels[:15]).float()
    torch.testing.assert_close(weights["labels"][:15], share)
    torch.testing.assert_close(weights["teacher"][:15], 1 - share)
    assert weights["teacher"][15] == 1 and share.min() < share.max()
    assert trainer.state.log_history[0]["wrong_labels_by_teacher"] == pytest.approx(found.wrong)
    assert trainer.method.policy.describe() == f"BayesMixture, teacher at temperature {found.temperature:g}"


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    """What it was told is in the checkpoint: the teacher is not asked again."""
    whole = mixed(tmp_path / "whole", save_strategy="steps", save_steps=2)
    whole.train()
    resumed = mixed(tmp_path / "resumed")
    resumed.mixture.show_labels = pytest.fail
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert ours.equal(theirs)


def test_tokens_have_shares_of_their_own(tmp_path):
    """Where weights are those of tokens: as many wrong labels as planted are found, and these count for nothing."""
    rows = tagged_rows(40, wrong=0.4)
    flipped = torch.tensor(rows["flipped"][:])[:, 1:]
    sure = 3 * torch.nn.functional.one_hot(torch.tensor(rows["input_ids"][:]) % 3, 3).float()
    losses = [CrossEntropy(), Distillation(lambda batch: sure[batch["example_id"]], has_seen_labels=False)]
    trainer = AMALTrainer(
        model=tagger(),
        args=toy_arguments(tmp_path, max_steps=2),
        train_dataset=rows.remove_columns("flipped"),
        losses=losses,
        method=of_tokens(bayes_mixture()),
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["wrong_labels_by_teacher"] == pytest.approx(float(flipped.float().mean()), abs=0.02)
    assert log["weight_labels_p25"] < 0.01 < 0.5 < log["weight_labels_p50"]


def test_whether_it_was_told_is_asked_once(tmp_path, monkeypatch):
    """When labels would be shown, and at the first step: a GPU is waited for at each such question."""
    asked = []
    monkeypatch.setattr(BayesShare, "rows_wanted", property(lambda self: asked.append(self) or 0))
    mixed(tmp_path).train()
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([CrossEntropy()], "is for two losses"),
        ([CrossEntropy(), CrossEntropy("other", column="labels")], "no teacher that has not seen the labels"),
        ([CrossEntropy(), teacher(has_seen_labels=True)], "no teacher that has not seen the labels"),
        ([CrossEntropy(), teacher(), teacher(has_seen_labels=True, name="other")], "is for two losses.*, a teacher"),
    ],
    ids=["labels alone", "no teacher", "a teacher of the labels", "one loss more"],
)
def test_other_losses_are_refused(tmp_path, losses, words):
    """When the trainer is made, before a teacher is asked."""
    with pytest.raises(ValueError, match=words):
        mixed(tmp_path, losses)


def test_too_many_classes_are_refused(tmp_path):
    """How they are confused could not be counted in time."""
    with pytest.raises(ValueError, match=f"2 to {MOST_CLASSES} classes; got .* {MOST_CLASSES + 1} classes"):
        mixed(tmp_path, model=tiny_bert(num_labels=MOST_CLASSES + 1))


def soft_labels():
    rows = toy_rows(16)
    return rows.map(lambda row: {"labels": [0.2 + 0.4 * (row["labels"] == c) for c in range(3)]})


@pytest.mark.parametrize(
    "rows", [Stream(16), soft_labels(), datasets.Dataset.from_dict({**toy_rows(16)[:], "labels": [-100] * 16})]
)
def test_what_says_nothing_of_labels_is_refused(tmp_path, rows):
    """At the first step: rows that cannot be drawn, labels that are not one class each, or none."""
    trainer = mixed(tmp_path, rows=rows, model=tiny_bert(problem_type="single_label_classification"))
    with pytest.raises(ValueError, match=r"was shown no labels.*Use amal\(\)"):
        trainer.train()


def test_its_source_is_cited(tmp_path):
    """In the card, beside that of distillation."""
    trainer = mixed(tmp_path, max_steps=1)
    trainer.train()
    assert any(
        "Learning From Noisy Singly-labeled Data" in entry for entry in gather(trainer, CardDetails()).citations
    )
