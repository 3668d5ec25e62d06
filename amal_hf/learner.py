"""When the weights learn, and from which batches: the timing around `meta.py`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from amal_hf.batch_rows import ids_of, kept
from amal_hf.clean_probe import MOST_ROWS
from amal_hf.last_layer import frozen_body
from amal_hf.loggers import logger_of
from amal_hf.meta import MetaLoss, MetaReport, Problem, judge, meta_gradient, meta_step, scaled
from amal_hf.meta_set import MetaSet
from amal_hf.method import Method
from amal_hf.mixture import Mixture
from amal_hf.policies.policy import restorer
from amal_hf.precision import quick_backward
from amal_hf.processes import total, total_count, whole
from amal_hf.recorder import Recorder
from amal_hf.shapes import META_ROW, Batch, Evaluate, Evaluation, Params
from amal_hf.sharded import cut_again, differentiation, placed
from amal_hf.student_inputs import StudentInputs
from amal_hf.student_states import with_logits
from amal_hf.tangents import movable_parameters
from amal_hf.trajectories import walk_back
from amal_hf.undisturbed import differentiable_checkpointing, kept_buffers, undisturbed


logger = logger_of(__name__)


class Student(NamedTuple):
    """The student as the learner sees it.

    Attributes:
        model: the module itself, without the wrappers of compilation or data parallelism; or cut over processes.
        forward: runs it: the same module, or compiled.
        inputs: what the model's forward takes of a batch.
        optimizer: trains the model; only read.
        dtype: precision of the forward pass.
        step: optimizer steps taken.
        progress: share of training done.
        max_grad_norm: at which gradients are clipped; 0 for not at all.
    """

    model: nn.Module
    forward: Callable[..., Any]
    inputs: StudentInputs
    optimizer: Optimizer
    dtype: torch.dtype
    step: int
    progress: float
    max_grad_norm: float


class WeightLearner:
    """Takes meta steps for a mixture.

    Args:
        method: how weights are learned.
        mixture: the losses, with the method's policy.
        meta_set: the clean batches.
        interval: optimizer steps from one meta gradient to the next; not asked if the method learns in phases. The
            steps of a trajectory are the last ones before it, those of a window the first ones from it on.
    """

    def __init__(self, method: Method, mixture: Mixture, meta_set: MetaSet, interval: int) -> None:
        self.method = method
        method.objective.bind(replace(mixture.task, label_smoothing=0.0))
        self.mixture = mixture
        self.meta_set = meta_set
        self.interval = interval
        self.steps_taken = 0
        self.last_phase = 0
        self.direction: Params | None = None
        self.steps_left = 0  # that the direction is still for
        trajectory = method.trajectory
        self.recorder = None if trajectory is None else Recorder(trajectory, method.restart_every, interval)

    def check(self, optimizer: Optimizer, warmup: int, max_steps: int, epochs: float) -> None:
        """Refuse a run that cannot learn as asked, before its first step; warn of one in which nothing is learned.

        Raises:
            ValueError: nothing is learned any more when the warm-up is over, it ends within a short run, or as
                `Recorder.check`.
        """
        if not self.method.learns_at(warmup / max_steps):
            raise ValueError(
                f"AMALTrainer: '{self.method.name}' learns weights in the first part of training only "
                f"({self.method.policy.describe()}), and the meta warm-up of {warmup} of {max_steps} steps leaves "
                f"nothing of it. Lower meta_warmup_steps, or begin to use the weights later."
            )
        every = self.method.restart_every
        if every and warmup % every:
            raise ValueError(
                f"AMALTrainer: '{self.method.name}' puts the student back after every {every} steps of the run, and a "
                f"meta warm-up of {warmup} steps would end within such a short run. Set meta_warmup_steps to a "
                f"multiple of {every}, or leave it out."
            )
        if self.recorder is not None:
            self.recorder.check(optimizer, max_steps - warmup)
        if why := self._never_learns(warmup, max_steps, epochs):
            logger.warning(
                "'%s' will learn nothing in this run: %s. All weights stay those of the initial mixture.",
                self.method.name,
                why,
            )

    def _never_learns(self, warmup: int, max_steps: int, epochs: float) -> str | None:
        """Why a run is over before anything is learned; `None` if it is not."""
        phase = self.method.phase_epochs
        if phase and epochs <= phase:
            return f"its first phase comes after {phase} epochs, and there are {epochs:g}"
        if not phase and warmup >= max_steps:
            return f"the meta warm-up of {warmup} steps is as long as the run, {max_steps} steps"
        return None

    def is_due(self, step: int) -> bool:
        """Whether the weights learn before optimizer step `step`, counted from the end of the warm-up."""
        if self.method.phase_epochs or self.recorder is not None or step < 0:
            return False
        return self.measures(step) or self.direction is not None

    def measures(self, step: int) -> bool:
        """Whether they then do so by a new meta gradient, and not along a direction that has been measured."""
        return step % self.interval == 0

    def begin_phase(self, epoch: int) -> bool:
        """Whether a pass over the training set is due now, at the first step of `epoch`; says so once."""
        every = self.method.phase_epochs
        if not every or epoch == self.last_phase or epoch % every:
            return False
        self.last_phase = epoch
        return True

    def learn(self, student: Student, batches: Sequence[Batch], meta_batch: Batch | None) -> MetaReport:
        """One meta step from all micro-batches of an optimizer step, already prepared by the mixture.

        Without a meta batch it goes along the direction of the last one that had one.
        """
        module = self.method.tangent.scope(student.model)
        with undisturbed(student.model):
            problem = self._problem(student, module, batches)
            if meta_batch is None:
                direction = placed(self.direction or {}, movable_parameters(module))
                report = MetaReport(None, judge(self.method, problem, direction))
            else:
                meta_loss = self._meta_loss_on(student, module, meta_batch)
                direction, report = meta_step(self.method, problem, meta_loss)
                self.steps_taken += 1
                self.steps_left = min(self.method.window, self.interval)
        self.steps_left -= 1
        self.direction = direction if self.steps_left else None
        return report

    def restorer(self, batches: Sequence[Batch]) -> Callable[[], None]:
        """A function that takes back the meta step to come, in all that the policies learn from it.

        A direction stays: the student has not moved, and a window's next steps need one.
        """
        steps, changes = self.steps_taken, self.method.batch_policy
        parts = [self.mixture.policy.restorer(torch.cat([self.mixture.ids(batch) for batch in batches]))]
        if changes is not None:
            parts.append(restorer(changes))

        def restore() -> None:
            self.steps_taken = steps
            for part in parts:
                part()

        return restore

    def before_step(self, student: Student, warmup: int, prepare: Callable[[Batch], Batch]) -> MetaReport | None:
        """Before an optimizer step: learn from the steps that have just ended, and record the one that begins.

        Args:
            student: as it stands.
            warmup: steps of the run that come before the first recorded one.
            prepare: brings this process's part of a batch to the student's device.
        """
        recorder = self.recorder
        if recorder is None or student.step < warmup:
            return None
        if not self.method.learns_at(student.progress):
            recorder.clear()
            return None
        recorder.follow(student.optimizer)
        report = None
        if recorder.full:
            report = self.learn_from_trajectory(recorder, student, prepare(self.next_meta_batch()))
            recorder.clear()
        recorder.restart(student.optimizer, student.step)
        recorder.begin_step(student.optimizer, student.step - warmup)
        return report

    def learn_from_trajectory(self, recorder: Recorder, student: Student, meta_batch: Batch) -> MetaReport:
        """One update of the policy from all recorded steps, walked back."""
        trained = {id(p) for group in student.optimizer.param_groups for p in group["params"]}
        params = {name: p for name, p in movable_parameters(student.model).items() if id(p) in trained}
        with undisturbed(student.model):
            run = _run(student, student.model, meta_batch)
            value, gradient = meta_gradient(params, lambda: self._meta_loss(run(), meta_batch))
        device = next(iter(params.values())).device
        steps = recorder.replay(self.mixture, lambda batch: student.model(**student.inputs.plain(batch)), device)
        was_training = student.model.training
        student.model.train()  # as when the steps were taken
        with differentiable_checkpointing(student.model), kept_buffers(student.model):
            observation, slopes = walk_back(
                recorder.trajectory,
                student.optimizer,
                params,
                steps,
                gradient,
                student.dtype,
                student.max_grad_norm,
            )
        student.model.train(was_training)
        slopes, finite = scaled(slopes)
        self.mixture.policy.update(observation, slopes)
        self.steps_taken += 1
        return MetaReport(value, total((~finite).sum()))

    def _problem(self, student: Student, module: nn.Module, batches: Sequence[Batch]) -> Problem:
        evaluations = [self._evaluation(student, module, batch) for batch in batches]
        ids = torch.cat([self.mixture.ids(batch) for batch in batches])
        return Problem(
            module=module,
            optimizer=student.optimizer,
            learning_rate=max(group["lr"] for group in student.optimizer.param_groups),
            evaluate=lambda: Evaluation.joined([evaluate() for evaluate in evaluations]),
            ids=ids,
            examples=total_count(sum(len(ids_of(batch)) for batch in batches), ids.device),
            present=self.mixture.present_of(batches),
            progress=student.progress,
            dtype=student.dtype,
            differentiate=differentiation(student.model),
        )

    def _meta_loss_on(self, student: Student, module: nn.Module, batch: Batch) -> MetaLoss:
        run = _run(student, module, batch)

        def meta_loss() -> Tensor:
            with quick_backward(student.model, student.dtype):
                return self._meta_loss(run(), batch)

        return meta_loss

    def _evaluation(self, student: Student, module: nn.Module, batch: Batch) -> Evaluate:
        """All losses of a batch as it is trained on, at every call."""
        if student.inputs.batch_policy is None:
            run = _run(student, module, batch)
            return lambda: self.mixture.evaluate(run(), batch)

        def evaluate() -> Evaluation:
            inputs, targets = student.inputs.trained(batch, student.step)
            return self.mixture.evaluate(student.model(**inputs), batch, targets)

        return evaluate

    def _meta_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """This process's part of the objective, a mean over the meta batch; the policy sees the outputs too."""
        self.mixture.show_clean(outputs, batch)
        return kept(self.method.objective(outputs, batch), batch).sum() / self.meta_set.batch_size

    def not_yet_seen(self) -> Iterator[Batch]:
        """Meta batches for `show`: all clean rows that a policy can remember, before its first meta step."""
        if self.steps_taken == 0 and self.mixture.policy.reads_clean_states:
            rows = min(len(self.meta_set.rows), MOST_ROWS)
            yield from (self._meta_batch(number) for number in range(-(-rows // self.meta_set.batch_size)))

    def show(self, student: Student, batch: Batch) -> None:
        """Let the policy see what the student makes of clean rows."""
        with undisturbed(student.model), torch.no_grad():
            self.mixture.show_clean(_outputs(student, student.inputs.plain(batch)), batch)

    def show_rows(self, student: Student, batches: Iterable[Batch]) -> None:
        """Let the policy see what the student makes of training rows; batches prepared, as many on every process."""
        with undisturbed(student.model), torch.no_grad():
            for batch in batches:
                self.mixture.show_rows(_outputs(student, student.inputs.plain(batch)), batch, student.progress)

    def next_meta_batch(self) -> Batch:
        """The meta batch of the next meta step, as the collator made it, the same on all processes."""
        return self._meta_batch(self.steps_taken)

    def _meta_batch(self, number: int) -> Batch:
        return {**self.meta_set.batch(number), META_ROW: torch.tensor(self.meta_set.numbers(number))}

    def state_dict(self) -> dict[str, Any]:
        """Where in the meta set and in the phases the run is, and the trajectory or the window that it is on.

        Called on all processes, which may hold a part of the direction each.
        """
        return {
            "steps_taken": self.steps_taken,
            "last_phase": self.last_phase,
            "recorded": {} if self.recorder is None else self.recorder.state_dict(),
            "direction": {name: whole(value).cpu() for name, value in (self.direction or {}).items()},
            "steps_left": self.steps_left,
            "meta_set": self.meta_set.identity,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; says so if the meta set is another one."""
        self._compare_meta_set(state.get("meta_set", self.meta_set.identity))  # older checkpoints do not say
        self.steps_taken, self.last_phase = state["steps_taken"], state["last_phase"]
        if self.recorder is not None:
            self.recorder.load_state_dict(state["recorded"])
        self.direction, self.steps_left = state["direction"] or None, state["steps_left"]

    def _compare_meta_set(self, written: list[int]) -> None:
        if written != self.meta_set.identity:
            logger.warning(
                "The checkpoint was written with another meta set (%d rows) than that of this run (%d rows). What was "
                "learned from the other one is kept, and the run goes on with this one. If you did not change it, it "
                "was drawn anew: the student may have been trained on rows that are now to judge it. Draw it by a "
                "fixed seed, or set it aside in a file.",
                written[0],
                len(self.meta_set.rows),
            )


def _run(student: Student, module: nn.Module, batch: Batch) -> Callable[[], Any]:
    """Gives the student's outputs for a batch at every call, however the parameters of `module` have changed."""
    inputs = student.inputs.plain(batch)
    if module is student.model:
        return lambda: _outputs(student, inputs)
    return frozen_body(student.model, module, inputs)


def _outputs(student: Student, inputs: dict[str, Any]) -> Any:
    cut_again(student.model)
    return with_logits(student.forward(**inputs))
