"""Students that generate text: which they are, and the decoder inputs that a forward pass without labels needs.

A class derived from one of `transformers` is taken for it.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from amal_hf.shapes import IGNORED


DECODER_INPUTS = "decoder_input_ids"

UNSHIFTED = {
    *("BartForCausalLM", "BigBirdPegasusForCausalLM", "BlenderbotForCausalLM", "BlenderbotSmallForCausalLM"),
    *("CpmAntForCausalLM", "MarianForCausalLM", "MBartForCausalLM", "MvpForCausalLM", "PegasusForCausalLM"),
    *("PLBartForCausalLM", "ProphetNetForCausalLM", "TrOCRForCausalLM", "WhisperForCausalLM"),
    *("XLMWithLMHeadModel", "XLNetLMHeadModel"),
}
"""Of the causal language models of `transformers` those whose own loss compares logits and labels place by place: the
decoders of encoder-decoders, and masked ones under that name.
"""


_WRITERS = {
    *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values(),
    *MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES.values(),
    *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(),
    "VisionEncoderDecoderModel",  # in no mapping of `transformers`
}
_NEXT_WORD = ("ForCausalLM", "ForConditionalGeneration")
"""Losses of `transformers` that compare logits with the next token."""


def is_encoder_decoder(model: Any) -> bool:
    """Whether the model writes with a decoder of its own what it reads (T5, BART, Marian), hears (Whisper) or sees."""
    # Models that hear or see and continue a text (Qwen2-Audio, LLaVA, BLIP-2 over OPT) are in the mappings too.
    return _is_named(model, _WRITERS) and DECODER_INPUTS in _inputs_of(model) and model.config.is_encoder_decoder


def is_causal(model: Any) -> bool:
    """Whether the model continues a text (GPT-2, Llama), of pictures as well (LLaVA)."""
    if is_one_of(model, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return True
    # What `transformers` calls the loss of a model decides for those that see, and for code that came with a model.
    one_sided = not is_encoder_decoder(model) and not getattr(
        getattr(model, "config", None), "is_encoder_decoder", False
    )
    return one_sided and getattr(without_adapters(model), "loss_type", None) in _NEXT_WORD


def predicts_next(model: Any) -> bool:
    """Whether labels stand one place after the logits that predict them, as the model's own loss has them."""
    kinds = {kind.__name__ for kind in type(without_adapters(model)).__mro__}
    return is_causal(model) and not kinds & UNSHIFTED


def answers_by_token(model: Any) -> bool:
    """Whether the model gives logits for every token."""
    kinds = [kind.__name__ for kind in type(without_adapters(model)).__mro__]
    return is_causal(model) or is_encoder_decoder(model) or any("TokenClassif" in k or "MaskedLM" in k for k in kinds)


class DecoderInputs:
    """A collator whose batches hold the decoder's inputs beside the labels they are made from.

    Args:
        collate: the collator that makes the batch; if it adds decoder inputs itself (as `DataCollatorForSeq2Seq` with
            `model=` does), they stay.
        shift: labels to decoder inputs, the model's `prepare_decoder_input_ids_from_labels`.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], shift: Callable[..., Tensor]) -> None:
        self.collate = collate
        self.shift = shift
        self.tokenizer = getattr(collate, "tokenizer", None)

    def __call__(self, rows: list[Any]) -> Any:
        """A batch of `rows`."""
        batch = self.collate(rows)
        if batch.get("labels") is None or DECODER_INPUTS in batch:
            return batch
        return {**batch, DECODER_INPUTS: self.shift(labels=batch["labels"])}


def with_decoder_inputs(collate: Callable[[list[Any]], Any], model: Any) -> Callable[[list[Any]], Any]:
    """The collator as the student needs it: as it is, unless the student is an encoder-decoder.

    The new one raises a `ValueError` if it is not known what the decoder's inputs begin with, or are filled up with.
    """
    return DecoderInputs(collate, _shift_of(without_adapters(model))) if is_encoder_decoder(model) else collate


def _shift_of(model: Any) -> Callable[..., Tensor]:
    """The model's own, or one like it, by its configuration alone: a collator is sent to the processes of a data
    loader, and must not take the student there.
    """
    if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return partial(_shifted_by_one, type(model).__name__, model.config)
    bare: Any = object.__new__(type(model))
    nn.Module.__init__(bare)
    bare.config = model.config
    shift: Callable[..., Tensor] = bare.prepare_decoder_input_ids_from_labels
    return shift


def _shifted_by_one(name: str, config: Any, labels: Tensor) -> Tensor:
    """For a model that makes its decoder's inputs in its forward pass alone (M2M100, NLLB, Blenderbot)."""
    start, fill = (getattr(config, key, None) for key in ("decoder_start_token_id", "pad_token_id"))
    if start is None or fill is None:
        raise ValueError(
            f"AMALTrainer: the decoder of {name} reads its labels one place later, and its configuration has "
            f"decoder_start_token_id={start} and pad_token_id={fill}. Set both."
        )
    first = labels.new_full((len(labels), 1), start)
    return torch.cat([first, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, fill)], 1)


def takes_keywords(model: Any) -> bool:
    """Whether the model's forward takes inputs that it does not name."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in _inputs_of(model).values())


def _inputs_of(model: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(without_adapters(model).forward).parameters


def without_adapters(model: Any) -> Any:
    """The `transformers` model that PEFT has put adapters into; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_one_of(model: Any, names: Mapping[str, Any]) -> bool:
    """Whether the model is of a class in an auto mapping of `transformers`, or of one derived from it."""
    return _is_named(model, names.values())


def _is_named(model: Any, names: Collection[Any]) -> bool:
    return any(kind.__name__ in names for kind in type(without_adapters(model)).__mro__)
