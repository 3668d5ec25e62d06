"""What a model's labels may be: how many values, and the names of its classes."""

import re
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, List
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
)

from amal_hf.generators import is_causal, is_encoder_decoder, is_one_of


def class_count(model: Any) -> int:
    """How many values a label may have: words of the vocabulary for a language model, classes for others.

    0 for multiple choice, where every row brings choices of its own and a label is the place of one of them.
    """
    if is_one_of(model, MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES):
        return 0
    if is_encoder_decoder(model) or is_causal(model) or is_one_of(model, MODEL_FOR_MASKED_LM_MAPPING_NAMES):
        return int(model.config.get_text_config(decoder=True).vocab_size)
    return int(model.config.num_labels)


def label_names(config: Any) -> list[str]:
    """The names of the classes in their order, as a configuration has them; none where it has none.

    Those of `label2id` where only these were given.
    """
    named = {int(place): str(name) for place, name in (getattr(config, "id2label", None) or {}).items()}
    given = {int(place): str(name) for name, place in (getattr(config, "label2id", None) or {}).items()}
    if are_generic(list(named.values())) and sorted(given) == sorted(named):
        named = given
    return [named[place] for place in sorted(named)]


def are_generic(names: Sequence[str]) -> bool:
    """Whether the names are those that a configuration makes up (LABEL_0 ...), which tell nothing."""
    return all(re.fullmatch(r"LABEL_\d+", name) for name in names)


def tell_nothing(names: Sequence[str]) -> bool:
    """Whether classes are only numbered, by a configuration or by a table of whole numbers from 0 on."""
    return are_generic(names) or list(names) == [str(place) for place in range(len(names))]


def label_column(rows: Any) -> str | None:
    """Which column of a dataset holds its labels: `labels`, or else `label`; `None` for neither."""
    columns = getattr(rows, "column_names", None) or ()
    return next((name for name in ("labels", "label") if name in columns), None)


def class_names(rows: Any) -> list[str]:
    """The names of the classes of a dataset's labels, of sentences or of tokens; none where it does not say."""
    column, features = label_column(rows), getattr(rows, "features", None)
    feature = features[column] if features and column else None
    inner = feature.feature if isinstance(feature, List) else feature
    return list(inner.names) if isinstance(inner, ClassLabel) else []
