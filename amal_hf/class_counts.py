"""How common the class of a label is, counted while training."""

import torch
from torch import Tensor, nn

from amal_hf.processes import total
from amal_hf.shapes import Batch, PerExample


MOST_CLASSES = 4096
"""More labels than these are a vocabulary."""


class ClassCounts(nn.Module):
    """Examples seen of each class, over all processes; any kind of dataset, of any length, can be counted so.

    Args:
        classes: C; nothing is counted above `MOST_CLASSES`, nor below two: one output is a number.
    """

    seen: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(classes if 2 <= classes <= MOST_CLASSES else 0))

    def note(self, classes: PerExample) -> None:
        """Count examples of these classes, as `class_of` has them."""
        if len(self.seen):
            mask = classes >= 0
            new = torch.zeros_like(self.seen, device=classes.device)
            new.scatter_add_(0, classes.clamp(min=0).long(), mask.to(new.dtype))
            self.seen = self.seen.to(classes.device) + total(new)

    def commonness(self, classes: Tensor) -> Tensor:
        """Of any shape: log of how many a class has, relative to the mean over classes; 0 where there is none."""
        if not len(self.seen):
            return torch.zeros_like(classes)
        seen = self.seen.to(classes.device)
        shares = (seen / seen.mean()).log().to(classes.dtype)
        return torch.where(classes >= 0, shares[classes.clamp(min=0).long()], 0.0)

    def balance(self, classes: Tensor, power: float) -> Tensor:
        """Of any shape: weights that fall with this power of how many a class has; their mean over all seen is one.

        With 1 all classes weigh the same in total, with 0 all examples do; 1 for what has no class.
        """
        factors = self.commonness(classes).mul(-power).exp()
        if not len(self.seen):
            return factors
        mean = self.seen.pow(1 - power).sum() / self.seen.sum() * self.seen.mean().pow(power)
        return torch.where(classes >= 0, factors / mean.to(factors), 1.0)


def class_of(batch: Batch, examples: int, device: torch.device) -> PerExample:
    """`(B,)`, fp32: the number of an example's class; −1 for none, for numbers, for several labels at once."""
    labels = batch.get("labels")
    if labels is None or labels.shape != (examples,) or labels.is_floating_point():
        return torch.full((examples,), -1.0, device=device)
    return labels.clamp(min=-1).to(device, torch.float32)  # no class is -100 elsewhere
