"""With losses and method left out, `AMALTrainer` is `transformers.Trainer`, to the last bit."""

import pytest
import torch
from conftest import CHECKPOINTING, tiny_bert, toy_arguments, toy_rows
from peft import LoraConfig, get_peft_model
from transformers import Trainer

from amal_hf import AMALTrainer


def summed_loss(outputs, labels, num_items_in_batch=None):
    """A `compute_loss_func` that is not the model's own loss."""
    return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / (
        num_items_in_batch or len(labels)
    )


def lora():
    return get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))


CASES = {
    "plain": ({}, {}),
    "accumulation": ({"gradient_accumulation_steps": 3}, {}),
    "activation checkpointing": (
        {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}},
        {},
    ),
    "label smoothing": ({"label_smoothing_factor": 0.1}, {}),
    "compute_loss_func": ({"gradient_accumulation_steps": 2}, {"compute_loss_func": summed_loss}),
    "dict of eval sets": (
        {"eval_strategy": "steps", "eval_steps": 2},
        {"eval_dataset": {"a": toy_rows(6, 5), "b": toy_rows(7, 6)}},
    ),
    "PEFT": ({}, {"model": lora}),
}


def run(trainer_class, folder, options, extra):
    """Everything a run leaves behind, but its timings."""
    extra = {**extra, "model": extra.get("model", tiny_bert)()}
    trainer = trainer_class(args=toy_arguments(folder, seed=7, **options), train_dataset=toy_rows(22), **extra)
    trainer.train()
    logs = [
        {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
        for entry in trainer.state.log_history
    ]
    return trainer.model.state_dict(), trainer.optimizer.state_dict()["state"], logs, torch.get_rng_state()


@pytest.mark.parametrize(("options", "extra"), CASES.values(), ids=CASES.keys())
def test_off_is_trainer(tmp_path, options, extra):
    """Weights, optimizer state, logs and random state must be those of `Trainer`.

    Swapping the class must not change anybody's results.
    """
    weights, moments, logs, random = run(Trainer, tmp_path / "a", options, extra)
    our_weights, our_moments, our_logs, our_random = run(AMALTrainer, tmp_path / "b", options, extra)
    assert len(logs) >= 4, "a vacuous comparison"
    assert our_logs == logs
    assert torch.equal(our_random, random)
    assert all(torch.equal(our_weights[name], value) for name, value in weights.items())
    assert all(
        torch.equal(our_moments[i][name], value) for i, state in moments.items() for name, value in state.items()
    )


def test_off_has_no_example_weights(tmp_path):
    """Asking for weights that do not exist is a mistake, not an empty table."""
    trainer = AMALTrainer(model=tiny_bert(), args=toy_arguments(tmp_path), train_dataset=toy_rows(8))
    with pytest.raises(RuntimeError, match="no weights"):
        trainer.example_weights()
