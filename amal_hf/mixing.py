"""What the parts of `AMALTrainer` share."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer

from amal_hf.method import Method
from amal_hf.mixture import Mixture


class MixingTrainer(Trainer):
    """`Trainer` that may mix losses.

    Attributes:
        mixes: whether it does; otherwise it is `Trainer`.
        mixture: the losses and their weights.
        method: how these are learned.
        given: optimizer and schedule that it was given, in the place of those that the arguments name.
    """

    mixes: bool = False
    mixture: Mixture
    method: Method
    given: tuple[Optimizer | None, LRScheduler | None]

    def __init__(self, *trainer_args: Any, **trainer_kwargs: Any) -> None:
        super().__init__(*trainer_args, **trainer_kwargs)
        self.given = self.optimizer, self.lr_scheduler
