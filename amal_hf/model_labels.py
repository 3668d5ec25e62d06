"""What a model's labels may be: how many values, and the names of its classes."""

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from amal_hf.generators import is_causal, is_encoder_decoder, is_one_of


def class_count(model: Any) -> int:
    """How many values a label may have: words of the vocabulary for a language model, classes for others."""
    if is_encoder_decoder(model) or is_causal(model) or is_one_of(model, MODEL_FOR_MASKED_LM_MAPPING_NAMES):
        return int(model.config.get_text_config(decoder=True).vocab_size)
    return int(model.config.num_labels)


def label_names(config: Any) -> list[str]:
    """The names of the classes in their order, as a configuration has them; none where it has none."""
    named = {int(place): str(name) for place, name in (getattr(config, "id2label", None) or {}).items()}
    return [named[place] for place in sorted(named)]
