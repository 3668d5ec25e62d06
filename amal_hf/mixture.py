"""The student's training loss: several losses, and a weight for every example and loss.

    L = (1/N) Σ_i Σ_k w_ik ℓ_ik        N: examples of the optimizer step, however it is cut into micro-batches and
                                       processes

The one place where the student's losses are weighed and summed.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amal_hf.batch_rows import all_ids_of, ids_of, kept
from amal_hf.clean_probe import CleanRows
from amal_hf.cross_entropy import CrossEntropy
from amal_hf.distillation import Distillation
from amal_hf.example_notes import ExampleNotes
from amal_hf.losses import CustomLoss, JointLoss, Loss
from amal_hf.policies.policy import Independent, Observation, Policy, Signals, Sizes, as_mixture, weights_of
from amal_hf.policies.store import RowStore
from amal_hf.processes import process_count, rows_of_all
from amal_hf.shapes import (
    EXAMPLE_ID,
    META_ROW,
    Batch,
    Evaluation,
    ExampleIds,
    Features,
    Logits,
    LossTable,
    Targets,
)
from amal_hf.student_states import hidden_states
from amal_hf.task import Task, one_class_each
from amal_hf.tokens import with_one_gradient
from amal_hf.top_logits import TopLogits


class Weighed(NamedTuple):
    """A batch's weighed losses.

    Attributes:
        total: scalar with a graph to the student, `Σ_i Σ_k w_ik ℓ_ik` (not yet divided by N).
        losses: `(B, K)`, detached.
        weights: `(B, K)`, detached.
        observation: what the weights were computed from.
    """

    total: Tensor
    losses: LossTable
    weights: LossTable
    observation: Observation


class Mixture:
    """Losses and the policy that weighs them.

    Args:
        losses: K losses; a plain function `(outputs, batch) -> (B,)` is taken as one under its own name.
        policy: where the weights come from.
        task: how the student's logits are read.

    Raises:
        ValueError: no loss at all, or two of the same name.
    """

    def __init__(self, losses: Sequence[Loss | Any], policy: Policy, task: Task) -> None:
        self.losses = [_as_loss(loss) for loss in losses]
        self.policy = policy
        self.names = [name for loss in self.losses for name in loss.names]
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"losses must be at least one, each with a name of its own; got {self.names}. Pass `name=` to tell "
                f"them apart."
            )
        self.bind(task)

    def bind(self, task: Task) -> None:
        """Read the student's logits so from now on."""
        self.task = task
        for loss in self.losses:
            loss.bind(task)

    @property
    def distillations(self) -> list[Distillation]:
        """The losses that compare with a teacher."""
        return [loss for loss in self.losses if isinstance(loss, Distillation)]

    @property
    def joint(self) -> list[JointLoss]:
        """The losses with a model of their own."""
        return [loss for loss in self.losses if isinstance(loss, JointLoss)]

    @property
    def _by_column(self) -> list[Loss]:
        """K: the loss of each column."""
        return [loss for loss in self.losses for _ in loss.names]

    @property
    def groups(self) -> dict[str, int]:
        """How many columns each loss has, by its name."""
        return {loss.name: len(loss.names) for loss in self.losses}

    @property
    def columns(self) -> list[str]:
        """Dataset columns that the losses read beyond the student's own inputs."""
        return sorted({column for loss in self.losses for column in loss.columns})

    def initial(self, shares: list[float] | None) -> Tensor:
        """The mixture a run starts from, `(K,)`: a share for each loss, the same for all its columns.

        It sums to what the shares do. Of a loss of many columns an example mostly has few: dividing the share among
        all of them would leave rules next to nothing beside a label.
        """
        counts = torch.tensor([len(loss.names) for loss in self.losses])
        given = as_mixture(shares, len(self.losses))
        columns = given.repeat_interleave(counts)
        return columns if len(columns) == len(given) else columns * (given.sum() / columns.sum())

    def reset(
        self,
        examples: int | None,
        initial: Tensor,
        classes: int = 0,
        states: tuple[int, ...] = (),
        folder: str | None = None,
    ) -> None:
        """Start a run from the mixture `initial`, `(K,)`.

        Args:
            examples: training rows; `None` for a stream.
            initial: weights to begin with.
            classes: of the student.
            states: widths of its hidden states.
            folder: where the examples' weights are kept, rather than in memory.
        """
        for loss in self.joint:
            loss.reset()
        columns = self._by_column
        sizes = Sizes(
            losses=len(columns),
            teachers=tuple(column for column, loss in enumerate(columns) if isinstance(loss, Distillation)),
            examples=examples,
            classes=classes,
            states=states,
            folder=folder,
            pulls=tuple(loss.pull for loss in columns),
            exponents=tuple(loss.exponent for loss in columns),
            names=tuple(self.names),
            labels_alone=len(columns) == 1 and reads_labels(self.losses[0]),
            independent=independent(columns),
        )
        self.policy.reset(sizes, initial)
        self.record = self.policy.rows() or RowStore(examples, torch.full((len(self.names),), float("nan")), folder)
        self.notes = ExampleNotes(examples, self.groups, {loss.name: loss.logits_key for loss in self.distillations})
        self._used: list[tuple[ExampleIds, LossTable]] = []
        self._seen: list[Features] = []

    def prepare(self, batch: Batch) -> dict[str, Any]:
        """The training batch with all that depends on it alone, such as teachers' logits.

        Raises:
            ValueError: weights are kept by example, and the batch does not say which examples it has.
        """
        if self.policy.needs_ids and EXAMPLE_ID not in batch:
            raise ValueError(
                f"{type(self.policy).__name__} keeps weights by example, and a training batch has no column "
                f"'{EXAMPLE_ID}'. A stream, or a data loader of your own, must bring unique whole numbers under this "
                f"name; or use a policy that reads the examples: amal(LossNetwork())."
            )
        return {**batch, **{key: value for loss in self.losses for key, value in loss.prepare(batch).items()}}

    def evaluate(self, outputs: Any, batch: Batch, targets: Targets | None = None, reads: bool = True) -> Evaluation:
        """All losses, `(B, K)`, with the graph of the outputs, and what the policy makes of the rows that count.

        Args:
            outputs: the student's.
            batch: prepared.
            targets: what to compare with, where a batch policy has changed what the student saw; the batch by default.
            reads: whether the policy is asked.
        """
        losses = self._table(outputs, batch) if targets is None else self._shared_table(outputs, targets)
        teachers = tuple(batch[loss.logits_key] for loss in self.distillations)
        states, ask = hidden_states(outputs, batch), partial(self.ask, batch=batch)
        present = partial(self._all_present, batch)
        signals = Signals(losses.detach(), outputs.logits.detach(), teachers, batch, self.task, states, ask, present)
        return Evaluation(kept(losses, batch), kept(self._features(signals, reads), batch))

    def _features(self, signals: Signals, reads: bool) -> Features:
        return self.policy.observe(signals) if reads else signals.losses.new_zeros(len(signals.losses), 0)

    def show_clean(self, outputs: Any, batch: Batch) -> None:
        """Let the policy see what the student makes of a meta batch, where it gives one class for each row."""
        states, labels = hidden_states(outputs, batch), batch.get("labels")
        if not self.policy.reads_clean_states or not states or labels is None:
            return
        if len(states[-1]) != len(labels) or not one_class_each(outputs.logits, labels):
            return
        parts = (kept(part, batch) for part in (batch[META_ROW], states[-1], labels))
        self.policy.note_clean(CleanRows(*(rows_of_all(part) for part in parts)))

    def show_rows(self, outputs: Any, batch: Batch, progress: float) -> None:
        """Let the policy see what the student makes of training rows, outside of a step."""
        self.policy.note_rows(self._observation(batch, self.evaluate(outputs, batch).features, progress))

    def show_labels(self, batches: Iterable[Batch], most: int) -> None:
        """Let the policy see training labels, and what the teacher that has not seen them makes of these rows.

        Args:
            batches: as many on every process, on the student's device.
            most: rows to show, of all processes; there are more where tokens are rows.
        """
        teacher = next((loss for loss in self.distillations if loss.is_independent), None)
        if teacher is None:
            return
        shown = [labelled for batch in batches if (labelled := self._labelled(batch, teacher)) is not None]
        if shown:
            own = -(-most // process_count())
            ids, logits, labels = (rows_of_all(torch.cat(parts)[:own]) for parts in zip(*shown, strict=True))
            order = ids.argsort(stable=True)  # the same, however many processes there are
            self.policy.note_labels(logits[order], labels[order])

    def _labelled(self, batch: Batch, teacher: Distillation) -> tuple[ExampleIds, Logits, Tensor] | None:
        """Ids `(B,)`, logits `(B, C)` of a teacher, labels `(B,)`; `None` where rows have not one class each."""
        ids, answered = self.ids(batch), self._rows({**batch, **teacher.prepare(batch)})
        logits, labels = answered[teacher.logits_key], answered.get("labels")
        if labels is None or not one_class_each(logits, labels):
            return None
        return ids, kept(logits, answered), kept(labels, answered)

    def _rows(self, batch: Batch) -> Batch:
        """A prepared batch as it is for the rows that are weighed: here these are examples."""
        return batch

    def ask(self, logits: Logits | TopLogits, batch: Batch) -> LossTable:
        """All losses, `(B, K)`, were these logits the student's and labels not smoothed.

        0 for what depends on more than logits.
        """
        # The largest logits alone do not say what any class would cost.
        known = [None if isinstance(logits, TopLogits) else loss.of_teacher(logits, batch) for loss in self._plain()]
        ids = all_ids_of(batch)
        columns = [
            ids.new_zeros(len(ids), len(loss.names), dtype=torch.float32)
            if cost is None
            else cost.reshape(len(ids), -1)
            for loss, cost in zip(self.losses, known, strict=True)
        ]
        return torch.cat(columns, 1).detach()

    def _plain(self) -> Iterator[Loss]:
        """The losses with labels as they stand: a probability is asked for, which a smoothed loss is not."""
        for loss in map(copy, self.losses):
            loss.bind(replace(self.task, label_smoothing=0.0))
            yield loss

    def _table(self, outputs: Any, batch: Batch) -> LossTable:
        seen = with_one_gradient(outputs) if len(self.losses) > 1 else outputs
        return torch.cat([loss(seen, batch).reshape(-1, len(loss.names)) for loss in self.losses], 1)

    def _shared_table(self, outputs: Any, targets: Targets) -> LossTable:
        return torch.stack([share[:, None] * self._table(outputs, batch) for batch, share in targets]).sum(0)

    def weigh(self, outputs: Any, batch: Batch, progress: float, targets: Targets | None = None) -> Weighed:
        """The weighed loss of one micro-batch; remembers the weights that were used, and what was seen."""
        reads = self.policy.reads_at(progress)
        losses, features = self.evaluate(outputs, batch, targets, reads)
        observation = self._observation(batch, features, progress)
        weights = weights_of(self.policy, observation)
        if EXAMPLE_ID in batch and self.record is not self.policy.rows():
            self.remember(batch, weights, observation.present)
        # What a student makes of a changed example says nothing of the example.
        if EXAMPLE_ID in batch and targets is None:
            self.note(outputs, batch, losses.detach(), observation.present)
        if self.policy.notes_steps and reads:
            self._seen.append(_known(observation))
        total = (weights * losses).sum()
        for loss in self.joint:
            total = total + kept(loss.own_objective(batch), batch).sum()
        return Weighed(total, losses.detach(), weights, observation)

    def _observation(self, batch: Batch, features: Features, progress: float) -> Observation:
        return Observation(self.ids(batch), torch.nan_to_num(features), progress, self.present_of([batch]))

    def ids(self, batch: Batch) -> ExampleIds:
        """The example of every row of `evaluate`."""
        return ids_of(batch)

    def remember(self, batch: Batch, weights: LossTable, present: Tensor | None) -> None:
        """Keep the weights that were used, `(B, K)`, until the step is over."""
        del present  # of a loss that an example does not have the weight is 0
        self._used.append((ids_of(batch), weights))

    def note(self, outputs: Any, batch: Batch, losses: LossTable, present: Tensor | None) -> None:
        """Keep what was seen of the examples, for whoever looks at the run."""
        if self.notes.noting:
            judged = kept(self.notes.judge(outputs.logits.detach(), batch), batch)
            self.notes.write(ids_of(batch), losses, present, judged)

    def finish_step(self) -> None:
        """An optimizer step of the student is over: every process records what all have used and seen."""
        for loss in self.joint:
            loss.finish_step()
        if self._used:
            ids, weights = (rows_of_all(torch.cat(parts)) for parts in zip(*self._used, strict=True))
            self.record.write(ids, weights)
            self._used.clear()
        if self._seen:
            # One micro-batch after the other, in the order in which one process alone would have them.
            self.policy.note_step(torch.cat([rows_of_all(part) for part in self._seen]))
            self._seen.clear()

    def present_of(self, batches: Sequence[Batch]) -> Tensor | None:
        """`(B, K)`, bool: which losses the examples of all batches have; `None` if all have all."""
        parts = [self._present(batch) for batch in batches]
        masks = [part for part in parts if part is not None]
        return torch.cat(masks) if masks else None

    def _present(self, batch: Batch) -> Tensor | None:
        present = self._all_present(batch)
        return None if present is None else kept(present, batch)

    def _all_present(self, batch: Batch) -> Tensor | None:
        masks = [loss.present(batch) for loss in self.losses]
        known = next((mask for mask in masks if mask is not None), None)
        if known is None:
            return None
        pairs = zip(self.losses, masks, strict=True)
        columns = [known.new_ones(len(known), len(s.names)) if m is None else m for s, m in pairs]
        return torch.cat(columns, 1)

    def state_dict(self) -> dict[str, Any]:
        """All that was learned and recorded."""
        own = {} if self.record is self.policy.rows() else self.record.state_dict()
        inner = {loss.name: loss.state_dict() for loss in self.joint}
        notes = self.notes.state_dict()
        return {"policy": self.policy.state_dict(), "record": own, "notes": notes, "losses": inner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` into a mixture that was `reset` for the same losses and data."""
        self.policy.load_state_dict(state["policy"])
        for loss in self.joint:
            loss.load_state_dict(state["losses"][loss.name])
        if state["record"]:
            self.record.load_state_dict(state["record"])
        self.notes.load_state_dict(state["notes"])


def _known(observation: Observation) -> Features:
    """Features, NaN for examples without any loss; picking rows out would wait for the device."""
    if observation.present is None:
        return observation.features
    return observation.features.where(observation.present.any(1, keepdim=True), torch.nan)


def independent(losses: Sequence[Loss]) -> Independent | None:
    """The labels and the teacher that has not seen them, where there is one of each."""
    labels = [k for k, loss in enumerate(losses) if reads_labels(loss)]
    teachers = [(k, loss) for k, loss in enumerate(losses) if isinstance(loss, Distillation) and loss.is_independent]
    if len(labels) != 1 or len(teachers) != 1:
        return None
    place, teacher = teachers[0]
    return Independent(labels[0], place, teacher.calibrated_at)


def reads_labels(loss: Loss) -> bool:
    """Whether it is a loss to the rows' labels, and not to another column of the kind."""
    return isinstance(loss, CrossEntropy) and loss.column == "labels"


def _as_loss(loss: Loss | Any) -> Loss:
    if isinstance(loss, Loss):
        return loss
    name = getattr(loss, "__name__", None)
    if not callable(loss) or name is None or isinstance(loss, type):
        raise TypeError(
            f"losses must hold losses or functions (outputs, batch) -> (B,), got {loss!r}. A class is "
            f"called, CrossEntropy(); what has no name is wrapped, CustomLoss(function, name)."
        )
    return CustomLoss(loss, name)
