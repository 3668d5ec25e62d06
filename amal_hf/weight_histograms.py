"""Histograms of the weights in TensorBoard and Trackio, beside the scalars that every tracker gets from the log."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback, TrackioCallback


Weights: TypeAlias = Callable[[], Mapping[str, Tensor]]
"""Gives the weights of every loss that were used since the log before, one-dimensional."""


class TensorBoardHistograms(TrainerCallback):
    """Writes `weights/{loss}` into the event file that `TensorBoardCallback` writes its scalars into.

    Args:
        scalars: the callback with the writer. It must have been called before this one.
        weights: read whenever training logs.
    """

    def __init__(self, scalars: TensorBoardCallback, weights: Weights) -> None:
        self.scalars = scalars
        self.weights = weights

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """A histogram of each loss, where training logs."""
        writer = self.scalars.tb_writer
        if writer is not None and "loss" in logs:
            for name, values in self.weights().items():
                writer.add_histogram(f"weights/{name}", values.float().cpu(), state.global_step)


class TrackioHistograms(TrainerCallback):
    """Logs `weights/{loss}` to the run that `TrackioCallback` has begun.

    Trackio counts calls of `log` by itself; `train/global_step` is the step that scalars and histograms share.

    Args:
        weights: read whenever training logs.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """A histogram of each loss, where training logs."""
        if not state.is_world_process_zero or "loss" not in logs:
            return
        import trackio

        histograms = {
            f"weights/{name}": trackio.Histogram(values.float().cpu().numpy())
            for name, values in self.weights().items()
        }
        trackio.log({**histograms, "train/global_step": state.global_step})


def weight_histograms(callbacks: Sequence[TrainerCallback], weights: Weights) -> list[TrainerCallback]:
    """What is to be added to `callbacks`: one for each tracker among them that shows histograms."""
    added: list[TrainerCallback] = []
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            added.append(TensorBoardHistograms(callback, weights))
        elif isinstance(callback, TrackioCallback):
            added.append(TrackioHistograms(weights))
    return added
