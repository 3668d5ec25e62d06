"""What `Trainer.predict` gave for rows of one class each, checked."""

from typing import Any

from torch import Tensor

from amal_hf.tensor_of import tensor_of


def read_predicted(reader: str, logits: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Logits `(N, C)` in float64 and class numbers `(N,)`, on the CPU.

    Args:
        reader: the function that was called, for messages.
        logits: whatever `tensor_of` reads.
        labels: the same; negative for none.

    Raises:
        TypeError: what is no array of numbers, as the several outputs of one model are.
        ValueError: other shapes, logits that are not finite, a label that is no class, or no label at all.
    """
    scores, given = _array(reader, "logits", logits).double(), _array(reader, "labels", labels)
    if scores.ndim != 2 or given.shape != scores.shape[:1] or given.is_floating_point():
        raise ValueError(
            f"{reader}: logits must be (N, C), and labels N whole numbers; got {tuple(scores.shape)}, and "
            f"{given.dtype} of shape {tuple(given.shape)}. Both are of the same rows, in their order."
        )
    if not bool(scores.isfinite().all()):
        rows = (~scores.isfinite().all(1)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"{reader}: logits must be finite; those of {len(rows)} rows are not, the first is {rows[0]}. "
            f"Look at the model, or predict in fp32."
        )
    if not bool((given >= 0).any()) or int(given.max()) >= scores.shape[1]:
        raise ValueError(
            f"{reader}: labels must be class numbers below {scores.shape[1]}, or negative for none, and some "
            f"must be there; got {sorted(set(given.tolist()))[-3:]} as the largest. Both must know the same classes."
        )
    return scores, given


def _array(reader: str, name: str, values: Any) -> Tensor:
    try:
        return tensor_of(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{reader}: {name} must be an array, a tensor or a list of numbers, got {type(values).__name__}. "
            f"Of Trainer.predict it is `predictions` (the first, where a model returns several) and `label_ids`."
        ) from error
