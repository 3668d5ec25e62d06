"""What a recorder keeps of a run."""

import logging

import pytest
import torch

from amal_hf import Trajectory
from amal_hf.recorder import Recorder


@pytest.fixture
def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)


def test_a_trajectory_whose_beginning_is_missing_is_not_recorded(optimizer):
    """Steps that do not follow one another cannot be walked back; the next trajectory is whole again."""
    recorder, counts = Recorder(Trajectory(2), 0, 4), []
    for step in range(3, 8):  # the first trajectory has steps 2 and 3
        recorder.begin_step(optimizer, step)
        counts.append(len(recorder.steps))
    assert counts == [0, 0, 0, 1, 2]
    assert recorder.full


def test_a_trajectory_of_another_number_of_processes_begins_anew(optimizer, caplog):
    """Its batches belong to processes that are no longer there; the warning says so."""
    recorder = Recorder(Trajectory(2), 0, 2)
    recorder.begin_step(optimizer, 0)
    state = recorder.state_dict()
    state["steps"] = [*state["steps"], *state["steps"]]
    resumed = Recorder(Trajectory(2), 0, 2)
    with caplog.at_level(logging.WARNING, logger="amal_hf"):
        resumed.load_state_dict(state)
    assert "written by 2 processes and this run has 1" in caplog.text
    assert not resumed.steps
    resumed.begin_step(optimizer, 1)
    assert not resumed.steps
