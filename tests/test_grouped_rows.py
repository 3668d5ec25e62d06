"""Rows of like length in an order that a run finds again."""

import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows
from torch.utils.data import RandomSampler
from transformers import Trainer, TrainerCallback, default_data_collator
from transformers.trainer_pt_utils import LengthGroupedSampler

from amal_hf import AMALTrainer, CrossEntropy, ExampleTable, amal
from amal_hf.grouped_rows import GroupedRows, group_alike
from amal_hf.random_numbers import generator_of


ROWS, BY_LENGTH = 24, {"train_sampling_strategy": "group_by_length"}


class Stop(TrainerCallback):
    """Ends a run after so many steps."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def ragged_rows(count, seed=0):
    """Of lengths from 3 to 10."""
    return toy_rows(count, seed).map(
        lambda row, n: {name: row[name][: 3 + n % 8] for name in ("input_ids", "attention_mask")}, with_indices=True
    )


def filled_up(rows):
    """A batch as long as its longest row."""
    longest = max(len(row["input_ids"]) for row in rows)
    return default_data_collator(
        [
            {
                name: value + [0] * (longest - len(value)) if isinstance(value, list) else value
                for name, value in row.items()
            }
            for row in rows
        ]
    )


def new_trainer(folder, kind=AMALTrainer, callbacks=(), own=None, **options):
    own = {"losses": [CrossEntropy()], "method": amal(ExampleTable())} if own is None else own
    return kind(
        model=tiny_bert().double(),
        args=toy_arguments(folder, **{"max_steps": 10, **BY_LENGTH, **options}),
        train_dataset=ragged_rows(ROWS),
        data_collator=filled_up,
        callbacks=[*callbacks],
        **({"meta_dataset": ragged_rows(10, 4)} if own else {}),
        **own,
    )


def parameters_of(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("options", [{}, {"dataloader_drop_last": True, "per_device_train_batch_size": 5}])
@pytest.mark.parametrize("step", [4, 7])
def test_an_interrupted_run_equals_the_uninterrupted_one(tmp_path, step, options):
    """Also within the second pass, where `Trainer` alone would go on with another order: to the last bit."""
    whole = new_trainer(tmp_path / "whole", **options)
    whole.train()
    cut = new_trainer(tmp_path / "cut", callbacks=[Stop(step)], save_strategy="steps", save_steps=step, **options)
    cut.train()
    resumed = new_trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(parameters_of(whole), parameters_of(resumed))
    ours, theirs = (run.example_weights().to_pandas().sort_values("example_id") for run in (whole, resumed))
    assert ours.equals(theirs)


def test_every_pass_has_an_order_of_its_own_whatever_else_draws(tmp_path):
    """By seed and pass alone, so that processes have the same one; and each row once, like lengths together."""
    trainer = new_trainer(tmp_path)
    order = trainer.get_train_dataloader().batch_sampler.sampler
    passes = []
    for step in (0, 5, 6):
        trainer.state.global_step = step
        torch.manual_seed(step)
        passes.append([*order])
        assert len(order) == len(passes[-1]) == len({*passes[-1]}) == ROWS
    assert passes[0] == passes[1] != passes[2]
    rows = ragged_rows(ROWS)["input_ids"]
    spread = [
        max(lengths) - min(lengths) for lengths in ([len(rows[n]) for n in passes[2][k : k + 4]] for k in (8, 12))
    ]
    assert max(spread) < 7


def test_other_samplers_and_the_plain_trainer_are_left_alone(tmp_path):
    """Where nothing is mixed, the order is that of `Trainer`."""
    random = RandomSampler([1, 2])
    assert group_alike(random, lambda: generator_of(0)) is random
    assert isinstance(group_alike(LengthGroupedSampler(2, lengths=[1, 2]), lambda: generator_of(0)), GroupedRows)
    found = []
    for kind in (AMALTrainer, Trainer):
        trainer = new_trainer(tmp_path / kind.__name__, kind, own={})
        trainer.train()
        assert isinstance(trainer.get_train_dataloader().batch_sampler.sampler, LengthGroupedSampler)
        found.append(parameters_of(trainer))
    assert torch.equal(*found)
