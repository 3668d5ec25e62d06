"""Scores of translations, and the corpus that the project makes itself."""

import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.trainer_utils import EvalPrediction

from amal_hf import translation_metrics
from amal_hf.demo_translation import english_number, german_number, translation_corpus
from amal_hf.translation import Bleu, exact_match


def word_tokenizer():
    words = ["<pad>", "</s>", "<unk>", "ein", "mann", "läuft", "durch", "den", "wald"]
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


RIGHT = np.array([[3, 4, 5, 6, 7, 8, 1], [3, 4, 5, 1, -100, -100, -100]])
WRITTEN = np.array([[3, 4, 5, 6, 7, 8, 1, 0], [3, 5, 4, 1, 0, 0, 0, 0]])


def test_padding_is_no_mistake():
    """Labels are padded with -100 and guesses with the pad token, to other lengths."""
    assert exact_match(word_tokenizer())(EvalPrediction(WRITTEN, RIGHT)) == {"exact_match": 0.5}


def test_a_tokenizer_without_padding():
    """As GPT-2's: what does not count is then made into the end of the text, which is no word either."""
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    written = np.where(WRITTEN == 0, -100, WRITTEN)
    assert exact_match(tokenizer)(EvalPrediction(written, RIGHT)) == {"exact_match": 0.5}


def test_bleu_is_that_of_sacrebleu():
    """Perfect is 100; with one sentence of two in another order it is less."""
    sacrebleu = pytest.importorskip("sacrebleu")
    scores = translation_metrics(word_tokenizer())
    assert scores(EvalPrediction(RIGHT, RIGHT))["bleu"] == pytest.approx(100)
    expected = sacrebleu.corpus_bleu(
        ["ein mann läuft durch den wald", "ein läuft mann"], [["ein mann läuft durch den wald", "ein mann läuft"]]
    )
    assert scores(EvalPrediction(WRITTEN, RIGHT))["bleu"] == pytest.approx(expected.score)


def test_without_sacrebleu_it_says_what_to_install(monkeypatch):
    """Before training, not at the first evaluation."""
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"amal_hf\[translation\]"):
        translation_metrics(word_tokenizer())


def test_logits_are_refused():
    """Without `predict_with_generate` there is no text to score."""
    with pytest.raises(ValueError, match="predict_with_generate"):
        exact_match(word_tokenizer())(EvalPrediction(np.zeros((2, 3, 9)), RIGHT))


@pytest.mark.parametrize(
    ("n", "english", "german"),
    [
        (0, "zero", "null"),
        (21, "twenty one", "ein und zwanzig"),
        (101, "one hundred and one", "ein hundert eins"),
        (340, "three hundred and forty", "drei hundert vierzig"),
        (999, "nine hundred and ninety nine", "neun hundert neun und neunzig"),
    ],
)
def test_numbers_in_words(n, english, german):
    """The word order is what has to be learned."""
    assert (english_number(n), german_number(n)) == (english, german)


def test_the_corpus_is_a_function_of_its_seed():
    """The same seed gives the same pairs; no English sentence stands there twice."""
    corpus = translation_corpus(300, seed=1)
    assert len(set(corpus["en"][:])) == 300
    assert corpus[:] == translation_corpus(300, seed=1)[:]
    assert corpus["en"][:] != translation_corpus(300, seed=2)["en"][:]
    with pytest.raises(ValueError, match="from 1 to 20000"):
        translation_corpus(0)


def test_bleu_carries_an_interval():
    """Resampled sentences give the interval of BLEU that a table needs."""
    pytest.importorskip("sacrebleu")
    wanted = [
        "ein mann läuft durch den wald",
        "der hund schläft auf dem sofa heute",
        "wir gehen am abend ins kino",
    ] * 5
    written = [*wanted[:10], *(text.replace("den", "dem").replace("heute", "nicht") for text in wanted[10:])]
    found = Bleu(resamples=50).compute(predictions=written, references=wanted)
    assert found["bleu_low"] <= found["bleu"] <= found["bleu_high"] <= 100.001
