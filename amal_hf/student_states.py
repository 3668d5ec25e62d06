"""What a student shows: logits, for losses; hidden states, for policies, one vector for each example or token."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from amal_hf.shapes import IGNORED, Batch


def with_logits(outputs: Any) -> Any:
    """A student's outputs, once it is known that losses can read them.

    Raises:
        TypeError: a dictionary or a tuple.
    """
    if not hasattr(outputs, "logits"):
        raise TypeError(
            f"AMALTrainer: losses read `outputs.logits`, and the student's forward returned a "
            f"{type(outputs).__name__}. Return a ModelOutput, such as SequenceClassifierOutput(loss=..., logits=...)."
        )
    return outputs


def hidden_states(outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
    """The student's hidden states `(B, D)`, averaged over tokens and detached; empty if they were not asked for.

    Those of an encoder-decoder one side after the other; on the decoder's side labelled tokens count. Those of the
    choices of an example are averaged too.
    """
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    labelled = None if labels is None or labels.ndim != 2 else labels != IGNORED
    sides = {"hidden_states": mask, "encoder_hidden_states": mask, "decoder_hidden_states": labelled}
    return tuple(
        of_examples(pooled(state.detach(), tokens), len(outputs.logits))
        for name, tokens in sides.items()
        for state in getattr(outputs, name, None) or ()
    )


def token_states(outputs: Any, batch: Batch) -> tuple[Tensor, ...]:
    """The same for weights of tokens: `(B, T, D)` on the side of the logits, `(B, D)` of the source."""
    source = getattr(outputs, "encoder_hidden_states", None) or ()
    own = getattr(outputs, "hidden_states", None) or getattr(outputs, "decoder_hidden_states", None) or ()
    sources = tuple(pooled(state.detach(), batch.get("attention_mask")) for state in source)
    return (*sources, *(state.detach() for state in own))


def of_examples(states: Tensor, examples: int) -> Tensor:
    """`(B, D)` of `(B, D)`, or of `(B n, D)` where each of B examples has n choices, one after the other."""
    return states if len(states) % examples else states.unflatten(0, (examples, -1)).mean(1)


def pooled(states: Tensor, tokens: Tensor | None) -> Tensor:
    """Mean of `(B, T, D)` over the tokens `(B, T)` that count, `(B, D)`.

    Tokens that prompt tuning puts before a text count; over all where there is no mask, or tokens have been merged.
    Maps `(B, D, height, width)` are averaged over their places, `(B, D)` is as it is.
    """
    if states.ndim != 3:
        return states.flatten(2).mean(2) if states.ndim > 3 else states
    tokens = tokens.flatten(0, 1) if tokens is not None and tokens.ndim == 3 else tokens  # those of choices
    if tokens is None or tokens.ndim != 2 or len(tokens) != len(states) or tokens.shape[1] > states.shape[1]:
        return states.mean(1)
    counted = F.pad(tokens, (states.shape[1] - tokens.shape[1], 0), value=1).to(states)[..., None]
    return (states * counted).sum(1) / counted.sum(1).clamp(min=1)
