"""`AMALTrainer`: `transformers.Trainer` with several losses and a learned weight for every example and loss.

One optimizer step, with a method:

1. All micro-batches of the step are at hand (`get_batch_samples`); if a meta step is due, the policy learns from all
   of them, once (`meta.py`).
2. Every micro-batch runs through the student; its losses are weighed and summed, divided by the number of examples of
   the whole step (`mixture.py`).
3. `Trainer` does the rest.

Evaluation is the plain task loss of `Trainer`. Without losses and method, everything is.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from transformers.trainer_pt_utils import LabelSmoother

from amal_hf.batch_rows import ids_of
from amal_hf.checks import check_arguments, check_smoothing, check_timing, check_trainer, use_one_gpu
from amal_hf.cross_entropy import CrossEntropy
from amal_hf.data_checks import check_data
from amal_hf.generator_checks import check_generator
from amal_hf.generators import predicts_next
from amal_hf.loggers import logger_of
from amal_hf.logs import MixtureStatistics
from amal_hf.losses import JointLoss, Loss
from amal_hf.memory import memory_advice
from amal_hf.meta_steps import MetaSteppingTrainer, Window
from amal_hf.method import Method
from amal_hf.mixture import Mixture
from amal_hf.model_labels import class_count
from amal_hf.open_teachers import distillations, open_teachers
from amal_hf.policies.fixed_weights import FixedWeights
from amal_hf.problem_type import problem_type, say_problem_type
from amal_hf.processes import total_count
from amal_hf.publishing import PublishingTrainer
from amal_hf.ragged import fills_up
from amal_hf.random_numbers import randomness
from amal_hf.resumable import ResumableTrainer
from amal_hf.router_loss import router_loss
from amal_hf.run_outputs import write_outputs, write_page
from amal_hf.shapes import EXAMPLE_ID, Batch
from amal_hf.shared_rows import warn_of_shared_sets
from amal_hf.shown_states import shows_states, state_widths
from amal_hf.skipped_steps import SkippedSteps
from amal_hf.student_inputs import StudentInputs
from amal_hf.student_states import with_logits
from amal_hf.task import Task
from amal_hf.token_mixture import TokenMixture
from amal_hf.weight_histograms import weight_histograms
from amal_hf.weight_warnings import warn_of_seen_labels
from amal_hf.weights import weights_dataset


logger = logger_of(__name__)


def _own(loss: Any) -> Any:
    """A loss for one trainer: a copy, with a model of its own where the loss trains one."""
    return copy.deepcopy(loss) if isinstance(loss, JointLoss) else copy.copy(loss)


class AMALTrainer(MetaSteppingTrainer, ResumableTrainer, PublishingTrainer):
    """A drop-in for `transformers.Trainer` that mixes losses for each example.

    Takes everything `Trainer` takes, and:

    Args:
        losses: losses of the student, `[CrossEntropy()]` by default; a plain function `(outputs, batch) -> (B,)` is a
            loss too.
        method: how their weights are learned, as `amal()`; `None` keeps the fixed mixture `args.loss_weights` (equal
            shares by default).
        meta_dataset: small, clean and held out from evaluation; needed when `method` learns. Its rows may be training
            rows as well, as long as the student does not learn them by heart.
        teacher_model: shorthand: a model, a folder, a Hub id, or a list of them, each added as
            `Distillation(teacher)`.

    With all four left out it is `Trainer`, to the last bit.

    Raises:
        TypeError, ValueError: input that could not be trained on; see `checks.py`, `data_checks.py` and `teachers.py`.
            At construction, teachers last; but for what depends on the run's length and optimizer, which is refused
            before its first step.

    References:
        AMAL, arXiv:2202.03250.
    """

    processing_class: Any
    _anonymous: bool

    def __init__(
        self,
        *trainer_args: Any,
        losses: Sequence[Loss | Callable[..., Tensor]] | None = None,
        method: Method | None = None,
        meta_dataset: Any = None,
        teacher_model: Any = None,
        **trainer_kwargs: Any,
    ) -> None:
        super().__init__(*trainer_args, **trainer_kwargs)
        if losses is None and method is None and teacher_model is None:
            if meta_dataset is not None:
                logger.warning("The meta set is not used without a method that learns from it. Pass method=amal().")
            return
        check_arguments(losses, method)
        # Copies, since each takes over how this student is read, and the teacher's answers for these rows.
        losses = [CrossEntropy()] if losses is None else [_own(loss) for loss in losses]
        losses += distillations(teacher_model)
        # A copy, since the policy inside holds what is learned: two trainers given one method must not share it.
        self.method = Method("fixed", FixedWeights()) if method is None else copy.deepcopy(method)
        self._check(losses, meta_dataset)
        kind = problem_type(self.model, self.train_dataset, meta_dataset)
        check_smoothing(kind, self.args.label_smoothing_factor)
        task = Task(kind, self.args.label_smoothing_factor, predicts_next(self.model))
        self.mixes = True
        self.mixture = (TokenMixture if self.method.per_token else Mixture)(losses, self.method.policy, task)
        for loss in self.mixture.losses:
            loss.check(self.train_dataset, class_count(self.model))
        self.meta_dataset = meta_dataset
        given = self.train_dataset  # teachers look rows up in the set as it was
        self._number_rows()
        self._take_over_steps()
        self._reset()
        for callback in weight_histograms(self.callback_handler.callbacks, lambda: self._statistics.weights):
            self.add_callback(callback)
        # Last, as a cache may take an hour to fill: nothing else is refused after it.
        self._open_teachers(given)

    def _check(self, losses: list[Any], meta_dataset: Any) -> None:
        """Refuse what could not be trained on, before rows are read and teachers opened."""
        check_trainer(self)
        sets = {"train_dataset": self.train_dataset, "meta_dataset": meta_dataset}
        check_generator(self.model, losses, self.method, sets)
        check_data(self.train_dataset, meta_dataset, self.method, losses, class_count(self.model))
        if self.method.learns:
            self.method.tangent.scope(self.model)  # refuses an output layer that cannot be found, or moved
            warn_of_shared_sets(meta_dataset, self.train_dataset, self.eval_dataset)

    def _take_over_steps(self) -> None:
        """Tell `Trainer` what it must not do to a loss over whole optimizer steps, and be told of those it skips."""
        use_one_gpu(self.args)
        self._train_batch_size = self.args.train_batch_size  # `Trainer` has multiplied it by the GPUs that it saw
        self._skipped_steps = SkippedSteps()
        self.add_callback(self._skipped_steps)
        self._save_after_steps()
        # The loss is divided by the examples of the whole optimizer step here, so `Trainer` must neither divide by the
        # accumulation steps nor pass item counts on.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = False

    # ---- training ----

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of the next optimizer step; a meta step looks at all of them."""
        if not self.mixes:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        if fills_up(self.args):
            epoch_iterator = map(self._without_repeats, epoch_iterator)
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(batches) < num_batches:
            # A stream has ended within a step. `Trainer` takes none then, and carries the gradient of these rows into
            # the next step, whose examples it is not divided by: they wait for the next pass.
            batches = []
        examples = sum(len(ids_of(batch)) for batch in batches)
        self._window = Window(batches, total_count(examples, self.args.device))
        # Not in the training step, where Accelerate may have put off sums over processes to the last micro-batch.
        if batches:
            with memory_advice():
                self._before_step()
        return batches, items

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """`Trainer`'s step; after the last micro-batch of an optimizer step, what ends with it."""
        if not self.mixes:
            return super().training_step(model, inputs, num_items_in_batch)
        weighed = self._window.weighed
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._window.weighed == weighed:
            raise RuntimeError(
                f"AMALTrainer: {type(self).__name__}.compute_loss made a loss of its own, so that losses and method "
                f"did nothing. Give it in losses=[..., function], one value an example; or call super().compute_loss."
            )
        self._window.position += 1
        if self._window.position == len(self._window.batches):
            self._window.prepared.clear()  # teachers' logits would wait for the next step, through an evaluation too
            self.mixture.finish_step()
            self._skip_if_empty()
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """In training the weighed losses over the examples of the optimizer step; otherwise the plain task loss."""
        if not self.mixes or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        window = self._window_of(inputs)
        window.weighed += 1
        batch = window.prepared[window.position] if window.prepared else self._prepare_batch(inputs)
        self._warn_of_anonymous_rows(batch)
        recorder = self._recorder
        before = [] if recorder is None else randomness(self.args.device)
        student_inputs, targets = self._inputs.trained(batch, self.state.global_step)
        outputs = with_logits(model(**student_inputs))
        weighed = self.mixture.weigh(outputs, batch, self._progress(), targets)
        if recorder is not None:
            recorder.add(batch, before, weighed)
        if self._is_logged:
            self._statistics.add(weighed)
        total = weighed.total + router_loss(outputs, self.model) * len(ids_of(batch))
        # Gradients are averaged over processes, while the examples are those of all of them.
        loss = total * (self.accelerator.num_processes / window.examples)
        return (loss, outputs) if return_outputs else loss

    def _window_of(self, batch: Batch) -> Window:
        """The optimizer step that is under way; a batch that comes by hand, outside of one, is a step by itself."""
        if self._window.position == len(self._window.batches):
            self._window = Window([batch], len(ids_of(batch)) * self.accelerator.num_processes)
        return self._window

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """`Trainer`'s, with the parts of the loss and the weights beside the training loss."""
        # The last steps come with the summary of the run: in a short one all of them.
        if self.mixes and ("loss" in logs or "train_runtime" in logs):
            logs = {**logs, **self._statistics.flush(), **self.mixture.policy.figures()}
        super().log(logs, start_time)

    def _warn_of_anonymous_rows(self, batch: Batch) -> None:
        """Say once that weights belong to nobody."""
        if EXAMPLE_ID not in batch and not self._anonymous:
            self._anonymous = True
            logger.warning(
                "Training batches have no whole numbers in a column '%s', so it is not known which examples they "
                "hold: weights are learned and used, and example_weights() will have none. A stream, or a data loader "
                "of your own, has to bring this column.",
                EXAMPLE_ID,
            )

    def _skip_if_empty(self) -> None:
        """Leave the student alone where its policy says so: an optimizer moves nothing that has no gradient."""
        # A gradient scaler takes a step without any gradient for an error.
        if self.mixture.policy.skips_step and self.accelerator.scaler is None:
            self.model.zero_grad(set_to_none=True)
            self._statistics.add_skipped_step()

    # ---- results ----

    def example_weights(self) -> datasets.Dataset:
        """The weights of all training examples: `example_id`, and one column for each loss.

        The ids are your own, if the training set had a column of them, or else row numbers. For a table these are its
        rows; for other policies the weights that each example had when it was last trained on, NaN if never. Too many
        for memory, they are mapped from a file in `weights_dir`.

        Raises:
            RuntimeError: no losses or method were given.
        """
        self._require_weights("example_weights")
        return weights_dataset(self.mixture.record, self.mixture.names, self._given_ids, self.args.weights_dir)

    def write_report(self, path: str | None = None, results: Sequence[Mapping[str, Any]] = ()) -> str:
        """Write a page to look through the training examples by weight; see `report.py`. Returns its path.

        Args:
            path: `report.html` in the output folder by default.
            results: rows of a table to show first.

        Raises:
            RuntimeError: no losses or method were given.
        """
        self._require_weights("write_report")
        return write_page(self, path, results)

    def _require_weights(self, asked: str) -> None:
        if not self.mixes:
            raise RuntimeError(
                f"AMALTrainer.{asked}: there are no weights, since neither losses nor a method were given."
            )

    # ---- set-up ----

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """`Trainer`'s, from the initial mixture: also in a second `train()`, a trial of a search, a smaller batch."""
        if self.mixes:
            self._reset()
        output = super()._inner_training_loop(*args, **kwargs)
        if self.mixes:
            self._window = Window([], 0)  # a run may have been stopped within a step
            warn_of_seen_labels(self.mixture.policy.figures())
            write_outputs(self)
        return output

    def _reset(self) -> None:
        """Start a run, all that can be learned at its beginning."""
        policy, changes = self.method.policy, self.method.batch_policy
        self._check_replaced()
        if self.method.learns:
            check_timing(self)
        self._follow_smoothing()
        say_problem_type(self.model, self.mixture.task.problem_type)
        if self.args.meta_learning_rate is not None:
            policy.learning_rate = self.args.meta_learning_rate
            if changes is not None:
                changes.learning_rate = self.args.meta_learning_rate
        self.mixture.reset(
            examples=len(self.train_dataset) if self._has_rows else None,
            initial=self.mixture.initial(self.args.loss_weights),
            classes=class_count(self.model),
            states=state_widths(self.model.config) if policy.needs_hidden_states else (),
            folder=self.args.weights_dir,
        )
        if changes is not None:
            changes.reset(class_count(self.model))
        self._statistics = MixtureStatistics(self.mixture.groups)
        self._set_signature_columns_if_needed()
        probes = policy.reads_clean_states and self.method.learns and shows_states(self.model)
        states = policy.needs_hidden_states or probes
        self._inputs = StudentInputs(self.model, self._student_columns, states, changes)
        self._learner = self._new_learner() if self.method.learns else None
        self._window = Window([], 0)
        self._forward = None
        self._anonymous = False
        self._labels_shown = False

    def _follow_smoothing(self) -> None:
        """Smooth labels as the arguments say now, in training and evaluation: `Trainer` reads them only once."""
        task, smoothing = self.mixture.task, self.args.label_smoothing_factor
        if smoothing != task.label_smoothing:
            check_smoothing(task.problem_type, smoothing)
            self.mixture.bind(replace(task, label_smoothing=smoothing))
        spread = smoothing and task.problem_type != "multi_label_classification"
        self.label_smoother = LabelSmoother(epsilon=smoothing) if spread else None

    def _open_teachers(self, dataset: Any) -> None:
        cache_dir = self.args.teacher_cache_dir
        # The first process fills a cache, the others find it.
        with self.args.main_process_first(local=False) if cache_dir else nullcontext():
            open_teachers(
                self.mixture.distillations,
                student=self.model,
                dataset=dataset,
                collator=self._collate,
                columns=self._student_columns | self._teacher_columns,
                tokenizer=self.processing_class,
                cache_dir=cache_dir,
                # Looked up at every call: hyperparameter search replaces the accelerator.
                autocast=lambda: self.accelerator.autocast(),
                cut_over_processes=self.accelerator.is_fsdp2,
            )
