"""Weights that are learned for some time before they are used."""

from collections.abc import Callable

import torch
from torch import Tensor

from amal_hf.policies.policy import Observation, Policy, Signals, Sizes, among_present
from amal_hf.policies.store import RowStore
from amal_hf.shapes import ExampleIds, Features, LossTable


class Delayed(Policy):
    """The initial mixture until a share of training is done, and from then on what a policy has learned all along.

    A student that trains on everything shows what each example does to it. Once weights act, examples that lost theirs
    are not learned any more, their slopes say less and less, and what is wrong early on is repaired late: translations
    were told apart with AUC 0.74 that way, where slopes of a student that trained on all of them gave 0.9.

    Args:
        policy: learns from the end of the meta warm-up, and goes on learning when its weights are used.
        until: share of training, in (0, 1).

    Raises:
        ValueError: a share out of its range, or weights that hold for one step.
    """

    mixture: Tensor

    def __init__(self, policy: Policy, until: float) -> None:
        super().__init__()
        if not 0 < until < 1:
            raise ValueError(f"Delayed: until must be a share of training between 0 and 1, got {until}.")
        if policy.holds_for_one_step:
            raise ValueError(
                f"Delayed: weights of {type(policy).__name__} hold for one step: nothing is learned before they are "
                f"used. Use AMALArguments.meta_warmup_steps."
            )
        self.policy = policy
        self.until = until
        self.learns = policy.learns
        self.needs_ids = policy.needs_ids
        self.needs_hidden_states = policy.needs_hidden_states
        self.interval = policy.interval
        self.learning_rate = policy.learning_rate

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """Both begin at the initial mixture."""
        self.register_buffer("mixture", initial.clone())
        self.policy.learning_rate = self.learning_rate
        self.policy.reset(sizes, initial)

    def observe(self, signals: Signals) -> Features:
        """As the policy does."""
        return self.policy.observe(signals)

    def weights(self, observation: Observation) -> LossTable:
        """The initial mixture, `(B, K)`, or the policy's weights."""
        initial, progress = among_present(self.mixture, observation), observation.progress
        if isinstance(progress, Tensor):
            return torch.where(progress[:, None] < self.until, initial, self.policy.weights(observation))
        return initial if progress < self.until else self.policy.weights(observation)

    def update(self, observation: Observation, slopes: LossTable) -> None:
        """As the policy does."""
        self.policy.update(observation, slopes)

    def restorer(self, ids: ExampleIds) -> Callable[[], None]:
        """As the policy does."""
        return self.policy.restorer(ids)

    def rows(self) -> RowStore | None:
        """The policy's: what it has learned, used or not."""
        return self.policy.rows()

    def describe(self) -> str:
        """The policy, and from when on it is used."""
        return f"{self.policy.describe()}, used from {self.until:.0%} of training on"
