"""The student's training loss: several losses, and a weight for every example and loss.

    L = (1/N) Σ_i Σ_k w_ik ℓ_ik        N: examples of the optimizer step, however it is cut into micro-batches and
    processes

The one place where losses are weighed and summed.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amal_hf.losses import IGNORED, CrossEntropy, CustomLoss, Distillation, Loss, Task
from amal_hf.policies.policy import Observation, Policy, Signals, Sizes
from amal_hf.policies.store import RowStore
from amal_hf.shapes import EXAMPLE_ID, Batch, Evaluation, ExampleIds, LossTable


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
        self.task = task
        self.names = [loss.name for loss in self.losses]
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"losses must be at least one, each with a name of its own; got {self.names}. Pass `name=` to tell "
                f"them apart."
            )
        for loss in self.losses:
            loss.bind(task)

    @property
    def distillations(self) -> list[Distillation]:
        """The losses that compare with a teacher."""
        return [loss for loss in self.losses if isinstance(loss, Distillation)]

    @property
    def columns(self) -> list[str]:
        """Dataset columns that the losses read beyond the student's own inputs."""
        return sorted({column for loss in self.losses for column in loss.columns})

    def reset(self, examples: int | None, initial: Tensor, labels: int = 0, states: tuple[int, ...] = ()) -> None:
        """Start a run from the mixture `initial`, `(K,)`.

        Args:
            examples: training rows; `None` for a stream.
            initial: weights to begin with.
            labels: classes of the student.
            states: widths of its hidden states.
        """
        self.policy.reset(Sizes(len(self.losses), len(self.distillations), examples, labels, states), initial)
        self.record = self.policy.rows() or RowStore(examples, torch.full((len(self.losses),), float("nan")))

    def prepare(self, batch: Batch) -> dict[str, Any]:
        """The batch with all that depends on it alone, such as teachers' logits."""
        return {**batch, **{key: value for loss in self.losses for key, value in loss.prepare(batch).items()}}

    def evaluate(self, outputs: Any, batch: Batch) -> Evaluation:
        """All losses, `(B, K)`, with the graph of the outputs, and what the policy makes of the batch."""
        losses = torch.stack([loss(outputs, batch) for loss in self.losses], 1)
        teachers = tuple(batch[loss.logits_key] for loss in self.distillations)
        signals = Signals(
            losses.detach(), outputs.logits.detach(), teachers, batch, self.task, hidden_states(outputs, batch)
        )
        return Evaluation(losses, self.policy.observe(signals))

    def weigh(self, outputs: Any, batch: Batch, progress: float) -> Weighed:
        """The weighed loss of one micro-batch; remembers the weights that were used."""
        losses, features = self.evaluate(outputs, batch)
        ids = ids_of(batch)
        observation = Observation(ids, torch.nan_to_num(features), progress)
        weights = self.policy.weights(observation).detach()
        if EXAMPLE_ID in batch and self.record is not self.policy.rows():
            self.record.write(ids, weights)
        return Weighed((weights * losses).sum(), losses.detach(), weights, observation)

    def task_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The meta objective: the mean task loss; no label smoothing, as clean labels are meant as they stand."""
        loss = CrossEntropy()
        loss.bind(replace(self.task, label_smoothing=0.0))
        return loss(outputs, batch).mean()

    def state_dict(self) -> dict[str, Any]:
        """All that was learned and recorded."""
        own = {} if self.record is self.policy.rows() else self.record.state_dict()
        return {"policy": self.policy.state_dict(), "record": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict` into a mixture that was `reset` for the same losses and data."""
        self.policy.load_state_dict(state["policy"])
        if state["record"]:
            self.record.load_state_dict(state["record"])


def hidden_states(outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
    """The student's hidden states `(B, D)`, averaged over tokens and detached; empty if they were not asked for.

    Those of an encoder-decoder one side after the other; on the decoder's side labelled tokens count.
    """
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    labelled = None if labels is None or labels.ndim != 2 else labels != IGNORED
    sides = {"hidden_states": mask, "encoder_hidden_states": mask, "decoder_hidden_states": labelled}
    return tuple(
        token_mean(state.detach(), tokens)
        for name, tokens in sides.items()
        for state in getattr(outputs, name, None) or ()
    )


def token_mean(states: Tensor, tokens: Tensor | None) -> Tensor:
    """Mean of `(B, T, D)` over the tokens `(B, T)` that count, `(B, D)`; over all if there is no such mask."""
    if tokens is None:
        return states.mean(1)
    counted = tokens.to(states)[..., None]
    return (states * counted).sum(1) / counted.sum(1).clamp(min=1)


def _as_loss(loss: Loss | Any) -> Loss:
    if isinstance(loss, Loss):
        return loss
    name = getattr(loss, "__name__", None)
    if not callable(loss) or name is None:
        raise TypeError(
            f"losses must hold losses or functions (outputs, batch) -> (B,), got {loss!r}. Wrap it: "
            f"CustomLoss(function, name)."
        )
    return CustomLoss(loss, name)


def ids_of(batch: Batch) -> ExampleIds:
    """The example ids of a batch; -1 in a stream that has none."""
    if EXAMPLE_ID in batch:
        ids: Tensor = batch[EXAMPLE_ID]
        return ids
    first = next(value for value in batch.values() if isinstance(value, Tensor))
    return torch.full((len(first),), -1, device=first.device)
