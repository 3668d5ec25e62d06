"""`Trainer` whose weights learn before its optimizer steps: when, from which batches, and with which student."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.trainer_utils import IntervalStrategy

from amal_hf.arguments import AMALArguments
from amal_hf.collator import is_stream
from amal_hf.compiled import meta_forward
from amal_hf.learner import Student, WeightLearner
from amal_hf.logs import MixtureStatistics
from amal_hf.meta import MetaReport
from amal_hf.meta_set import MetaSet
from amal_hf.numbered_rows import NumberedRowsTrainer
from amal_hf.precision import compute_dtype
from amal_hf.ragged import own_part
from amal_hf.random_numbers import own_random_numbers
from amal_hf.recorder import Recorder
from amal_hf.shapes import WITHOUT_SOURCE, Batch
from amal_hf.skipped_steps import SkippedSteps
from amal_hf.student_inputs import StudentInputs
from amal_hf.weight_warnings import warn_of_large_meta_batch, warn_of_unread_teacher
from amal_hf.without_source import cost_without_source


@dataclass
class Window:
    """The micro-batches of one optimizer step.

    Attributes:
        batches: as they came from the loader.
        examples: how many they have, over all processes.
        position: which of them is trained on.
        weighed: of how many a loss was taken.
        prepared: the batches as a meta step has made them ready, if it was time for one.
    """

    batches: list[Batch]
    examples: Tensor | int
    position: int = 0
    weighed: int = 0
    prepared: list[Batch] = field(default_factory=list)


class MetaSteppingTrainer(NumberedRowsTrainer):
    """`Trainer` that can take a meta step before each of its own; `meta.py` says what that is.

    `AMALTrainer` sets what it reads at the beginning of a run.
    """

    args: AMALArguments
    optimizer: Any
    _forward: Callable[..., Any] | None
    _inputs: StudentInputs
    _labels_shown: bool
    _learner: WeightLearner | None
    _skipped_steps: SkippedSteps
    _statistics: MixtureStatistics
    _window: Window

    def _before_step(self) -> None:
        """Show labels once, and let the weights learn, if it is time to."""
        step, learner = self.state.global_step, self._learner
        if learner and callable(as_trained := getattr(self.optimizer, "train", None)):
            as_trained()  # a schedule-free optimizer may have been at the parameters it evaluates at
        warmup = self.args.get_meta_warmup_steps(self.state.max_steps) if learner else 0
        if learner and step == 0:
            learner.check(self.optimizer, warmup, self.state.max_steps, self.state.num_train_epochs)
        if step >= warmup and not self._labels_shown:
            self._show_labels()
        if learner:
            self._learn(learner, step, warmup)

    def _learn(self, learner: WeightLearner, step: int, warmup: int) -> None:
        """Let the weights learn, if it is time to."""
        if learner.recorder is not None:
            report = learner.before_step(self._student(), warmup, lambda b: self._prepare_inputs(own_part(b)))
            if report is not None:
                self._count(report)
        elif not self.method.learns_at(self._progress()):
            learner.direction = None
        elif learner.begin_phase(int(self.state.epoch or 0)):
            for batches in self._whole_training_set():
                self._meta_step(learner, batches, measures=True)
        elif learner.is_due(step - warmup):
            # Kept for the training step, so that teachers run once.
            self._window.prepared = self._meta_step(learner, self._window.batches, learner.measures(step - warmup))

    def _show_labels(self) -> None:
        """Once let the policy see labels, and a teacher's answers, before it learns from anything."""
        self._labels_shown = True
        rows = self.method.policy.rows_wanted
        if rows and self._has_rows:
            with own_random_numbers(self.args.seed):
                self.mixture.show_labels(map(self._prepare_inputs, self._training_rows(rows)), rows)
        if self.method.learns:
            warn_of_unread_teacher(self.method.policy, self.mixture.distillations)

    def _meta_step(self, learner: WeightLearner, batches: Sequence[Batch], measures: bool) -> list[Batch]:
        """Learn from the micro-batches of one optimizer step, by a new meta gradient or not; returns them prepared."""
        prepared = [self._prepare_batch(self._prepare_inputs(dict(batch))) for batch in batches]
        if self.accelerator.scaler is not None and not self.method.phase_epochs:
            self._skipped_steps.begin(self.accelerator.scaler, learner.restorer(prepared))
        for batch in learner.not_yet_seen() if measures and self._inputs.hidden_states else ():
            learner.show(self._student(), self._prepare_inputs(own_part(batch)))
        meta_batch = self._prepare_inputs(own_part(learner.next_meta_batch())) if measures else None
        self._count(learner.learn(self._student(), prepared, meta_batch))
        return prepared

    def _show_rows(self, progress: float) -> None:
        if self._learner:
            size = max(self._train_batch_size, self.args.per_device_eval_batch_size)
            batches = (self._prepare_batch(self._prepare_inputs(batch), reads=True) for batch in self._all_rows(size))
            self._learner.show_rows(self._student()._replace(progress=progress), batches)

    def _prepare_batch(self, batch: Batch, reads: bool | None = None) -> Batch:
        """With what losses need of it, and what its targets cost the student without a source, where that is read."""
        prepared = self.mixture.prepare(batch)
        policy = self.method.policy
        reads = policy.reads_at(self._progress()) if reads is None else reads
        if not (policy.needs_source_gain and reads):
            return prepared
        return {**prepared, WITHOUT_SOURCE: cost_without_source(self._student(), prepared, self.mixture.task)}

    def _new_learner(self) -> WeightLearner:
        args = self.args
        seed = args.seed if args.meta_seed is None else args.meta_seed
        rows, collate = self._rows_and_collator(self.meta_dataset, "meta")
        meta_set = MetaSet(rows, collate, args.meta_batch_size, seed)
        if self._inputs.hidden_states and self.method.policy.reads_clean_states:
            warn_of_large_meta_batch(len(rows), meta_set.batch_size)
        return WeightLearner(self.method, self.mixture, meta_set, args.meta_interval or self.method.usual_interval)

    def _student(self) -> Student:
        if self._forward is None:
            self._forward = meta_forward(self.model, self.method.tangent, self.accelerator.state.dynamo_plugin)
        dtype = compute_dtype(self.accelerator.mixed_precision, self.model)
        return Student(
            model=self.model,
            forward=self._forward,
            inputs=self._inputs,
            optimizer=self.optimizer,
            dtype=dtype,
            step=self.state.global_step,
            progress=self._progress(),
            max_grad_norm=self.args.max_grad_norm or 0.0,
        )

    def _progress(self) -> float:
        every = self.method.restart_every
        if every:
            return self.state.global_step % every / every
        return self.state.global_step / max(self.state.max_steps, 1)

    def _count(self, report: MetaReport) -> None:
        if self._is_logged:
            self._statistics.add_meta(*report)

    @property
    def _is_logged(self) -> bool:
        """Whether statistics are ever asked for: others would only pile up."""
        return self.args.logging_strategy != IntervalStrategy.NO

    @property
    def _recorder(self) -> Recorder | None:
        """What records this optimizer step for a trajectory, if it is one of its steps."""
        recorder = self._learner.recorder if self._learner else None
        return recorder if recorder and recorder.steps else None

    @property
    def _has_rows(self) -> bool:
        """Whether the training set is there, and its rows can be had by number."""
        return self.train_dataset is not None and not is_stream(self.train_dataset)
