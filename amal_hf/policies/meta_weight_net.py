"""Meta-Weight-Net: a small network that sees nothing but the losses."""

from torch import Tensor

from amal_hf.policies.bounds import TwiceSigmoid
from amal_hf.policies.network_policy import NetworkPolicy
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.shapes import Features


class MetaWeightNet(NetworkPolicy):
    """`w = 2·sigmoid(MLP(losses))`, one hidden layer of 100, a meta step at every training step.

    It is there to be compared with. `LossNetwork` sees more, and is normalised: unnormalised weights drift together to
    a bound, since the part that all slopes share is a learning rate in disguise.

    Args:
        hidden: width of the hidden layer; 100 in the official code.
        learning_rate: of its own Adam; 1e-3, not tuned.
        seed: of its first weights.

    Raises:
        ValueError: a number out of its range.

    References:
        Shu et al. 2019, "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting", arXiv:1902.07379.
    """

    def __init__(self, hidden: int = 100, learning_rate: float = 1e-3, seed: int = 0) -> None:
        super().__init__(hidden, learning_rate, TwiceSigmoid(), seed)

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """A new network; its weights need not add up to anything, so that no loss is compared with another."""
        super().reset(sizes._replace(pulls=()), initial)

    def observe(self, signals: Signals) -> Features:
        """`(B, K)`: the losses."""
        return signals.losses.detach()

    def inputs(self, observation: Observation) -> Tensor:
        """The losses and nothing else."""
        return observation.features.to(next(self.network.parameters()).dtype)

    def width(self, sizes: Sizes) -> int:
        """K."""
        return sizes.losses
