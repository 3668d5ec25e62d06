"""Which labels deserve weight? A head over frozen features learns from them with `amal()`, in seconds.

What is probably wrong can then be left out of a longer training: its steps are better spent on the other rows.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import datasets
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PrinterCallback, TrainerCallback, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from amal_hf.arguments import AMALArguments
from amal_hf.clean_probe import FEWEST_ROWS
from amal_hf.labelled_features import read_labelled, standardised
from amal_hf.methods import amal
from amal_hf.policies.loss_network import LossNetwork
from amal_hf.policies.network_policy import NetworkPolicy
from amal_hf.policies.policy import Observation
from amal_hf.probably_right import LabelWeights
from amal_hf.random_numbers import put_back
from amal_hf.shapes import LossTable
from amal_hf.trainer import AMALTrainer


EPOCHS, BATCH_SIZE, LEARNING_RATE, SMOOTHING, HIDDEN = 8, 128, 3e-3, 0.1, 128
"""Those of all heads over frozen features in `benchmarks/quality.py`."""

FEWEST_STEPS = 300
"""As many as TREC's five thousand rows take; a policy that is asked on 2 of 8 steps learns little in fewer."""


def label_weights(
    features: Any, labels: Any, clean_features: Any, clean_labels: Any, *, steps: int | None = None, seed: int = 0
) -> LabelWeights:
    """Which labels deserve weight, and how many are wrong, by a short run of `amal()` over features.

    The head learns from smoothed labels. Clean rows only judge: one that had learned them by heart would be told
    nothing by them. Weights are means over the last half of the passes, when wrong labels have least, and do not fade
    where few labels are wrong, as those of a training do. How many are wrong is what the probe of `LossNetwork` has
    found. The caller's random numbers are left alone. Among several processes all must call it, and all get the same.

    Args:
        features: `(N, d)`, one row a text, as of `embed_texts`; array, tensor, table or column of a dataset.
        labels: `(N,)`, class numbers; a negative one is none, and has no weight.
        clean_features: `(M, d)`, those of rows whose labels are right.
        clean_labels: `(M,)`, class numbers.
        steps: of the head, 128 rows each; by default eight passes as in `benchmarks/quality.py`, and at least 300.
        seed: of the head, and of the order of rows.

    Raises:
        TypeError: what is no array of numbers.
        ValueError: other shapes, features that are not finite, no label at all, a clean row without one, or no step.

    References:
        AMAL, arXiv:2202.03250.
    """
    rows, given = read_labelled("label_weights", "features", features, labels)
    clean, right = read_labelled("label_weights", "clean_features", clean_features, clean_labels)
    _check(rows, given, clean, right, steps)
    known = given >= 0
    table, targets = torch.cat([clean, rows[known]]), torch.cat([right, given[known]])
    if steps is None:
        steps = max(EPOCHS * -(-int(known.sum()) // BATCH_SIZE), FEWEST_STEPS)
    gpus = range(torch.cuda.device_count())
    with put_back(gpus), _states_put_back(), _one_thread(), tempfile.TemporaryDirectory() as folder:
        passes = _learned(table, targets, len(clean), folder, steps, seed)
    weights, found = torch.zeros(len(given)), passes.weights()
    weights[known] = (found / found.mean()).to(weights)
    return LabelWeights(weights, *passes.wrong())


class _AsLearned(LossNetwork):
    """Weights that do not fade where few labels are wrong."""

    def weights(self, observation: Observation) -> LossTable:
        """What the network says."""
        return NetworkPolicy.weights(self, observation)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Steps so small take longer when they are shared out: fifty times as long where other programs are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _states_put_back() -> Iterator[None]:
    """Arguments that were made before keep the precision that Accelerate has noted for them."""
    states = [PartialState._shared_state, AcceleratorState._shared_state, GradientState._shared_state]
    before = [dict(state) for state in states]
    try:
        yield
    finally:
        for state, known in zip(states, before, strict=True):
            state.clear()
            state.update(known)


def _learned(table: Tensor, targets: Tensor, clean: int, folder: str, steps: int, seed: int) -> "_Passes":
    """What the passes say of the rows that come after so many clean ones."""
    data = datasets.Dataset.from_dict({"row": range(len(table)), "label": targets.tolist()})
    set_seed(seed)
    args = AMALArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        warmup_steps=0.1,
        weight_decay=0.01,
        label_smoothing_factor=SMOOTHING,
        meta_batch_size=_meta_batch_size(clean),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        write_figures=False,
        seed=seed,
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )
    args.per_device_train_batch_size = -(-BATCH_SIZE // args.world_size)
    trainer = AMALTrainer(
        model=_Head(_HeadConfig(table.shape[1], num_labels=max(2, int(targets.max()) + 1)), table),
        args=args,
        train_dataset=data.select(range(clean, len(data))),
        meta_dataset=data.select(range(clean)),
        method=amal(_AsLearned()),
    )
    trainer.remove_callback(PrinterCallback)
    passes = _Passes(trainer)
    trainer.add_callback(passes)
    trainer.train()
    return passes


def _meta_batch_size(clean: int) -> int:
    """So many that the other clean rows can say what they have to; of too few for that, four."""
    return min(16, clean - FEWEST_ROWS) if clean > FEWEST_ROWS else 4


class _Passes(TrainerCallback):
    """Keeps what is known after each pass over the rows.

    Args:
        trainer: whose.
    """

    def __init__(self, trainer: AMALTrainer) -> None:
        self.trainer = trainer
        self.seen: list[Tensor] = []
        self.shares: list[Tensor] = []

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """A pass, whole but for the last."""
        self.seen.append(torch.as_tensor(self.trainer.example_weights().with_format("torch")["labels"][:]))
        told = cast(LossNetwork, self.trainer.method.policy).wrong_labels  # the trainer has a copy of the policy
        self.shares.append(torch.stack([told.share, told.error]).cpu())

    def weights(self) -> Tensor:
        """Of the last half of the passes, when wrong labels have least; 1 of a row that was never seen."""
        return self._last_half(self.seen).nan_to_num(1.0)

    def wrong(self) -> list[float]:
        """The share of wrong labels and its standard error, of the same passes."""
        found: list[float] = self._last_half(self.shares).tolist()
        return found

    @staticmethod
    def _last_half(values: list[Tensor]) -> Tensor:
        return torch.stack(values[len(values) // 2 :]).nanmean(0)


class _HeadConfig(PreTrainedConfig):
    """Widths of a head."""

    model_type = "head_over_features"

    def __init__(self, width: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width


class _Head(PreTrainedModel):
    """One hidden layer over the rows of a table, `(N, width)`, which are its hidden states, and are not trained."""

    config_class = _HeadConfig

    def __init__(self, config: _HeadConfig, table: Tensor) -> None:
        super().__init__(config)
        # No buffer: several processes would send that to one another at every step.
        self.table = standardised(table)
        classes: int = config.num_labels or 0
        self.layers = nn.Sequential(
            nn.Linear(config.width, HIDDEN), nn.GELU(), nn.Dropout(0.1), nn.Linear(HIDDEN, classes)
        )

    def forward(
        self, row: Tensor, labels: Tensor | None = None, output_hidden_states: bool = False
    ) -> SequenceClassifierOutput:
        """Logits, `(B, C)`, of the rows with these numbers, `(B,)`."""
        self.table = self.table.to(row.device)
        read = self.table[row]
        states = (read[:, None],) if output_hidden_states else None
        return SequenceClassifierOutput(logits=self.layers(read), hidden_states=states)


def _check(rows: Tensor, given: Tensor, clean: Tensor, right: Tensor, steps: int | None) -> None:
    if rows.shape[1] != clean.shape[1]:
        raise ValueError(
            f"label_weights: features have {rows.shape[1]} columns, and clean_features {clean.shape[1]}. Embed all "
            f"texts with one encoder."
        )
    check_labels("label_weights", given, right)
    if steps is not None and steps < 1:
        raise ValueError(f"label_weights: expected steps of 1 or more, got {steps}. Leave it out for eight passes.")


def check_labels(reader: str, given: Tensor, right: Tensor) -> None:
    """Whether there is a label, `(N,)`, and one for every clean row, `(M,)`.

    Args:
        reader: the function that was called, for messages.
        given: class numbers, negative for none.
        right: those of clean rows.

    Raises:
        ValueError: there is not.
    """
    if not bool((given >= 0).any()) or not len(right) or not bool((right >= 0).all()):
        raise ValueError(
            f"{reader}: expected labels, and clean rows that all have one; got {int((given >= 0).sum())} labels, "
            f"{len(right)} clean rows, and {int((right < 0).sum())} of them without a label. Clean rows are a few "
            f"hundred whose labels were checked."
        )
