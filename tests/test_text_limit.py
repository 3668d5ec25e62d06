"""How long a text a model reads."""

import pytest
import torch
from test_teacher_inputs import tokenizer
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from amal_hf.policies.commentary_network import embed_texts
from amal_hf.teacher_inputs import TextEncoding
from amal_hf.text_limit import text_limit


@pytest.mark.parametrize(
    ("family", "known", "limit"),
    [("bert", None, 40), ("roberta", None, 38), ("mpnet", None, 38), ("bert", 16, None), ("t5", None, None)],
)
def test_the_limit_is_what_there_are_positions_for(family, known, limit):
    """Less the padding's own number where positions begin behind it; a tokenizer that knows its limit keeps it."""
    words = tokenizer("a", "b")
    words.model_max_length = known or words.model_max_length
    config = AutoConfig.for_model(family, max_position_embeddings=40, pad_token_id=1)
    if family == "t5":
        del config.max_position_embeddings
    assert text_limit(words, config) == limit


@pytest.mark.parametrize(
    "family", ["camembert", "esm", "ibert", "luke", "markuplm", "mpnet", "roberta-prelayernorm", "xmod"]
)
def test_the_limit_can_be_read(family):
    """As many tokens as the limit says have positions, and one more has none: of models kin to RoBERTa too."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    special = {"pad_token_id": 1, "mask_token_id": 2, "position_embedding_type": "absolute"} if family == "esm" else {}
    config = AutoConfig.for_model(family, vocab_size=8, max_position_embeddings=20, **sizes, **special)
    config.default_language = "en_XX"  # of X-MOD
    model = AutoModel.from_config(config).eval()
    ids = torch.full((1, text_limit(tokenizer("a", "b"), config)), 5)
    model(input_ids=ids)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.cat([ids, ids[:, :1]], 1))


def test_long_texts_are_cut():
    """Where the tokenizer was saved without a limit too."""
    words = tokenizer("a", "b")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    encoder = BertModel(BertConfig(vocab_size=4, max_position_embeddings=8, **sizes))
    embedded = embed_texts(["a b " * 20, "a"], encoder, words)
    assert embedded.shape == (2, 8) and torch.isfinite(embedded).all()
    from datasets import Dataset

    rows = Dataset.from_dict({"text": ["a b " * 20]})
    encoding = TextEncoding(rows, words, text_limit(words, encoder.config))
    assert encoding([0])["input_ids"].shape == (1, 8)
