"""What the processes of `test_processes.py` run: cases by name, each leaving what it found in a file."""

import datetime
import os
from contextlib import contextmanager

import accelerate.state
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from conftest import tiny_bert, toy_arguments, toy_rows
from torch.distributed.tensor import DTensor
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from amal_hf import (
    AMALTrainer,
    CommentaryNetwork,
    CrossEntropy,
    Distillation,
    ExampleTable,
    LossNetwork,
    MeanOne,
    NeumannDirection,
    Trajectory,
    amal,
    amal_as_published,
    commentaries,
    deep_interactions,
    learning_to_reweight,
)


GLOBAL_BATCH = 8
METHODS = {
    "table": lambda rows: amal(ExampleTable()),
    "network": lambda rows: amal(LossNetwork(learning_rate=0.05)),
    "reweighting": lambda rows: learning_to_reweight(),
    "mean one": lambda rows: amal(LossNetwork(learning_rate=0.05, normalisation=MeanOne())),
    "neumann": lambda rows: amal(ExampleTable(), direction=NeumannDirection(2, 0.1)),
    "commentary": lambda rows: commentaries(CommentaryNetwork(torch.eye(rows), 3)),
    "published": lambda rows: amal_as_published(phase_epochs=1, repeats=2),
    "trajectory": lambda rows: deep_interactions(trajectory=Trajectory(2)),
}


class Seen(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({name: full(p.grad) for name, p in model.named_parameters()})


def full(tensor):
    """All of a tensor, also of one that is cut over processes."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def bare(name):
    """A parameter's name without what a wrapper puts before it."""
    return name.removeprefix("module.")


def new_trainer(folder, method, rows, accumulation=1, count=1, train=None, model=None, **options):
    """A trainer whose optimizer steps see the same rows however many processes there are."""
    seen = Seen()
    trainer = AMALTrainer(
        model=tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0) if model is None else model,
        args=toy_arguments(
            folder,
            **{
                "per_device_train_batch_size": GLOBAL_BATCH // count,
                "gradient_accumulation_steps": accumulation,
                "train_sampling_strategy": "sequential",
                "num_train_epochs": 2 if accumulation == 1 else 4,
                "max_steps": -1,
                "meta_batch_size": 6,
                "meta_interval": None if method in ("reweighting", "trajectory") else 1,
                "ddp_backend": "gloo" if count > 1 else None,
                **options,
            },
        ),
        train_dataset=toy_rows(rows) if train is None else train,
        meta_dataset=toy_rows(10, 4),
        losses=[CrossEntropy(), Distillation(TableTeacher(rows))],
        method=METHODS[method](rows),
        callbacks=[seen],
    )
    return trainer, seen


class TableTeacher:
    """A table of random logits."""

    def __init__(self, rows):
        self.logits = torch.randn(rows, 3, generator=torch.Generator().manual_seed(9))

    def __call__(self, batch):
        return self.logits[batch["example_id"]]


def watched_slopes(trainer):
    """A list that every update of the policy adds its ids and slopes to."""
    policy, found = trainer.method.policy, []
    inner = policy.update

    def update(observation, slopes):
        found.append((observation.ids.clone(), slopes.clone()))
        inner(observation, slopes)

    policy.update = update
    return found


def run(folder, **case):
    """Train, and give all that must not depend on the number of processes."""
    trainer, seen = new_trainer(folder, **case)
    slopes = watched_slopes(trainer)
    trainer.train()
    return {
        "gradients": [{bare(name): g for name, g in step.items()} for step in seen.gradients],
        "slopes": slopes,
        "weights": weights_of(trainer),
        "parameters": {bare(name): full(p) for name, p in trainer.model.named_parameters()},
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def weights_of(trainer):
    """The recorded weights as a tensor, in the order of ids."""
    frame = trainer.example_weights().to_pandas().sort_values("example_id")
    return torch.from_numpy(frame.to_numpy())


class Stream(IterableDataset):
    """Rows that can only be iterated over."""

    def __init__(self, rows):
        self.rows = toy_rows(rows)

    def __iter__(self):
        return iter({**row, "example_id": number} for number, row in enumerate(self.rows))


def run_stream(folder, rows, dispatch, **case):
    """From a stream, which either the first process reads for all, or every process for itself."""
    options = {"max_steps": 6, "num_train_epochs": 3, "accelerator_config": {"dispatch_batches": dispatch}}
    return run(folder, rows=rows, train=Stream(rows), **options, **case)


def run_sharded(folder, count, **case):
    """The same with FSDP2, the student cut over all processes."""
    if count == 1:
        return run(folder, count=count, **case)
    with fsdp_on_cpus():
        return run(folder, count=count, **sharded_options("FULL_STATE_DICT"), **case)


def sharded_options(state_dict_type):
    """FSDP2; BERT's embeddings would otherwise be cut twice (accelerate 1.15)."""
    config = {"version": 2, "state_dict_type": state_dict_type, "transformer_layer_cls_to_wrap": ["BertLayer"]}
    return {"fsdp": True, "fsdp_config": config}


@contextmanager
def fsdp_on_cpus():
    """Accelerate only offers FSDP on accelerators; torch has it on CPUs too."""
    state = accelerate.state.AcceleratorState
    inner = state.__init__

    def patched(self, *args, fsdp_plugin=None, **kwargs):
        inner(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.__init__ = patched
    try:
        yield
    finally:
        state.__init__ = inner


def work(rank, count, folder, jobs):
    """One process: run all jobs, a function and its arguments by name, and save what each gives."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    if count > 1:
        limit = datetime.timedelta(seconds=60)
        dist.init_process_group("gloo", f"file://{folder}/meet", limit, world_size=count, rank=rank)
    for name, (function, arguments) in jobs.items():
        found = function(folder / name, count=count, **arguments)
        torch.save(found, folder / f"{name}-{rank}.pt")
    if count > 1:
        dist.destroy_process_group()
