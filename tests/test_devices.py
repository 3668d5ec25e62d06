"""What is learned on a GPU is what is learned on a CPU; nothing asks for what Apple's lack, or waits without need."""

import copy

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from conftest import tiny_bert, toy_arguments, toy_rows
from elsewhere import PLACE, Computer

from amal_hf import (
    AMALTrainer,
    CrossEntropy,
    Distillation,
    ExampleTable,
    Trajectory,
    amal,
    deep_interactions,
)
from amal_hf.latency import hardware_name
from amal_hf.random_numbers import put_back_on, randomness, set_randomness
from amal_hf.undisturbed import undisturbed


METHODS = {
    "fixed": lambda: None,
    "network": amal,
    "table": lambda: amal(ExampleTable()),
    "trajectory": lambda: deep_interactions(trajectory=Trajectory(2)),
    "trajectory, fresh moments": lambda: deep_interactions(trajectory=Trajectory(2, frozen_second_moment=False)),
}


@pytest.fixture
def computer(monkeypatch):
    """One that has such a GPU; afterwards Accelerate knows of none. Dropout there is drawn here."""
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device: torch.set_rng_state(state))
    kept = [(state, copy.copy(state._shared_state)) for state in (PartialState, AcceleratorState)]
    yield Computer()
    for state, values in kept:
        state._shared_state.clear()
        state._shared_state.update(values)


def new_trainer(folder, method, dtype=torch.float32, **options):
    rows = toy_rows(20)
    scores = torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(0))
    return AMALTrainer(
        model=tiny_bert(num_hidden_layers=1, attn_implementation="eager").to(dtype),
        args=toy_arguments(folder, max_steps=5, logging_steps=5, **options),
        train_dataset=rows.add_column("scores", scores.tolist()),
        meta_dataset=None if method is None else toy_rows(40, 4),
        losses=[CrossEntropy(), Distillation(lambda batch: batch["scores"], columns="scores")],
        method=method,
    )


def trained_there(computer, trainer):
    with computer:
        computer.move(trainer)
        computer.waits.clear()
        trainer.train()
    return [p.held for p in trainer.model.parameters()]


@pytest.mark.parametrize("name", METHODS)
def test_a_run_there_is_that_of_the_cpu(tmp_path, computer, name):
    """To the last bit, as it is made of the same numbers here; of each of many parameters nobody asks how often it was
    moved, which a fused optimizer counts there.
    """
    here = new_trainer(tmp_path, METHODS[name]())
    here.train()
    there = trained_there(computer, new_trainer(tmp_path, METHODS[name]()))
    for ours, theirs in zip(there, here.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert sum(count for name, count in computer.waits.items() if name.startswith("adjoints.")) < len(there)


def test_a_student_in_half_precision(tmp_path, computer, monkeypatch):
    """Its parameters are moved from points between what they can be, which takes their exponents."""
    monkeypatch.setattr(torch, "Generator", lambda device="cpu", make=torch.Generator: make())
    trained_there(computer, new_trainer(tmp_path, amal(), torch.bfloat16))


def test_dropout_of_a_gpu_is_put_back_and_drawn_again(monkeypatch):
    """By the generator of the student's own device, whatever its kind; those of other GPUs are left alone."""
    own = torch.Generator().manual_seed(0)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: own.get_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device: own.set_state(state))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # asked for a state they would be looked for

    def masks():
        return [*torch.rand(2).tolist(), *torch.rand(2, generator=own).tolist()]

    before = randomness(PLACE)
    first = masks()
    with put_back_on(PLACE):
        set_randomness(before, PLACE)
        assert masks() == first
    then = masks()
    set_randomness(before, PLACE)
    assert masks() == first and masks() == then
    with undisturbed(tiny_bert(num_hidden_layers=1)):
        pass


def test_a_measurement_says_that_it_was_made_there():
    """And not on the CPU beside it."""
    assert hardware_name(PLACE).endswith("GPU")
