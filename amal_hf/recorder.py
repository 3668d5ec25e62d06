"""What a trajectory has to know of the steps that the student takes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from amal_hf.batch_rows import ids_of
from amal_hf.loggers import logger_of
from amal_hf.mixture import Mixture, Weighed
from amal_hf.policies.policy import Observation
from amal_hf.processes import process_count, process_rank, total_count, values_of_all
from amal_hf.random_numbers import put_back_on, set_randomness
from amal_hf.shapes import Batch, Evaluation
from amal_hf.steps import Snapshot, Step, joined, put, raw, snapshot, trained_parameters
from amal_hf.top_logits import TopLogits
from amal_hf.trajectories import Trajectory, check_optimizer


logger = logger_of(__name__)


@dataclass
class RecordedStep:
    """One optimizer step: its micro-batches, each with the random state that its forward pass began with."""

    learning_rates: list[float]
    batches: list[Batch] = field(default_factory=list)
    randomness: list[list[Tensor]] = field(default_factory=list)
    weighed: list[Weighed] = field(default_factory=list)


class Recorder:
    """Keeps the steps since the weights last learned.

    Args:
        trajectory: how many there are to keep, and the way back to where they began.
        restart_every: steps after which the student begins again where it began; 0 for never.
        interval: steps from one trajectory's end to the next; the last ones before each end are recorded.
    """

    def __init__(self, trajectory: Trajectory, restart_every: int, interval: int) -> None:
        self.trajectory = trajectory
        self.interval = interval
        self.restart_every = restart_every
        self.steps: list[RecordedStep] = []
        self.start: Snapshot | None = None
        self.trained: list[int] | None = None
        self.clear()  # a trajectory of another run may have stopped half way

    @property
    def full(self) -> bool:
        """Whether all steps of a trajectory have been taken."""
        return len(self.steps) == self.trajectory.steps

    def check(self, optimizer: Optimizer, max_steps: int) -> None:
        """Refuse what there is no way back from, before the first step.

        Raises:
            ValueError: an optimizer that cannot be differentiated or reversed, or a run that is too short.
        """
        check_optimizer(optimizer, self.trajectory)
        if max_steps <= self.interval:
            raise ValueError(
                f"Trajectory: the weights learn after every {self.interval} student steps, and this run has only "
                f"{max_steps} in all. Train for longer, or use Trajectory(steps=...) with fewer."
            )

    def follow(self, optimizer: Optimizer) -> None:
        """Begin a new trajectory where other parameters are trained than before: the way back would miss them.

        Raises:
            ValueError: the student is to begin again where it began, as one that trains these.
        """
        trained = [id(p) for p in trained_parameters(raw(optimizer))]
        if trained != self.trained and self.trained is not None:
            if self.start is not None:
                raise ValueError(
                    f"Trajectory: layers of the student were frozen or set free in the run, and it is put back after "
                    f"every {self.restart_every} steps. Do so before training, or use a method without restarts."
                )
            self.clear()
        self.trained = trained

    def restart(self, optimizer: Optimizer, step: int) -> None:
        """Put the student back where it began, if that is due before optimizer step `step` of the run."""
        if not self.restart_every:
            return
        if self.start is None:
            self.start = snapshot(raw(optimizer))
        elif step % self.restart_every == 0:
            put(raw(optimizer), self.start)

    def begin_step(self, optimizer: Optimizer, step: int) -> None:
        """Optimizer step `step` begins, counted from the first that may be recorded."""
        place = step % self.interval - (self.interval - self.trajectory.steps)
        # A run that goes on from a checkpoint may lack the beginning of a trajectory, and then waits for the next.
        if place < 0 or place != len(self.steps):
            return
        optimizer = raw(optimizer)
        self.trajectory.rewind.record(optimizer, len(self.steps), self.trajectory.steps)
        self.steps.append(RecordedStep([group["lr"] for group in optimizer.param_groups]))

    def add(self, batch: Batch, randomness: list[Tensor], weighed: Weighed) -> None:
        """A micro-batch of the present step has been through the student."""
        step = self.steps[-1]
        step.batches.append(batch)
        step.randomness.append(randomness)
        step.weighed.append(weighed._replace(total=torch.empty(0)))  # without the graph

    def clear(self) -> None:
        """Begin a new trajectory with the next step."""
        self.steps.clear()
        self.trajectory.rewind.clear()

    def state_dict(self) -> dict[str, Any]:
        """A trajectory that has not ended, for a checkpoint: as large as the copies that it holds.

        Called on all processes, as each has recorded examples of its own.
        """
        return {
            "start": None if self.start is None else self.start._asdict(),
            "rewind": self.trajectory.rewind.state_dict(),
            "steps": values_of_all([_as_tensors(step) for step in self.steps]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.start = None if state["start"] is None else Snapshot(**state["start"])
        if len(state["steps"]) != process_count():
            logger.warning(
                "The checkpoint was written by %d processes and this run has %d: the trajectory that it was on cannot "
                "be cut anew, and begins again with the next step.",
                len(state["steps"]),
                process_count(),
            )
            return
        self.trajectory.rewind.load_state_dict(state["rewind"])
        self.steps = [_from_tensors(step) for step in state["steps"][process_rank()]]

    def replay(self, mixture: Mixture, run: Callable[[Batch], Any], device: torch.device) -> list[Step]:
        """The steps as the walk back wants them.

        Args:
            mixture: gives the losses.
            run: the student's outputs for a batch.
            device: of the student; what comes from a checkpoint is on the CPU.
        """
        return [_replayed(step, mixture, run, device) for step in self.steps]


def _replayed(step: RecordedStep, mixture: Mixture, run: Callable[[Batch], Any], device: torch.device) -> Step:
    batches = [{name: _moved(value, device) for name, value in batch.items()} for batch in step.batches]

    def evaluate() -> Evaluation:
        parts = []
        for batch, randomness in zip(batches, step.randomness, strict=True):
            with put_back_on(device):
                set_randomness(randomness, device)
                parts.append(mixture.evaluate(run(batch), batch))
        return Evaluation.joined(parts)

    weights = torch.cat([weighed.weights for weighed in step.weighed]).to(device)
    seen = [Observation(*(_moved(part, device) for part in weighed.observation)) for weighed in step.weighed]
    examples = total_count(sum(len(ids_of(batch)) for batch in batches), device)
    return Step(evaluate, weights, joined(seen), step.learning_rates, examples)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, TopLogits):
        return TopLogits(*(part.to(device) for part in value))
    return value.to(device) if isinstance(value, Tensor) else value


def _as_tensors(step: RecordedStep) -> dict[str, Any]:
    weighed = [{**w._asdict(), "observation": w.observation._asdict()} for w in step.weighed]
    # Named tuples are classes, and a checkpoint is read without any.
    batches = [
        {name: value._asdict() if isinstance(value, TopLogits) else value for name, value in batch.items()}
        for batch in step.batches
    ]
    return {
        "learning_rates": step.learning_rates,
        "batches": batches,
        "randomness": step.randomness,
        "weighed": weighed,
    }


def _from_tensors(state: dict[str, Any]) -> RecordedStep:
    weighed = [Weighed(**{**w, "observation": Observation(**w["observation"])}) for w in state["weighed"]]
    batches = [
        {name: TopLogits(**value) if isinstance(value, dict) else value for name, value in batch.items()}
        for batch in state["batches"]
    ]
    return RecordedStep(**{**state, "weighed": weighed, "batches": batches})
