"""Mixtures that nothing is learned for: what everything learned is compared with."""

import torch
from torch import Tensor

from amal_hf.policies.policy import Observation, Policy, Sizes, among_present, as_mixture, sharing
from amal_hf.random_numbers import generator_of
from amal_hf.shapes import LossTable


class FixedWeights(Policy):
    """Every example has the run's initial mixture as its weights, for good. Needs no meta set."""

    learns = False
    keeps_mixture = True
    mixture: Tensor

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """Take over the mixture."""
        del sizes
        self.register_buffer("mixture", initial.clone())

    def weights(self, observation: Observation) -> LossTable:
        """The mixture, once for each example, `(B, K)`; what is missing leaves its share to what is there."""
        self.to(observation.features.device)  # once: a GPU would be waited for at every step
        return among_present(self.mixture, observation)


class AnnealedWeights(FixedWeights):
    """From the run's initial mixture to another one in equal steps, the same for every example.

    With `loss_weights=[0, 1]` for a label and a teacher, `AnnealedWeights([1, 0])` first follows the teacher and then
    the labels.

    Args:
        final: `(K,)` the mixture at the end of training.

    Raises:
        ValueError: when a run begins, not one number for each loss.

    References:
        Teacher annealing (Clark et al. 2019, "BAM! Born-Again Multi-Task Networks", arXiv:1907.04829).
    """

    keeps_mixture = False
    end: Tensor

    def __init__(self, final: list[float]) -> None:
        super().__init__()
        self.final = final

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """Take over the mixture.

        Raises:
            ValueError: `final` is not one number for each loss.
        """
        super().reset(sizes, initial)
        self.register_buffer("end", as_mixture(self.final, sizes.losses).to(initial))

    def weights(self, observation: Observation) -> LossTable:
        """The mixture of the moment, once for each example, `(B, K)`."""
        self.to(observation.features.device)
        return among_present(self.mixture.lerp(self.end, float(observation.progress)), observation)


class RandomWeights(Policy):
    """Convex weights drawn uniformly for every example once and kept.

    The control that shows whether *learning* the weights matters. Needs no meta set.

    Args:
        seed: of the draw.
    """

    learns = False
    needs_ids = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.losses = 1

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """Remember K; the initial mixture is of no interest."""
        del initial
        self.losses = sizes.losses

    def weights(self, observation: Observation) -> LossTable:
        """Uniform on the simplex, a function of seed and id alone, `(B, K)`; none for what is missing."""
        rows = [self._draw(example) for example in observation.ids.tolist()]
        drawn = torch.stack(rows).to(observation.features.device)
        if observation.present is None:
            return drawn
        return sharing(drawn * observation.present, drawn)

    def _draw(self, example: int) -> Tensor:
        shares = -torch.rand(self.losses, generator=generator_of(self.seed, example)).clamp(min=1e-9).log()
        return shares / shares.sum()
