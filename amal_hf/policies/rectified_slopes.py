"""Weights of the moment: as much as following an example would lower the meta loss, and nothing where it would not."""

import torch
from torch import Tensor

from amal_hf.policies.policy import Observation, Policy, Sizes
from amal_hf.processes import total, total_count
from amal_hf.shapes import ExampleIds, LossTable


class RectifiedSlopes(Policy):
    """`w_ik ∝ max(s_ik, 0)` over the examples of one optimizer step; nothing is remembered from step to step.

    The weights sum to N over the N examples of the step, however it is cut into micro-batches and processes. As the
    training loss is the *mean* over these examples, this is the paper's sum over the batch with weights that sum to
    one.

    Args:
        skip_empty: what happens if no slope of the step is positive. True leaves the student alone: an optimizer
            without gradients moves nothing, neither by momentum nor by weight decay. False is the form of the official
            code: the loss is zero, momentum and weight decay act.

    References:
        Ren et al. 2018, "Learning to Reweight Examples for Robust Deep Learning", arXiv:1803.09050, algorithm 1.
    """

    needs_ids = True
    holds_for_one_step = True

    def __init__(self, skip_empty: bool = True) -> None:
        super().__init__()
        self.skip_empty = skip_empty

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """Back to the initial mixture, which holds until the first meta step (see `meta_warmup_steps`)."""
        del sizes
        self.initial = initial
        self.ids: ExampleIds = torch.empty(0, dtype=torch.long)
        self.table: LossTable = torch.empty(0, len(initial))
        self.sum: Tensor | None = None

    def weights(self, observation: Observation) -> LossTable:
        """The weights found for these examples at this step; the initial mixture during the warm-up."""
        ids = observation.ids
        if self.sum is None:
            return self.initial.to(ids.device).expand(len(ids), -1)
        return self.table[torch.searchsorted(self.ids, ids)]

    def update(self, observation: Observation, slopes: LossTable) -> None:
        """Weights for exactly these examples, in place of all earlier ones."""
        positive = slopes.clamp(min=0)
        self.sum = total(positive.sum())
        shares = positive / torch.where(self.sum > 0, self.sum, 1.0)
        self.ids, order = observation.ids.sort()
        self.table = (shares * total_count(len(shares), shares.device))[order]

    @property
    def skips_step(self) -> bool:
        """Whether the student is to be left alone at this step."""
        return self.skip_empty and self.sum is not None and not bool(self.sum > 0)
