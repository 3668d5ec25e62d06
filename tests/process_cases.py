"""What the processes of `test_processes.py` run: jobs by name, each leaving what it found in a file."""

import datetime
import gc
import os
import sys
import traceback
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import accelerate.state
import datasets
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from conftest import tiny_bert, toy_arguments, toy_rows
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.utils.data import IterableDataset
from transformers import BertForTokenClassification, TrainerCallback

from amal_hf import (
    AboveAverage,
    AMALTrainer,
    CrossEntropy,
    Delayed,
    Distillation,
    ExampleTable,
    LastLayer,
    LossNetwork,
    MeanOne,
    Method,
    NeumannDirection,
    SmallLoss,
    StateNetwork,
    Trajectory,
    amal,
    amal_as_published,
    bayes_mixture,
    deep_interactions,
    label_weights,
    learning_to_reweight,
)
from amal_hf.cage import Cage
from amal_hf.spear import Spear


GLOBAL_BATCH = 8
rows_of = cache(toy_rows)
METHODS = {
    "table": lambda: amal(ExampleTable()),
    "network": lambda: amal(LossNetwork(learning_rate=0.05)),
    "reweighting": learning_to_reweight,
    "independent": lambda: amal(LossNetwork(learning_rate=0.5)),
    "bayes mixture": bayes_mixture,
    "mean one": lambda: amal(LossNetwork(learning_rate=0.05, normalisation=MeanOne())),
    "above average": lambda: amal(LossNetwork(learning_rate=0.05, normalisation=AboveAverage())),
    "neumann": lambda: amal(ExampleTable(), direction=NeumannDirection(2, 0.1)),
    "last layer": lambda: amal(LossNetwork(learning_rate=0.05), tangent=LastLayer()),
    "published": lambda: amal_as_published(phase_epochs=1, repeats=2),
    "trajectory": lambda: deep_interactions(trajectory=Trajectory(2)),
    "reweighting, window": lambda: replace(learning_to_reweight(), window=2),
    "memory": lambda: deep_interactions(StateNetwork((), learning_rate=0.05, likelihoods=True, memory=True), window=3),
    "delayed": lambda: deep_interactions(
        Delayed(StateNetwork((), learning_rate=0.05, normalisation=AboveAverage(), memory=True), 0.5), window=2
    ),
    "drawn": lambda: amal(Delayed(ExampleTable(), 0.5, draw=True)),
    "drawn anew": lambda: amal(
        Delayed(StateNetwork((), learning_rate=0.05, normalisation=AboveAverage()), 0.5, draw=True)
    ),
    "selection": lambda: Method("small_loss", SmallLoss(0.4, 0.3, among=12)),
    "tokens": lambda: replace(amal(LossNetwork(learning_rate=0.05)), per_token=True),
}


UNSEEN = ("independent", "bayes mixture")
"""Methods whose teacher has not seen the labels."""


class TableTeacher:
    """A table of random logits."""

    def __init__(self, rows):
        self.logits = torch.randn(rows, 3, generator=torch.Generator().manual_seed(9))

    def __call__(self, batch):
        return self.logits[batch["example_id"]]


class Stream(IterableDataset):
    """Rows that can only be iterated over."""

    def __init__(self, rows):
        self.rows = toy_rows(rows)

    def __iter__(self):
        return iter({**row, "example_id": number} for number, row in enumerate(self.rows))


class Seen(TrainerCallback):
    """Keeps the gradients of every optimizer step, and the weights that a run begins with; may stop it."""

    def __init__(self, stop=None):
        self.stop = stop
        self.trainer = None
        self.first_weights = None
        self.gradients = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.first_weights = weights_of(self.trainer)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(torch.cat([whole(p.grad).flatten() for p in model.parameters()]))

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.stop


def whole(tensor):
    """All of a tensor, also of one that is cut over processes."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def weights_of(trainer):
    """The recorded weights as a tensor, in the order of ids."""
    frame = trainer.example_weights().to_pandas().sort_values("example_id")
    return torch.from_numpy(frame.to_numpy(dtype="float64"))


def parameters_of(trainer):
    return torch.cat([whole(p).flatten() for p in trainer.model.parameters()])


def new_trainer(
    folder,
    count,
    method,
    rows,
    accumulation=1,
    train=None,
    stop=None,
    losses=None,
    model=None,
    meta=None,
    in_file=False,
    **options,
):
    """A trainer whose optimizer steps see the same rows however many processes there are."""
    defaults = {
        "per_device_train_batch_size": GLOBAL_BATCH // count,
        "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1 if accumulation == 1 else 2,
        "max_steps": -1,
        "meta_batch_size": 6,
        "meta_interval": None if METHODS[method]().policy.interval == 1 else 1,
        "ddp_backend": "gloo" if count > 1 else None,
        "weights_dir": str(folder / "rows") if in_file else None,
    }
    seen = Seen(stop)
    seen.trainer = AMALTrainer(
        model=without_dropout() if model is None else model,
        args=toy_arguments(folder, **{**defaults, **options}),
        train_dataset=rows_of(rows) if train is None else train,
        meta_dataset=(rows_of(10, 4) if meta is None else meta) if METHODS[method]().learns else None,
        losses=losses or [CrossEntropy(), Distillation(TableTeacher(rows), has_seen_labels=method not in UNSEEN)],
        method=METHODS[method](),
        callbacks=[seen],
    )
    return seen


def without_dropout(**options):
    return tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **options)


def watch_updates(trainer, found):
    """Add ids and slopes of every update of the policy to a list, and whether the student was left alone."""
    policy, take_step = trainer.method.policy, trainer._meta_step
    update = policy.update

    def watched_update(observation, slopes):
        found["slopes"].append((observation.ids.clone(), slopes.clone()))
        update(observation, slopes)

    def watched_step(*args, **options):
        before = [(p.to_local() if isinstance(p, DTensor) else p).detach().clone() for p in trainer.model.parameters()]
        result = take_step(*args, **options)
        after = [p.to_local() if isinstance(p, DTensor) else p for p in trainer.model.parameters()]
        found["untouched"] &= all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        found["untouched"] &= all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())
        return result

    policy.update, trainer._meta_step = watched_update, watched_step


def train(folder, count, sharded=None, **case):
    """Train, and give all that must not depend on the number of processes.

    Args:
        sharded: how FSDP2 saves the student that it has cut over the processes; `None` for whole students.
    """
    cut = sharded if count > 1 else None
    with fsdp_on_cpus() if cut else nullcontext():
        seen = new_trainer(folder, count, **case, **(fsdp_options(cut) if cut else {}))
        found = {"slopes": [], "untouched": True, "learns": seen.trainer.method.learns}
        watch_updates(seen.trainer, found)
        seen.trainer.train(resume_from_checkpoint=case.get("resume"))
        found |= {"gradients": seen.gradients, "weights": weights_of(seen.trainer)}
        found |= {"parameters": parameters_of(seen.trainer)}
        logs = seen.trainer.state.log_history
        found |= {"wrong labels": [entry["wrong_labels"] for entry in logs if "wrong_labels" in entry]}
        return found | {"losses": [entry["loss"] for entry in logs if "loss" in entry]}


def train_on_labels(folder, count):
    """With clean rows enough for a probe, which tells how many labels are wrong, and so how far to reweigh."""
    rows = telling_rows(22).map(lambda row, number: {"labels": 0 if number == 1 else row["labels"]}, with_indices=True)
    return train(folder, count, method="network", rows=22, train=rows, losses=[CrossEntropy()], meta=telling_rows(60))


def telling_rows(count):
    """Every token tells the class, so that states do."""
    labels = [number % 3 for number in range(count)]
    ids = [[5 + label] * 6 for label in labels]
    return datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 6] * count, "labels": labels})


def train_in_bf16(folder, count, **case):
    """An fp32 student under bf16 autocast."""
    return train(folder, count, model=without_dropout().float(), bf16=True, **case)


def train_on_stream(folder, count, rows, dispatch, **case):
    """From a stream, which either the first process reads for all, or every process for itself."""
    options = {"max_steps": 6, "accelerator_config": {"dispatch_batches": dispatch}}
    return train(folder, count, rows=rows, train=Stream(rows), **options, **case)


def train_on_shards(folder, count, rows, **case):
    """From a stream with a shard for each process, which is dealt out by shards."""
    stream = datasets.IterableDataset.from_generator(
        shard_of_rows, gen_kwargs={"parts": list(range(count)), "count": count, "rows": rows}
    )
    options = {"max_steps": 6, "accelerator_config": {"dispatch_batches": False}}
    return train(folder, count, rows=rows, train=stream, **options, **case)


def shard_of_rows(parts, count, rows):
    """What some of the processes take of every batch."""
    given, taken = toy_rows(rows), GLOBAL_BATCH // count
    for part in parts:
        for start in range(part * taken, rows, GLOBAL_BATCH):
            for number in range(start, start + taken):
                yield {**given[number], "example_id": number}


def resume(folder, count, sharded=None, **case):
    """A run as a whole, and one that is cut off after its second step and goes on from its checkpoint."""
    cut = sharded if count > 1 else None
    with fsdp_on_cpus() if cut else nullcontext():
        options = {**case, **(fsdp_options(cut) if cut else {})}
        whole_run = new_trainer(folder / "whole", count, **options)
        whole_run.trainer.train()
        interrupted = new_trainer(folder / "cut", count, stop=2, **options, save_strategy="steps", save_steps=2)
        interrupted.trainer.train()
        resumed = new_trainer(folder / "cut", count, **options)
        resumed.trainer.train(resume_from_checkpoint=True)
        return {
            "saved": weights_of(interrupted.trainer),
            "loaded": resumed.first_weights,
            "whole": [parameters_of(whole_run.trainer), weights_of(whole_run.trainer), *whole_run.gradients[2:]],
            "resumed": [parameters_of(resumed.trainer), weights_of(resumed.trainer), *resumed.gradients],
        }


def go_on(folder, count, other, sharded=None, **case):
    """Go on from the checkpoint of another number of processes: the weights that this begins with."""
    cut = sharded if count > 1 else None
    with fsdp_on_cpus() if cut else nullcontext():
        seen = new_trainer(folder, count, stop=3, **case, **(fsdp_options(cut) if cut else {}))
        seen.trainer.train(resume_from_checkpoint=str(other / "cut" / "checkpoint-2"))
        return {"loaded": seen.first_weights, "parameters": parameters_of(seen.trainer)}


class Leave(TrainerCallback):
    """The last process ends without a word after the third step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and dist.get_rank() > 0:
            os._exit(0)


def lose_one(folder, count, **case):
    """What the others have to say when a process is gone."""
    seen = new_trainer(folder, count, save_strategy="steps", save_steps=2, **case)
    seen.trainer.add_callback(Leave())
    try:
        seen.trainer.train()
    except RuntimeError as error:
        return {"said": "\n".join([str(error), *error.__notes__])}


def train_on_rules(folder, count):
    """With a graphical model of rules that is trained beside the student."""
    votes = torch.randint(0, 2, (22, 3), generator=torch.Generator().manual_seed(3)) * (torch.arange(3) + 1) - 1
    rows = rows_of(22).add_column("weak_labels", torch.where(votes >= 0, torch.arange(3), -1).tolist())
    spear = Spear(Cage([0, 1, 2], 3))
    found = train(folder, count, method="table", rows=22, accumulation=3, train=rows, losses=[CrossEntropy(), spear])
    return found | {"cage": torch.cat([p.detach().flatten() for p in spear.cage.parameters()])}


def train_on_tokens(folder, count):
    """With weights of tokens."""
    train_rows, meta = (
        rows.remove_columns("labels").add_column("labels", [[i % 3 for i in ids] for ids in rows["input_ids"]])
        for rows in (rows_of(22), rows_of(10, 4))
    )
    model, losses = without_dropout(head=BertForTokenClassification), [CrossEntropy(), second_loss]
    return train(folder, count, method="tokens", rows=22, train=train_rows, meta=meta, model=model, losses=losses)


def second_loss(outputs, batch):
    """How large the logits are."""
    return outputs.logits.square().flatten(1).mean(1)


def weigh_labels(folder, count):
    """Weights over features, before a run whose arguments were made earlier."""
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(300) % 3
    features = torch.eye(3)[true] + 0.1 * torch.randn(300, 3, generator=generator)
    wrong = torch.rand(260, generator=generator) < 0.4
    labels = (true[:260] + wrong) % 3
    args = toy_arguments(folder, ddp_backend="gloo" if count > 1 else None)
    weights = label_weights(features[:260], labels, features[260:], true[260:]).weights
    trainer = AMALTrainer(model=without_dropout(), args=args, train_dataset=rows_of(22), losses=[CrossEntropy()])
    trainer.train()
    return {"weights": weights, "wrong": wrong, "parameters": parameters_of(trainer)}


def sharded_teacher(folder, count):
    """Training beside a teacher of its own, which FSDP2 cuts over the processes as well."""
    teacher = tiny_bert(seed=5)
    found = train(
        folder, count, "FULL_STATE_DICT", method="table", rows=22, losses=[CrossEntropy(), Distillation(teacher)]
    )
    return found | {"teacher_is_cut": any(isinstance(p, DTensor) for p in teacher.parameters())}


def saved_whole(folder, count):
    """A student whose checkpoints stay cut over the processes, saved as it is published."""
    with fsdp_on_cpus():
        seen = new_trainer(folder, count, method="table", rows=22, **fsdp_options("SHARDED_STATE_DICT"))
        seen.trainer.train()
        with seen.trainer._gathered():
            seen.trainer.save_model(str(folder / "whole"))
        dist.barrier()
        saved = load_file(folder / "whole" / "model.safetensors")
        parts = [saved[name].flatten() for name, _ in seen.trainer.model.named_parameters()]
        kept = seen.trainer.accelerator.state.fsdp_plugin.state_dict_type.name
        return {"parameters": parameters_of(seen.trainer), "saved": torch.cat(parts), "checkpoints": kept}


def fsdp_options(state_dict_type):
    """FSDP2; with the class named, as Accelerate 1.15 would cut BERT's embeddings twice."""
    config = {"version": 2, "state_dict_type": state_dict_type, "transformer_layer_cls_to_wrap": ["BertLayer"]}
    return {"fsdp": True, "fsdp_config": config}


@contextmanager
def fsdp_on_cpus():
    """Accelerate offers FSDP on accelerators only; torch has it on CPUs too."""
    state = accelerate.state.AcceleratorState
    inner = state.__init__

    def patched(self, *args, fsdp_plugin=None, **kwargs):
        inner(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.__init__ = patched
    try:
        yield
    finally:
        state.__init__ = inner


def work(rank, count, folder, jobs):
    """One process: run all jobs, a function and its arguments by name; save what each gives, or what went wrong."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    gc.freeze()  # Accelerate collects garbage before every run; what was imported is none
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # so that rounding is no excuse
    if count > 1:
        limit = datetime.timedelta(seconds=300)  # a stalled machine is no failure
        dist.init_process_group("gloo", f"file://{folder}/meet", limit, world_size=count, rank=rank)
    for name, (function, arguments) in jobs.items():
        try:
            torch.save(function(folder / name, count, **arguments), folder / f"{name}-{rank}.pt")
        except BaseException as error:
            (folder / f"failed-{rank}.txt").write_text(f"{name!r}: {error!r}\n{traceback.format_exc()}")
            raise
    if count > 1:
        dist.destroy_process_group()


def main(folder):
    """One script for every launcher: nothing in it knows of processes but the size of a batch."""
    torch.set_default_dtype(torch.float64)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    seen = new_trainer(folder, count, method="table", rows=22)
    seen.trainer.train()
    if seen.trainer.is_world_process_zero():
        torch.save(weights_of(seen.trainer), Path(folder) / "weights.pt")


if __name__ == "__main__":
    main(sys.argv[1])
