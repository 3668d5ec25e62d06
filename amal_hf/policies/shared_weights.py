"""One weight for a loss, the same for every example."""

import torch
from torch import Tensor

from amal_hf.own_adam import check_learning_rate
from amal_hf.policies.policy import Observation, Policy, Sizes, among_present
from amal_hf.processes import total
from amal_hf.shapes import LossTable


class SharedWeights(Policy):
    """`w_ik = mixture_k · u_k` with K learned factors `u` in [0, 2], one at the start.

    The simplest policy: over `RuleLosses` a weight for each rule, as in WISDOM, where it stands inside the graphical
    model. It says which losses are worth following at all, never for whom.

    Args:
        learning_rate: step on a factor whose mean slope has average size.

    Raises:
        ValueError: a learning rate that is not positive and finite.

    References:
        WISDOM, Maheshwari et al. 2022, "Learning to Robustly Aggregate Labeling Functions for Semi-supervised Data
        Programming", arXiv:2109.11410.
    """

    mixture: Tensor
    factors: Tensor

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__()
        check_learning_rate(self, learning_rate)
        self.learning_rate = learning_rate

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """All factors back to one."""
        del sizes
        self.register_buffer("mixture", initial.clone())
        self.register_buffer("factors", torch.ones_like(initial))

    def weights(self, observation: Observation) -> LossTable:
        """`(B, K)`; what is missing leaves its share of the mixture to what is there."""
        self.to(observation.features.device)  # once: a GPU would be waited for at every step
        return among_present(self.mixture, observation) * self.factors

    @torch.no_grad()
    def update(self, observation: Observation, slopes: LossTable) -> None:
        """Factors move along the mean slope of the examples that have the loss."""
        counts = total((slopes != 0).sum(0))
        means = total(slopes.sum(0)) / counts.clamp(min=1)
        size = means.abs().sum() / (counts > 0).sum().clamp(min=1)
        moves = means / size.clamp(min=torch.finfo(means.dtype).tiny)
        moves = (self.learning_rate * moves).to(self.factors.dtype)  # a checkpoint has these as they are
        self.factors = (self.factors.to(moves.device) + moves).clamp(0, 2)
