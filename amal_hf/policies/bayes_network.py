"""A network that learns in which examples the mixture of Bayes' rule is wrong."""

import torch
from torch import Tensor

from amal_hf.noisy_labels import LabelPosterior
from amal_hf.policies.bayes_mixture import BayesMixture
from amal_hf.policies.bounds import Convex, ConvexOrNone, Normalisation
from amal_hf.policies.loss_network import LossNetwork
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.shapes import Features


SMALLEST_SHARE = 0.02
"""Of a loss at the start, so that it can come back."""


class BayesNetwork(LossNetwork):
    """`LossNetwork` that starts at the mixture of `BayesMixture`, and reads the label's share in it.

    Bayes' rule knows how labels go wrong by class; a meta step can add what goes wrong by text.

    Args:
        known: of the training labels, `label_posterior(teacher_logits, labels)`.
        hidden, seed, balance, probe: as of `LossNetwork`.
        learning_rate: of its own Adam. 1e-3: where it begins is worth keeping (`benchmarks/LOG.md`).
        normalisation: one whose weights start at a mixture of each example: `Convex()`, `ConvexOrNone()`, or
            `GatedConvex()`, the default.

    Raises:
        ValueError: another normalisation, or a number out of its range; when a trainer is made, what `BayesMixture`
            is not for.

    References: As `label_posterior` (arXiv:1712.04577) and `LossNetwork` (arXiv:2202.03250).
    """

    def __init__(
        self,
        known: LabelPosterior,
        hidden: int = 32,
        learning_rate: float = 1e-3,
        normalisation: Normalisation | None = None,
        seed: int = 0,
        balance: float = 0.5,
        probe: bool = True,
    ) -> None:
        super().__init__(hidden, learning_rate, normalisation, seed, balance, probe)
        if not isinstance(normalisation, Convex | ConvexOrNone | None):
            raise ValueError(
                f"BayesNetwork: normalisation must be Convex(), ConvexOrNone() or GatedConvex(), whose shares can "
                f"start at those of Bayes' rule; got {type(normalisation).__name__}."
            )
        self.mixture = BayesMixture(known)

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """A new network; the initial mixture is that of Bayes' rule.

        Raises:
            ValueError: losses or classes that `BayesMixture` is not for.
        """
        self.mixture.reset(sizes, initial)
        super().reset(sizes, torch.full_like(initial, 0.5))

    def width(self, sizes: Sizes) -> int:
        """And the label's share."""
        return super().width(sizes) + 1

    def observe(self, signals: Signals) -> Features:
        """The label's share, and what `LossNetwork` sees."""
        return torch.cat([self.mixture.observe(signals), super().observe(signals)], 1)

    def scores(self, observation: Observation) -> Tensor:
        """Those of the network, and how far the shares are from the equal ones that it starts with."""
        scores = super().scores(observation)
        share = observation._replace(features=observation.features[:, :1])
        shares = self.mixture.weights(share).clamp(min=SMALLEST_SHARE)
        start = (shares / shares.mean(1, keepdim=True)).log()
        return torch.cat([scores[:, :2] + start, scores[:, 2:]], 1)

    def figures(self) -> dict[str, float]:
        """`wrong_labels`: the share of training labels that are wrong, by Bayes' rule."""
        return self.mixture.figures()

    def describe(self) -> str:
        """As `LossNetwork`, and at what temperature the teacher is read."""
        return f"{super().describe()}, teacher at temperature {self.mixture.temperature:g}"
