"""Policies: where the weight of every example and loss comes from."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from amal_hf.clean_probe import CleanRows
from amal_hf.policies.store import RowStore
from amal_hf.processes import total
from amal_hf.shapes import Batch, ExampleIds, Features, Logits, LossTable, PerExample
from amal_hf.task import Task
from amal_hf.top_logits import TopLogits


class Independent(NamedTuple):
    """Labels, and a teacher that has not seen them.

    Attributes:
        label, teacher: the columns of their losses.
        temperature: at which the teacher's probabilities are right, where that is known.
    """

    label: int
    teacher: int
    temperature: float | None = None


class Sizes(NamedTuple):
    """What a policy is built for.

    Attributes:
        losses: K.
        teachers: which of the losses compare with a teacher, by their columns.
        examples: rows of the training set; `None` for a stream of unknown length.
        classes: of the student, C.
        states: widths of the student's hidden states, one a layer.
        folder: where rows of weights are kept that should not be in memory; see `RowStore`.
        pulls: K, `Loss.pull` of each; all one by default.
        exponents: K, `Loss.exponent` of each; all zero by default.
        names: of the losses, where they are known.
        labels_alone: whether the only loss is that of the labels.
        independent: the labels and a teacher that has not seen them, where there is one of each.
    """

    losses: int
    teachers: tuple[int, ...]
    examples: int | None
    classes: int = 0
    states: tuple[int, ...] = ()
    folder: str | None = None
    pulls: tuple[float, ...] = ()
    exponents: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    labels_alone: bool = False
    independent: Independent | None = None


Ask: TypeAlias = Callable[[Logits | TopLogits], LossTable]
"""Logits `(B, C)` to losses `(B, K)`."""


def _nobody(logits: Logits | TopLogits) -> LossTable:
    raise RuntimeError("Signals: made without losses that could be asked of other logits. Pass `ask`.")


def _all_there() -> Tensor | None:
    return None


class Signals(NamedTuple):
    """Everything about a batch that a policy may turn into features; detached.

    `hidden_states` has the student's hidden states `(B, D)`, averaged over tokens, the embeddings' first (of an
    encoder-decoder those of the encoder, then those of the decoder), for policies with `needs_hidden_states`; `ask`
    says what all losses would be, `(B, K)`, were these logits the student's and labels not smoothed: 0 where that
    cannot be said; `present` which losses the examples have, `(B, K)`, `None` for all.
    """

    losses: LossTable
    logits: Logits
    teacher_logits: tuple[Logits | TopLogits, ...]
    batch: Batch
    task: Task
    hidden_states: tuple[Tensor, ...] = ()
    ask: Ask = _nobody
    present: Callable[[], Tensor | None] = _all_there


class Observation(NamedTuple):
    """What weights are computed from.

    Attributes:
        ids: `(B,)` which examples these are.
        features: `(B, F)` what `Policy.observe` made of them.
        progress: share of the training that is done, in [0, 1]; `(B,)` where the examples are of several steps.
        present: `(B, K)`, bool: which losses an example has at all, as a rule may abstain; `None` for all.
    """

    ids: ExampleIds
    features: Features
    progress: float | Tensor
    present: Tensor | None = None

    def progress_of(self, like: Tensor) -> Tensor:
        """`(B, 1)`: the progress of every example, of the type and on the device of `like`."""
        if isinstance(self.progress, Tensor):
            return self.progress.to(like).expand(len(self.ids))[:, None]
        return like.new_full((len(self.ids), 1), self.progress)  # a number that is sent there would be waited for


class Policy(nn.Module, ABC):
    """Weights for examples, and how they learn from slopes.

    All that a policy has learned is in its `state_dict`, so that an interrupted run goes on where it stopped.

    Attributes:
        learns: whether the policy wants slopes; one that does not needs no meta set.
        keeps_mixture: whether the weights are the run's initial mixture all along, so that there is nothing to show.
        needs_ids: whether weights belong to examples by id, so that a stream has to bring a column of ids.
        needs_hidden_states: whether `observe` reads the student's hidden states.
        needs_source_gain: whether `observe` reads what the targets cost a student that sees no source.
        needs_one_class: whether it is for examples of one class each, so that others are refused.
        draws: whether `rates` may want rows drawn.
        notes_steps: whether `note_step` wants to be told of the examples of every step.
        reads_clean_states: whether `note_clean` wants to be told of clean rows, where a student can show its states.
        holds_for_one_step: whether weights are of use only to the step that they were learned at, so that every step
            must be judged.
        interval: of how many optimizer steps one is enough to be judged, where neither the method nor
            `AMALArguments.meta_interval` says otherwise.
        learning_rate: how far one update goes, in units of slopes whose mean magnitude is one.
        citation: BibTeX of a source of its own, beside that of the method.
    """

    learns: bool = True
    keeps_mixture: bool = False
    needs_ids: bool = False
    needs_hidden_states: bool = False
    needs_source_gain: bool = False
    needs_one_class: bool = False
    draws: bool = False
    notes_steps: bool = False
    reads_clean_states: bool = False
    holds_for_one_step: bool = False
    interval: int = 1
    learning_rate: float = 0.0
    citation: str = ""

    @property
    def sums_to_one(self) -> bool:
        """Whether an example's weights do, on average at least, whatever the mixture sums to."""
        return False

    @abstractmethod
    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """Start a run: forget everything, begin at the mixture `initial`, `(K,)`. Draws no global random number."""

    def observe(self, signals: Signals) -> Features:
        """What the policy looks at, `(B, F)`, detached. Nothing by default."""
        return signals.losses.new_zeros(len(signals.losses), 0)

    @abstractmethod
    def weights(self, observation: Observation) -> LossTable:
        """The weights `w_ik`, `(B, K)`, none negative.

        They carry a graph to the policy's own parameters, if it has any.
        """

    def update(self, observation: Observation, slopes: LossTable) -> None:
        """Move the weights towards the losses with positive slope. Nothing by default, where nothing is learned.

        Args:
            observation: this process's examples of the whole optimizer step. All processes must come to the same
                policy, though each sees only its own (`processes.py`).
            slopes: `(B, K)`, scaled to mean magnitude one; 0 for examples that are to be left alone.
        """
        del observation, slopes

    def note_clean(self, rows: CleanRows) -> None:
        """Take note of what the student makes of clean rows, before each update and once for all. Nothing by default.

        Args:
            rows: the meta batch of all processes.
        """
        del rows

    def note_step(self, features: Features) -> None:
        """Take note of all examples of an optimizer step that is over. Nothing by default.

        Args:
            features: `(N, F)`, of the examples of all processes; NaN for those without any loss.
        """
        del features

    @property
    def rows_wanted(self) -> int:
        """Of how many training rows `note_labels` is to be told before it learns, or is used; 0 once it was."""
        return 0

    def note_labels(self, logits: Logits, labels: PerExample) -> None:
        """Take note of labels, and of what a teacher makes of these rows that has not seen them. Nothing by default.

        Args:
            logits: `(N, C)`, the teacher's on training rows drawn at random, of all processes.
            labels: `(N,)`, class numbers, negative for none.
        """
        del logits, labels

    def figures(self) -> dict[str, float]:
        """What is logged beside the weights, by name. Nothing by default."""
        return {}

    def learns_at(self, progress: float) -> bool:
        """Whether there is still something to learn when this share of training is done."""
        del progress
        return self.learns

    def reads_at(self, progress: float) -> bool:
        """Whether `observe` is asked when this share of training is done; where not, features are `(B, 0)`."""
        del progress
        return True

    def rates(self, progress: float) -> PerExample | None:
        """How often each training row is to be drawn in the pass that begins now, `(N,)`, beside the others.

        `None`, the default, for each row once. Asked at the beginning of every pass by all processes.

        Args:
            progress: share of training that was done when the pass began, also where a run goes on within it.
        """
        del progress
        return None

    def wants_rows_at(self, progress: float) -> bool:
        """Whether `note_rows` is to be told of all training rows before `rates` is asked at this progress."""
        del progress
        return False

    def note_rows(self, observation: Observation) -> None:
        """Take note of training rows as they look now, this process's part of a batch. Nothing by default."""
        del observation

    def restorer(self, ids: ExampleIds) -> Callable[[], None]:
        """A function that puts back what the policy knows now, should an update for the examples `ids` not count."""
        del ids
        return restorer(self)

    def describe(self) -> str:
        """What one must know to make a policy of the same kind; kept with one that is saved."""
        return type(self).__name__

    @property
    def skips_step(self) -> bool:
        """Whether the student is to be left alone at this step, as nothing in it is worth following."""
        return False

    def rows(self) -> RowStore | None:
        """The weights of all examples, where the policy keeps them as such; then nobody else has to."""
        return None


def restorer(module: nn.Module) -> Callable[[], None]:
    """A function that puts back the state that a module has now."""
    kept = copy.deepcopy(module.state_dict())

    def restore() -> None:
        module.load_state_dict(kept)

    return restore


def of_unit_magnitude(slopes: LossTable) -> LossTable:
    """Slopes of mean magnitude one over all processes, `(B, K)`: the unit in which policies' learning rates are given.

    A loss that an example does not have has the slope 0, and does not count for the mean.
    """
    magnitude = total(slopes.abs().sum()) / total(slopes.count_nonzero()).clamp(min=1)
    return slopes / magnitude.clamp(min=torch.finfo(slopes.dtype).tiny)


def weights_of(policy: Policy, observation: Observation) -> LossTable:
    """A policy's weights, detached; none for a loss that an example does not have."""
    weights = policy.weights(observation).detach()
    return weights if observation.present is None else weights * observation.present


def among_present(mixture: Tensor, observation: Observation) -> LossTable:
    """A mixture `(K,)` once for each example, `(B, K)`; what is missing leaves its share to what is there."""
    rows = mixture.to(observation.features.device).expand(len(observation.ids), -1)
    if observation.present is None:
        return rows
    return sharing(rows * observation.present, rows)


def sharing(weights: LossTable, whole: LossTable) -> LossTable:
    """Weights `(B, K)`, row by row scaled to the sum that `whole` has there; rows of zeros stay."""
    held = weights.sum(1, keepdim=True)
    return weights * torch.where(held > 0, whole.sum(1, keepdim=True) / held, 0.0)


def as_mixture(initial: Tensor | list[float] | None, losses: int) -> Tensor:
    """The mixture a run starts from, `(K,)`: as given, or equal shares that sum to one.

    Raises:
        ValueError: not one finite, non-negative number for each loss.
    """
    if initial is None:
        return torch.full((losses,), 1 / losses)
    mixture = torch.as_tensor(initial, dtype=torch.float32)
    if (
        mixture.shape != (losses,)
        or not bool(torch.isfinite(mixture).all())
        or bool((mixture < 0).any())
        or not mixture.sum() > 0
    ):
        raise ValueError(
            f"The initial mixture (AMALArguments.loss_weights, or a policy's own) must hold {losses} finite numbers "
            f"of at least 0, one for each loss in their order and not all zero; got {mixture.tolist()}."
        )
    return mixture
