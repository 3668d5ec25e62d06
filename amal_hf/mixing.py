"""What the parts of `AMALTrainer` share."""

from transformers import Trainer

from amal_hf.method import Method
from amal_hf.mixture import Mixture


class MixingTrainer(Trainer):
    """`Trainer` that may mix losses.

    Attributes:
        mixes: whether it does; otherwise it is `Trainer`.
        mixture: the losses and their weights.
        method: how these are learned.
    """

    mixes: bool = False
    mixture: Mixture
    method: Method
