"""Methods that learn in passes over the training set, as the official code of AMAL does."""

import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows

from amal_hf import AMALTrainer, amal_as_published
from amal_hf.learner import WeightLearner


class Rows(torch.utils.data.Dataset):
    """Rows that are not of `datasets`."""

    def __init__(self, rows):
        self.rows = list(rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


KINDS = {
    "of datasets": lambda rows: rows,
    "made by a function": lambda rows: rows.with_transform(lambda batch: batch),
    "of one's own": Rows,
}


def run(folder, monkeypatch, rows, **options):
    """A run with one phase; gives its trainer and the sizes of all batches of every meta step."""
    steps = []
    learn = WeightLearner.learn

    def spy(learner, student, batches, meta_batch):
        steps.append([len(batch["labels"]) for batch in batches])
        return learn(learner, student, batches, meta_batch)

    monkeypatch.setattr(WeightLearner, "learn", spy)
    trainer = AMALTrainer(
        tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        toy_arguments(folder, max_steps=-1, num_train_epochs=2, **options),
        train_dataset=rows,
        meta_dataset=toy_rows(8, seed=1),
        method=amal_as_published(teachers=0, phase_epochs=1),
    )
    trainer.train()
    return trainer, steps


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_any_dataset_with_rows_can_be_passed_over(tmp_path, monkeypatch, kind):
    """The same weights come of the same rows, whatever holds them."""
    trainer, steps = run(tmp_path / "this", monkeypatch, kind(toy_rows(10)))
    assert steps == [[4], [4], [2]]
    plain, _ = run(tmp_path / "plain", monkeypatch, toy_rows(10))
    weights = torch.tensor(trainer.example_weights()["labels"][:])
    torch.testing.assert_close(weights, torch.tensor(plain.example_weights()["labels"][:]))
    assert len(weights.unique()) > 1


def test_a_phase_is_cut_as_training_is(tmp_path, monkeypatch):
    """No forward pass is larger than those of training, where memory may be full; weights are those of whole steps."""
    cut, steps = run(
        tmp_path / "cut", monkeypatch, toy_rows(10), gradient_accumulation_steps=2, per_device_train_batch_size=2
    )
    assert steps == [[2, 2], [2, 2], [2]]
    whole, _ = run(tmp_path / "whole", monkeypatch, toy_rows(10))
    weights = [torch.tensor(trainer.example_weights()["labels"][:]) for trainer in (cut, whole)]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)
