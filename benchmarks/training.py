"""How every student and teacher of the quality benchmark is trained.

All alike; the best of about eight looks at dev is kept.
"""

import copy
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from settings import Bench
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from transformers.trainer_utils import EvalPrediction

from amal_hf import AMALArguments, AMALTrainer, CrossEntropy, Loss, Method
from amal_hf.metrics import F1, Accuracy, MacroF1


LOOKS = 8

_SCORES = (Accuracy(), MacroF1(), F1())


def scores(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, macro F1, and F1 of class 1, as spam is scored."""
    guess, truth = np.asarray(prediction.predictions).argmax(-1), np.asarray(prediction.label_ids)
    return {one.key: one.score(guess, truth) for one in _SCORES}


class Looks(TrainerCallback):
    """Keeps the parameters that scored best on dev.

    Args:
        metric: by which.
    """

    def __init__(self, metric: str) -> None:
        self.metric = f"eval_{metric}"
        self.best = -1.0
        self.state: dict[str, Tensor] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A look."""
        if kwargs["metrics"][self.metric] > self.best:
            self.best = kwargs["metrics"][self.metric]
            self.state = copy.deepcopy(kwargs["model"].state_dict())

    def restore(self, model: PreTrainedModel) -> None:
        """Put the best parameters back."""
        model.load_state_dict(self.state)


def train(
    bench: Bench,
    student: PreTrainedModel,
    rows: Dataset,
    steps: int,
    looks: Looks,
    *,
    learning_rate: float,
    losses: list[Loss] | None = None,
    shares: list[float] | None = None,
    method: Method | None = None,
    smoothing: float = 0.0,
    arguments: Mapping[str, Any] | None = None,
) -> AMALTrainer:
    """Train, and leave the student with the best parameters that `looks` has seen."""
    dev = read(bench, bench.splits["validation"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = AMALTrainer(
            model=student,
            args=_arguments(bench, folder, steps, learning_rate, shares, smoothing, arguments or {}),
            train_dataset=rows,
            eval_dataset=dev.select(shortest_first(dev)),
            meta_dataset=read(bench, bench.splits["meta"]) if method is not None and method.learns else None,
            processing_class=bench.body.tokenizer,
            compute_metrics=scores,
            losses=[CrossEntropy()] if losses is None else losses,
            method=method,
            callbacks=[looks],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    looks.restore(trainer.model)
    return trainer


def read(bench: Bench, rows: Dataset) -> Dataset:
    """Rows with nothing but what a student reads."""
    names = [name for name in ("row", "input_ids", "token_type_ids", "attention_mask") if name in rows.column_names]
    return rows.select_columns([*names, "label"])


def answers(trainer: AMALTrainer, rows: Dataset) -> NDArray[np.float32]:
    """Logits `(N, C)` on rows of a split."""
    order = shortest_first(rows)
    found = np.asarray(trainer.predict(rows.select(order)).predictions)
    logits = np.empty_like(found)
    logits[order] = found
    return logits


def shortest_first(rows: Dataset) -> NDArray[np.int64]:
    """An order in which batches are of like lengths: of mixed ones two thirds are padding."""
    if "input_ids" not in rows.column_names:
        return np.arange(len(rows))
    return np.argsort([len(tokens) for tokens in rows["input_ids"]], kind="stable")


def _arguments(
    bench: Bench,
    folder: str,
    steps: int,
    learning_rate: float,
    shares: list[float] | None,
    smoothing: float,
    more: Mapping[str, Any],
) -> AMALArguments:
    return AMALArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=bench.body.batch_size,
        per_device_eval_batch_size=2 * bench.body.batch_size,
        learning_rate=learning_rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        label_smoothing_factor=smoothing,
        loss_weights=shares,
        eval_strategy="steps",
        eval_steps=max(1, steps // LOOKS),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        write_figures=False,
        seed=bench.place.seed,
        bf16=bench.body.bf16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **more,
    )
