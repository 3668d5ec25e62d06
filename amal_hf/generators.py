"""Students that generate text: which they are, and the decoder inputs that a forward pass without labels needs.

A class derived from one of `transformers` is taken for it.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)


DECODER_INPUTS = "decoder_input_ids"


def is_encoder_decoder(model: Any) -> bool:
    """Whether the model translates: reads one text, writes another (T5, BART, Marian)."""
    return is_one_of(model, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)


def is_causal(model: Any) -> bool:
    """Whether the model continues a text, so that its labels stand one place after its logits (GPT-2, Llama)."""
    # What `transformers` calls the loss of a model decides for code that came with a model.
    return is_one_of(model, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) or (
        getattr(without_adapters(model), "loss_type", None) == "ForCausalLM" and not is_encoder_decoder(model)
    )


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
    """The collator as the student needs it: as it is, unless the student is an encoder-decoder."""
    shift = getattr(without_adapters(model), "prepare_decoder_input_ids_from_labels", None)
    return DecoderInputs(collate, shift) if shift is not None and is_encoder_decoder(model) else collate


def takes_keywords(model: Any) -> bool:
    """Whether the model's forward takes inputs that it does not name."""
    parameters = inspect.signature(without_adapters(model).forward).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def without_adapters(model: Any) -> Any:
    """The `transformers` model that PEFT has put adapters into; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_one_of(model: Any, names: Mapping[str, Any]) -> bool:
    """Whether the model is of a class in an auto mapping of `transformers`, or of one derived from it."""
    return any(kind.__name__ in names.values() for kind in type(without_adapters(model)).__mro__)
