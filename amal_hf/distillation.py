"""Knowledge distillation: how far the student is from a teacher's soft targets."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from amal_hf.cross_entropy import squared_error
from amal_hf.divergences import Divergence, forward_kl, logit_mse
from amal_hf.losses import Loss
from amal_hf.shapes import Batch, Logits, PerExample, Teacher
from amal_hf.task import Task, as_two_classes, at_least_fp32, distilled_tokens
from amal_hf.tokens import OfRows, row_values, token_means
from amal_hf.top_logits import TopK, TopLogits, merged


CITATION = """@misc{hinton2015distilling,
  title = {Distilling the Knowledge in a Neural Network},
  author = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  year = {2015},
  eprint = {1503.02531},
}"""


class Distillation(Loss):
    """How far the student is from a teacher's soft targets (Hinton et al. 2015, arXiv:1503.02531).

    With the default divergence the value is `T² KL(softmax(z_teacher / T) ‖ softmax(z_student / T))`. Multi-label
    logits are read as one yes/no distribution a class, averaged over classes; regression outputs are compared by
    squared error, without temperature; tokens are averaged over those with a label (over all attended ones in a row
    that has no label).

    Args:
        teacher: a `PreTrainedModel`, a folder or a Hub id; or any callable `(batch) -> logits` in the student's label
            order.
        temperature: softness T > 0 of both distributions. Default 2.0; the AMAL code uses 4.
        divergence: `forward_kl`, `reverse_kl`, `jensen_shannon`, `logit_mse`, or your own of the same signature.
        tokenizer: the teacher's own tokenizer, if it is not the student's. A teacher given by name brings its own.
        text_columns: the dataset columns with the raw text, read only when the teacher encodes text by itself.
        columns: dataset columns that a function as teacher reads beyond what the student's forward takes, such as
            logits that were computed elsewhere: `Distillation(lambda batch: batch["scores"], columns="scores")`.
        name: column name; give each of several teachers its own.
        top_k: for students that generate text: keep only the k largest of the teacher's logits of a token, and all
            others as one further class (`top_logits.py`). It makes a cache of 32,000 words 250 times smaller at
            k = 64. `None` keeps all; so does a k as large as the vocabulary.
        has_seen_labels: whether the teacher was trained on the labels of the training set. One that was fine-tuned on
            other rows, or not at all, was not, and its answers say how these labels go wrong: with `False`
            `LossNetwork`, which is in `amal()`, starts at the mixture of Bayes' rule, where `bayes_mixture()` stays.
            A poor one is followed all the same: see on dev whether a teacher of these labels is better.
        calibrated_at: the temperature at which that teacher's probabilities are right, `calibrated_temperature(...)`
            of what it predicts for dev or other rows that it was not trained on. Without, it is chosen by the labels.
            Say it where most of these are right: they are believed then. Where many are wrong evenly it was level, or
            worse (`benchmarks/LOG.md`).

    Raises:
        TypeError: no teacher, a class or a pipeline in its place, or a divergence that is no function.
        ValueError: a temperature that is not positive and finite, `calibrated_at` of a teacher that has seen the
            labels, or a `top_k` below 1.
    """

    citation = CITATION

    def __init__(
        self,
        teacher: Any,
        temperature: float = 2.0,
        divergence: Divergence | None = None,
        *,
        tokenizer: Any = None,
        text_columns: str | Sequence[str] = ("text",),
        columns: str | Sequence[str] = (),
        name: str = "teacher",
        top_k: int | None = None,
        has_seen_labels: bool = True,
        calibrated_at: float | None = None,
    ) -> None:
        _check_temperatures(temperature, calibrated_at, has_seen_labels)
        _check_teacher(teacher)
        if divergence is not None and not callable(divergence):
            raise TypeError(
                f"Distillation: divergence must be a function, got {divergence!r}. There are forward_kl, reverse_kl, "
                f"jensen_shannon and logit_mse: `from amal_hf import reverse_kl`."
            )
        self.source = teacher
        self.temperature = temperature
        self.divergence = forward_kl if divergence is None else divergence
        self.tokenizer = tokenizer
        self.text_columns = (text_columns,) if isinstance(text_columns, str) else tuple(text_columns)
        self.columns = (columns,) if isinstance(columns, str) else tuple(columns)
        self.name = name
        self.top = None if top_k is None else TopK(top_k, temperature)
        self.has_seen_labels = has_seen_labels
        self.calibrated_at = calibrated_at
        self.task = Task()
        self.teacher: Teacher = _not_opened

    def describe(self) -> str:
        """Divergence, temperature, how many logits are kept if not all, and whether it knows the labels if not."""
        divergence = getattr(self.divergence, "__name__", type(self.divergence).__name__)
        kept = "" if self.top is None else f", top {self.top.k}"
        unseen = "" if self.has_seen_labels else ", has not seen the labels"
        if self.calibrated_at is not None:
            unseen += f", calibrated at temperature {self.calibrated_at:.3g}"
        return f"Distillation, {divergence}, temperature {self.temperature:g}{kept}{unseen}"

    @property
    def is_independent(self) -> bool:
        """Whether what it says of every class can be held against the labels."""
        return not self.has_seen_labels and self.top is None

    @property
    def logits_key(self) -> str:
        """Where the teacher's logits stand in a prepared batch."""
        return f"{self.name}_logits"

    def bind(self, task: Task) -> None:
        """Take over the student's problem type; numbers have no temperature."""
        self.task = task
        soft = self.divergence is not logit_mse and task.problem_type != "regression"
        # The gradient of T² KL is T (p_student − p_teacher).
        self.pull = self.temperature if soft else 1.0

    def prepare(self, batch: Batch) -> dict[str, Any]:
        """The teacher's logits, once a batch and without a graph; the largest of each token with `top_k`."""
        try:
            with torch.no_grad():
                found = self.teacher(batch)
        except KeyError as error:
            error.add_note(
                f"Distillation '{self.name}': the batch holds {sorted(batch)}. Name dataset columns that the teacher "
                f"reads: Distillation(function, columns=(...,))."
            )
            raise
        logits = self._logits(found)
        if self.top is not None and isinstance(logits, Tensor):
            return {self.logits_key: self.top(logits)}
        if isinstance(logits, Tensor) and self.task.is_multi_label(logits, batch.get("labels")):
            wide = at_least_fp32(logits)  # an infinite logit is a probability of 0 or 1, and its pair no number
            logits = wide.clamp(torch.finfo(wide.dtype).min, torch.finfo(wide.dtype).max)
        return {self.logits_key: logits}

    def _logits(self, found: Any) -> Logits | TopLogits:
        """What a teacher gave, without a graph; a function may give what its model did."""
        logits = found if isinstance(found, Tensor | TopLogits) else getattr(found, "logits", found)
        if isinstance(logits, TopLogits):
            return logits
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"Distillation '{self.name}': the teacher must give logits, a tensor (B, C); it gave a "
                f"{type(logits).__name__}."
            )
        return logits.detach()

    def __call__(self, outputs: Any, batch: Batch) -> PerExample:
        """`(B,)`: the divergence between teacher and student.

        Raises:
            ValueError: logits of other shapes than the student's.
        """
        student, teacher = outputs.logits, batch[self.logits_key]
        if isinstance(teacher, TopLogits):
            return self._of_top_logits(student, teacher, batch)
        if student.shape != teacher.shape:
            raise ValueError(
                f"Distillation '{self.name}': the student's logits have shape {tuple(student.shape)}, the teacher's "
                f"{tuple(teacher.shape)}; both must classify the same tokens or sentences into the same classes."
            )
        labels = batch.get("labels")
        if student.ndim == 3 and not self.task.is_multi_label(student, labels):
            return token_means(self._of_rows(teacher.flatten(0, 1)), student, distilled_tokens(batch, self.task))
        if self.task.is_regression(student):
            return squared_error(at_least_fp32(student), at_least_fp32(teacher))
        if self.task.is_multi_label(student, labels):
            ours, theirs = (as_two_classes(at_least_fp32(logits)) for logits in (student, teacher))
            return self.divergence(ours, theirs, self.temperature).flatten(1).mean(1)
        return row_values(self._of_rows(teacher), student)

    def _of_rows(self, teacher: Tensor) -> OfRows:
        """The divergence of some of the rows from those of the teacher, `(n, C)`."""

        def of_rows(picked: Tensor, places: Tensor | slice) -> Tensor:
            return self.divergence(at_least_fp32(picked), at_least_fp32(teacher[places]), self.temperature)

        return of_rows

    def _of_top_logits(self, student: Logits, teacher: TopLogits, batch: Batch) -> PerExample:
        if student.shape[:2] != teacher.logits.shape[:2]:
            raise ValueError(
                f"Distillation '{self.name}': the student gives logits for {tuple(student.shape[:2])} (examples, "
                f"tokens), the teacher for {tuple(teacher.logits.shape[:2])}; both must read the same tokens."
            )
        logits, classes = teacher.logits.flatten(0, 1), teacher.classes.flatten(0, 1)

        def of_rows(picked: Tensor, places: Tensor | slice) -> Tensor:
            same = merged(at_least_fp32(picked), classes[places], self.temperature)
            return self.divergence(same, logits[places].to(same), self.temperature)

        return token_means(of_rows, student, distilled_tokens(batch, self.task))


def _not_opened(batch: Batch) -> Logits:
    raise RuntimeError(
        "Distillation: the teacher has not been opened. AMALTrainer does so; on your own, set `loss.teacher` to a "
        "callable (batch) -> logits."
    )


def _check_temperatures(temperature: float, calibrated_at: float | None, has_seen_labels: bool) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(
            f"Distillation: temperature must be positive and finite, got {temperature}. Usual values are 1 to 8."
        )
    if calibrated_at is None:
        return
    if not 0 < calibrated_at < float("inf"):
        raise ValueError(
            f"Distillation: calibrated_at must be a positive and finite temperature, got {calibrated_at}. "
            f"`calibrated_temperature(known.predictions, known.label_ids)` finds it."
        )
    if has_seen_labels:
        raise ValueError(
            f"Distillation: calibrated_at is for Bayes' rule, for which a teacher must not have seen the labels it is "
            f"held against; got {calibrated_at} and has_seen_labels=True. Add has_seen_labels=False if it has not, or "
            f"leave it out."
        )


def _check_teacher(teacher: Any) -> None:
    if isinstance(teacher, type | nn.ModuleList) or not (callable(teacher) or isinstance(teacher, str | PathLike)):
        raise TypeError(
            f"Distillation: teacher must be a model, a folder, a Hub id or a function, got {teacher!r}. Several are "
            f"one loss each, or teacher_model=[...]."
        )
    if not isinstance(teacher, nn.Module) and isinstance(getattr(teacher, "model", None), nn.Module):
        raise TypeError(
            f"Distillation: a {type(teacher).__name__} reads texts and answers in words. Pass its model and "
            f"tokenizer: Distillation(pipeline.model, tokenizer=pipeline.tokenizer)."
        )
