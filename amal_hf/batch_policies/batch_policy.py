"""Batch policies: what changes the examples themselves, and learns how.

A weight stands outside the loss, so its slope needs no graph. Whatever acts inside the loss does: its gradient is

    dV/dφ = −∇φ ⟨v, ∇θ L(θ; φ)⟩ = −[∇φ L(θ + εv; φ) − ∇φ L(θ − εv; φ)] / 2ε

two forward and backward passes, to φ alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amal_hf.central_differences import both_sides
from amal_hf.own_adam import check_learning_rate, follow_to
from amal_hf.shapes import Batch, Params, Targets


class Changed(NamedTuple):
    """A batch as the student is to see it.

    Attributes:
        embeddings: `(B, T, d)` input embeddings, with a graph to φ.
        attention_mask: `(B, T)`, or `(B, 1, T, T)` to be added to the scores of attention.
        targets: what the losses compare with; shares carry a graph to φ.
    """

    embeddings: Tensor
    attention_mask: Tensor
    targets: Targets


class BatchPolicy(nn.Module, ABC):
    """Changes batches while training; in evaluation, and in the meta loss, nothing is changed.

    All that it has learned is in its `state_dict`.

    Args:
        learning_rate: of its own Adam.

    Attributes:
        learns: whether it wants gradients; `freeze` ends that.
        needs_one_class: whether it is for examples of one class each, so that others are refused.
        replaces_attention: whether the student gets a mask for every pair of tokens in the place of its own.

    Raises:
        ValueError: a learning rate that is not positive and finite.
    """

    optimizer: torch.optim.Adam
    learns: bool = True
    needs_one_class: bool = False
    replaces_attention: bool = False

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        check_learning_rate(self, learning_rate)
        self.learning_rate = learning_rate

    @abstractmethod
    def begin(self) -> None:
        """Set φ to where learning begins. Draws no global random number."""

    @abstractmethod
    def check(self, labels: int) -> None:
        """Refuse a student of another kind than the policy is made for.

        Args:
            labels: classes of the student; 0 where it has none.

        Raises:
            ValueError: says what fits.
        """

    @abstractmethod
    def change(self, embeddings: Tensor, batch: Batch, step: int) -> Changed:
        """The changed batch.

        Args:
            embeddings: `(B, T, d)` the student's own input embeddings.
            batch: the collated batch, teachers' logits included.
            step: the optimizer step, from which all randomness is drawn.
        """

    def reset(self, labels: int) -> None:
        """Start a run: forget everything, unless frozen."""
        self.check(labels)
        if self.learns:
            self.begin()
            self.optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def freeze(self) -> None:
        """Stay as it is from now on."""
        self.learns = False
        self.requires_grad_(False)

    def follow_to(self, device: torch.device) -> None:
        """Move to the student's device, Adam's moments too."""
        if self.learns:
            follow_to(device, self, self.optimizer)
        else:
            self.to(device)

    def update(self, gradients: Sequence[Tensor]) -> None:
        """One Adam step along `dV/dφ`, one gradient a parameter."""
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()

    def get_extra_state(self) -> dict[str, object]:
        """Adam's moments, saved with the parameters."""
        return self.optimizer.state_dict() if self.learns else {}

    def set_extra_state(self, state: dict[str, object]) -> None:
        """Restore Adam's moments."""
        if state and self.learns:
            self.optimizer.load_state_dict(state)


def attention_of(batch: Batch, embeddings: Tensor) -> Tensor:
    """The attention mask `(B, T)` of a batch; all of it where it has none."""
    mask: Tensor | None = batch.get("attention_mask")
    return torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device) if mask is None else mask


def batch_gradient(
    policy: BatchPolicy, params: Params, direction: Params, loss: Callable[[], Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """`dV/dφ` for every parameter of a batch policy, by central differences along the direction.

    Args:
        policy: holds φ.
        params: the student's parameters; moved and put back bit for bit, no `.grad` is touched.
        direction: `v`, by parameter name.
        loss: the training loss on the changed batch, a scalar with a graph to φ, at whatever values the parameters
            have when it is called.
        dtype: precision of the student's forward pass.
    """
    plus, minus, distance = both_sides(params, direction, lambda: _gradient(policy, loss), dtype)
    return [(m - p) / distance.to(p) for p, m in zip(plus, minus, strict=True)]


def _gradient(policy: BatchPolicy, loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        return torch.autograd.grad(loss(), list(policy.parameters()))
