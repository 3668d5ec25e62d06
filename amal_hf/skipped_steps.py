"""fp16: where the gradient scaler skips an optimizer step, the meta step that it began with does not count either."""

from collections.abc import Callable
from typing import Any

from torch.amp import GradScaler
from transformers import TrainerCallback


class SkippedSteps(TrainerCallback):
    """Takes a meta step back when the scaler has found gradients that overflow.

    The weights learned at a step are those that it is trained with, so the meta step comes first and is undone, rather
    than put off.
    """

    def __init__(self) -> None:
        self.restore: Callable[[], None] | None = None

    def begin(self, scaler: GradScaler, restore: Callable[[], None]) -> None:
        """A meta step comes now; `restore` takes it back."""
        self.scaler, self.scale, self.restore = scaler, scaler.get_scale(), restore

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Called when the scaler has decided, before anything is logged or saved."""
        # A scaler backs off if and only if it has skipped; a fused optimizer is called all the same, so that nobody
        # else knows.
        if self.restore is not None and self.scaler.get_scale() < self.scale:
            self.restore()
        self.restore = None
