"""How common the class of a label is, counted while training, and what examples then count for."""

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
        return of_class((self.seen / self.seen.mean()).log(), classes, 0.0)

    def balance(self, classes: Tensor, power: float) -> Tensor:
        """Of any shape: `class_weights` of what was seen; 1 where there is none."""
        if not len(self.seen):
            return torch.ones_like(classes)
        return of_class(class_weights(self.seen, power), classes, 1.0)


def class_weights(counts: Tensor, power: float) -> Tensor:
    """`(C,)`: counts to the power of `-power`, scaled so that the mean over all that was counted is one.

    With 1 all classes weigh the same in total, with 0 all examples do.
    """
    weights = counts.pow(-power)
    return weights * counts.sum() / (weights * counts).sum()


def of_class(values: Tensor, classes: Tensor, otherwise: float) -> Tensor:
    """The entries of `values`, `(C,)`, for classes of any shape; `otherwise` for what has none, a negative number."""
    return torch.where(classes >= 0, values.to(classes)[classes.clamp(min=0).long()], otherwise)


def one_class_labels(batch: Batch, examples: int, reader: str) -> Tensor:
    """`(B,)`, whole numbers: the class of every example, negative for none.

    Raises:
        ValueError: labels of another kind, which `reader` cannot read.
    """
    labels: Tensor | None = batch.get("labels")
    if labels is None:
        return torch.full((examples,), -1)
    if labels.shape != (examples,) or labels.is_floating_point():
        raise ValueError(
            f"{reader} is for examples of one class each, and the labels of {examples} examples are {labels.dtype} of "
            f"shape {tuple(labels.shape)}. Use another policy: amal()."
        )
    return labels


def class_of(batch: Batch, examples: int, device: torch.device) -> PerExample:
    """`(B,)`, fp32: the number of an example's class; −1 for none, for numbers, for several labels at once."""
    labels = batch.get("labels")
    if labels is None or labels.shape != (examples,) or labels.is_floating_point():
        return torch.full((examples,), -1.0, device=device)
    return labels.clamp(min=-1).to(device, torch.float32)  # no class is -100 elsewhere
