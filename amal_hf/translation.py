"""Scores of translations: BLEU through sacrebleu, and the share that is right word for word."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from datasets import Value
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import EvalPrediction

from amal_hf.scores import Score


Metrics: TypeAlias = Callable[[EvalPrediction], dict[str, float]]
"""What a trainer takes as `compute_metrics`."""


class Bleu(Score):
    """BLEU of texts, 0 to 100, as sacrebleu computes it by default (Post 2018, arXiv:1804.08771).

    An interval takes 0.1 s for each resample of 1,000 sentences.

    Raises:
        ImportError: sacrebleu is not installed.
    """

    key = "bleu"
    prediction = Value("string")
    reference = Value("string")

    def __init__(self, resamples: int = 0, seed: int = 0) -> None:
        super().__init__(resamples, seed)
        self._corpus_bleu = _bleu()

    def score(self, predictions: NDArray[Any], references: NDArray[Any]) -> float:
        """In [0, 100]."""
        return float(self._corpus_bleu(list(predictions), [list(references)]).score)


def translation_metrics(tokenizer: PreTrainedTokenizerBase, resamples: int = 0) -> Metrics:
    """`compute_metrics` for a trainer with `predict_with_generate=True`: `{"bleu": ..., "exact_match": ...}`.

    BLEU is sacrebleu's with its defaults, 0 to 100 (Post 2018, arXiv:1804.08771); exact match is a share.

    Args:
        tokenizer: turns token ids back into text.
        resamples: of the sentences, for an interval of BLEU (`bleu_low`, `bleu_high`); 0 for none.

    Raises:
        ImportError: sacrebleu is not installed.
    """
    bleu = Bleu(resamples)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        written, wanted = _texts(tokenizer, prediction)
        scores = bleu.compute(predictions=written, references=wanted) or {}
        return {**scores, "exact_match": _share_equal(written, wanted)}

    return compute_metrics


def exact_match(tokenizer: PreTrainedTokenizerBase) -> Metrics:
    """The same without BLEU: `{"exact_match": ...}`. Needs no further package."""
    return lambda prediction: {"exact_match": _share_equal(*_texts(tokenizer, prediction))}


def _texts(tokenizer: PreTrainedTokenizerBase, prediction: EvalPrediction) -> tuple[list[str], list[str]]:
    """What was written and what was wanted."""
    written = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    if np.ndim(written) != 2:
        raise ValueError(
            f"Expected token ids (N, T) to score as text, got predictions of shape {np.shape(written)}. Set "
            "predict_with_generate=True in AMALSeq2SeqArguments."
        )
    return _decoded(tokenizer, written), _decoded(tokenizer, prediction.label_ids)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Any) -> list[str]:
    # Of some tokenizers that write no padding is made by their end of text.
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    padded = np.where(np.asarray(ids) < 0, padding, ids)
    return [text.strip() for text in tokenizer.batch_decode(padded, skip_special_tokens=True)]


def _share_equal(written: list[str], wanted: list[str]) -> float:
    return float(np.mean([ours == theirs for ours, theirs in zip(written, wanted, strict=True)]))


def _bleu() -> Callable[[list[str], list[list[str]]], Any]:
    try:
        from sacrebleu import corpus_bleu
    except ImportError as error:
        raise ImportError(
            "translation_metrics needs sacrebleu, which is not installed: pip install 'amal_hf[translation]'."
        ) from error
    return corpus_bleu
