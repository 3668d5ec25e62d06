"""A commentary's weights: what they depend on, and that they learn."""

import copy

import numpy as np
import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows

from amal_hf import AMALTrainer, CommentaryNetwork, Distillation, Method, NeumannDirection
from amal_hf.policies.commentary_network import fourier
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.task import Task


def new_network(examples=4):
    network = CommentaryNetwork(torch.eye(examples), labels=3)
    network.reset(Sizes(losses=1, teachers=(), examples=examples), torch.tensor([1.0]))
    return network


def seen(progress=0.5, ids=(0, 1, 2, 3)):
    return Observation(torch.tensor(ids), torch.eye(3)[torch.tensor(ids) % 3], progress)


def test_starts_at_one_and_learns_from_slopes():
    """All weights are one at first; then examples with positive slopes weigh more, and the mean stays at one."""
    network = new_network()
    torch.testing.assert_close(network.weights(seen()).detach(), torch.ones(4, 1))
    for _ in range(100):
        network.update(seen(), torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))
    weights = network.weights(seen()).detach()[:, 0]
    assert weights[[0, 2]].mean() > 1.5 and weights[[1, 3]].max() < 0.5
    assert weights.mean() == pytest.approx(1, abs=0.05)


def test_progress_is_clipped_to_the_run():
    """A longer run must never show the network a progress that it has not learned on."""
    torch.testing.assert_close(fourier(torch.tensor([1.0]), 4), fourier(torch.tensor([39.0]), 4))
    assert not torch.allclose(fourier(torch.tensor([0.2]), 4), fourier(torch.tensor([0.7]), 4))


def test_state_goes_on_where_it_stopped():
    """Adam's moments and the running mean are saved with the network; the dataset's embeddings are not."""
    one, two, slopes = new_network(), new_network(), torch.tensor([[1.0], [-2.0], [0.5], [0.0]])
    one.update(seen(), slopes)
    state = copy.deepcopy(one.state_dict())
    two.load_state_dict(state)
    for network in (one, two):
        network.update(seen(), slopes)
    assert torch.equal(one.weights(seen()), two.weights(seen()))
    assert "embeddings" not in state


def test_trains_with_the_neumann_direction(tmp_path):
    """The whole of algorithm 2 inside the trainer: weights move, and every one is finite."""
    trainer = AMALTrainer(
        model=tiny_bert(),
        args=toy_arguments(tmp_path, meta_warmup_steps=1),
        train_dataset=toy_rows(24),
        meta_dataset=toy_rows(10, 4),
        method=Method("commentary", CommentaryNetwork(torch.randn(24, 8), 3), direction=NeumannDirection()),
    )
    trainer.train()
    weights = torch.tensor(trainer.example_weights()["labels"][:])
    assert torch.isfinite(weights).all() and weights.std() > 0


def test_a_row_without_labels_gets_what_they_have_on_average(tmp_path):
    """Where a teacher alone is followed; several labels at once are refused by name."""
    rows = toy_rows(24).remove_columns("labels")
    trainer = AMALTrainer(
        model=tiny_bert(),
        args=toy_arguments(tmp_path),
        train_dataset=rows,
        meta_dataset=toy_rows(10, 4),
        losses=[Distillation(tiny_bert(1))],
        method=Method("commentary", CommentaryNetwork(torch.randn(24, 8), 3)),
    )
    trainer.train()
    assert np.isfinite(trainer.example_weights()["teacher"][:]).all()
    network = new_network()
    signals = Signals(torch.ones(4, 1), torch.zeros(4, 3), (), {"labels": torch.zeros(4, 3)}, Task())
    with pytest.raises(ValueError, match="CommentaryNetwork is for examples of one class each"):
        network.observe(signals)


def test_bad_input():
    """Embeddings of another dataset are refused before training."""
    with pytest.raises(ValueError, match="got 4 for 5 rows"):
        CommentaryNetwork(torch.eye(4), 3).reset(Sizes(1, (), 5), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="finite matrix"):
        CommentaryNetwork(torch.full((2, 2), float("nan")), 3)
    with pytest.raises(ValueError, match="made for 3 labels, and the student has 2 classes"):
        CommentaryNetwork(torch.eye(4), 3).reset(Sizes(1, (), 4, classes=2), torch.tensor([1.0]))
