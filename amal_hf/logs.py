"""What is logged of losses and weights: collected on the device, computed when something is logged."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from amal_hf.loggers import logger_of
from amal_hf.mixture import Weighed
from amal_hf.processes import totals


logger = logger_of(__name__)

PERCENTILES = (10, 25, 50, 75, 90)
"""Of the weights, enough to draw how they spread; they are kept in `log_history`, and so through a resumed run."""


class MixtureStatistics:
    """The losses' means, and the weights' mean, percentiles (10, 25, 50, 75, 90) and share at zero.

    With learned weights also the meta loss, and counts of skipped examples and steps. Tensors are only kept while
    training, so that the device is never waited for between two logs.

    A loss of several columns, as one for each rule, counts as one: the means are over those that an example has.
    On several processes each sums up its own examples, and what is logged is the mean over processes; percentiles
    too, which is close enough to see where weights go.

    Args:
        groups: names of the losses, and how many columns each has.

    Attributes:
        weights: of each loss, those that the last `flush` was about, `(n,)`; for histograms.
    """

    def __init__(self, groups: dict[str, int]) -> None:
        self.groups = groups
        self.keys = log_keys(list(groups))
        self._losses: list[Tensor] = []
        self._present: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._meta: list[Tensor] = []
        self._skipped: list[Tensor] = []
        self._skipped_steps = 0
        self.weights: dict[str, Tensor] = {}

    def add(self, weighed: Weighed) -> None:
        """Take note of a micro-batch."""
        self._losses.append(weighed.losses)
        self._weights.append(weighed.weights)
        if weighed.observation.present is not None:
            self._present.append(weighed.observation.present)

    def add_meta(self, meta_loss: Tensor | None, skipped: Tensor) -> None:
        """Take note of a bilevel step, with the meta loss if it measured it."""
        if meta_loss is not None:
            self._meta.append(meta_loss)
        self._skipped.append(skipped)

    def add_skipped_step(self) -> None:
        """Take note of an optimizer step that left the student alone."""
        self._skipped_steps += 1

    def flush(self) -> dict[str, float]:
        """Everything since the last call, as plain floats by log key."""
        logs = self._parts() if self._losses else {}
        if self._meta:
            logs["meta_loss"] = torch.stack(self._meta).float().mean().item()
        if self._skipped:
            logs["meta_skipped"] = float(torch.stack(self._skipped).sum().item())
        if self._skipped_steps:
            logs["skipped_steps"] = float(self._skipped_steps)
        self._warn(logs)
        self._skipped_steps = 0
        for kept in (self._losses, self._present, self._weights, self._meta, self._skipped):
            kept.clear()
        return logs

    def _warn(self, logs: dict[str, float]) -> None:
        lost = [key for key in self.keys.values() if not math.isfinite(logs.get(f"loss_{key}", 0.0))]
        if lost:
            logger.warning(
                "The mean of '%s' is NaN or infinite: the student's weights are lost, or will be. A lower "
                "learning rate may help; a teacher's logits are NaN where its own weights are.",
                "', '".join(lost),
            )
        if skipped := logs.get("meta_skipped"):
            logger.warning(
                "%d examples of meta steps had slopes that are NaN or infinite; their weights were left alone. "
                "Look at the losses in the log; under fp16 a lower learning rate or bf16 may help.",
                skipped,
            )

    def _parts(self) -> dict[str, float]:
        losses, weights = torch.cat(self._losses).float(), torch.cat(self._weights).float()
        present = torch.cat(self._present) if self._present else torch.ones_like(losses, dtype=torch.bool)
        counts = list(self.groups.values())
        logs: dict[str, float | None] = {}
        self.weights = {}
        for name, *parts in zip(self.groups, *(t.split(counts, 1) for t in (losses, weights, present)), strict=True):
            key, loss, weight = self.keys[name], parts[0][parts[2]], parts[1][parts[2]]
            if len(loss):
                self.weights[key] = weight
                logs |= {f"loss_{key}": loss.mean().item(), **_summary(key, weight)}
            else:
                logs |= _nothing(key)
        return _over_processes(logs, losses.device)


def _over_processes(logs: dict[str, float | None], device: torch.device) -> dict[str, float]:
    """The mean of every entry over the processes that have it; those that none has are left out."""
    values = [0.0 if value is None else value for value in logs.values()]
    known = [float(value is not None) for value in logs.values()]
    sums, counts = (t.tolist() for t in totals([torch.tensor(v, device=device) for v in (values, known)]))
    return {name: s / n for name, s, n in zip(logs, sums, counts, strict=True) if n}


def _nothing(name: str) -> dict[str, None]:
    """The entries of a loss that no example of this process has had."""
    return dict.fromkeys([f"loss_{name}", *_summary(name, torch.zeros(1))])


def log_keys(names: Sequence[str]) -> dict[str, str]:
    """Losses' names as trackers take them: MLflow refuses what is not a letter, a digit or one of `_-./` and blanks.

    Names that come out the same are told apart by a number.
    """
    keys: dict[str, str] = {}
    for name in names:
        key, number = re.sub(r"[^A-Za-z0-9_\-./ ]", "_", name), 1
        plain = key
        while key in keys.values():
            number += 1
            key = f"{plain}_{number}"
        keys[name] = key
    return keys


def _summary(name: str, weight: Tensor) -> dict[str, float]:
    ranked = weight.sort().values  # torch.quantile refuses more than 16 million values
    places = {percent: round(percent / 100 * (len(ranked) - 1)) for percent in PERCENTILES}
    return {
        f"weight_{name}_mean": weight.mean().item(),
        **{f"weight_{name}_p{percent}": ranked[place].item() for percent, place in places.items()},
        f"weight_{name}_zero": (weight < 1e-3).float().mean().item(),
    }
