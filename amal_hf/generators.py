"""Students that generate text: which they are, and the decoder inputs that a forward pass without labels needs."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)


DECODER_INPUTS = "decoder_input_ids"


def is_encoder_decoder(model: Any) -> bool:
    """Whether the model translates: reads one text, writes another (T5, BART, Marian)."""
    return type(_unwrapped(model)).__name__ in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()


def is_causal(model: Any) -> bool:
    """Whether the model continues a text, so that its labels stand one place after its logits (GPT-2, Llama)."""
    return type(_unwrapped(model)).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def class_count(model: Any) -> int:
    """How many values a label may have: words of the vocabulary for a generator, classes for others."""
    if is_encoder_decoder(model) or is_causal(model):
        return int(model.config.get_text_config(decoder=True).vocab_size)
    return int(model.config.num_labels)


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
    shift = getattr(_unwrapped(model), "prepare_decoder_input_ids_from_labels", None)
    return DecoderInputs(collate, shift) if shift is not None and is_encoder_decoder(model) else collate


def _unwrapped(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
