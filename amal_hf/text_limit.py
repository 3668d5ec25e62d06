"""How long a text a model can read, where its tokenizer does not say."""

from typing import Any


_UNSET = 10**9
"""Tokenizers that were saved without a limit have 10^30."""

_AFTER_PADDING = (
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Positions of these models begin behind the number of their padding token."""


def text_limit(tokenizer: Any, config: Any) -> int | None:
    """The most tokens that a model has positions for; `None` where the tokenizer knows its limit, or there is none.

    Args:
        tokenizer: of the model.
        config: of the model.
    """
    text = config.get_text_config()
    places = getattr(text, "max_position_embeddings", None)
    if places is None or places < 1 or tokenizer.model_max_length < _UNSET:
        return None
    return int(places) - (text.pad_token_id + 1 if text.model_type in _AFTER_PADDING else 0)
