"""Which hidden states a model can show, and how wide they are."""

import inspect
from typing import Any

from amal_hf.generators import answers_by_token, takes_keywords, without_adapters
from amal_hf.model_labels import class_count


_TWO_SIDES = (
    ("encoder_layers", "decoder_layers"),
    ("num_layers", "num_decoder_layers"),
    ("encoder_num_hidden_layers", "decoder_num_hidden_layers"),
)
"""Where encoder-decoders say how many layers either has."""


def shows_states(model: Any) -> bool:
    """Whether a student can be asked for hidden states that a linear probe could tell its classes from."""
    student = without_adapters(model)
    one_side = not getattr(student.config, "is_encoder_decoder", False)
    return one_side and not answers_by_token(model) and class_count(model) > 1 and takes_states(student)


def takes_states(student: Any) -> bool:
    """Whether its forward can be asked for hidden states."""
    return "output_hidden_states" in inspect.signature(student.forward).parameters or takes_keywords(student)


def state_widths(config: Any) -> tuple[int, ...]:
    """The widths of a student's hidden states, the embeddings' first; of encoder and decoder one after the other.

    Raises:
        ValueError: the configuration does not say.
    """
    names = next((names for names in _TWO_SIDES if hasattr(config, names[1])), ("num_hidden_layers",))
    layers = [getattr(config, name) for name in names if hasattr(config, name)]
    width = getattr(config, "hidden_size", None)
    if width is None or not layers:
        raise ValueError(
            f"AMALTrainer: the policy reads the student's hidden states, and {type(config).__name__} does not say how "
            f"many there are and how wide (hidden_size, num_hidden_layers). Use a policy without them: LossNetwork()."
        )
    return tuple(width for count in layers for _ in range(count + 1))
