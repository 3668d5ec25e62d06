"""Training rows whose labels have weight enough to be trained on."""

from typing import Any

import numpy as np
from datasets import Dataset

from amal_hf.columns import find_text_columns
from amal_hf.label_weights import label_weights
from amal_hf.loggers import logger_of
from amal_hf.model_labels import label_column
from amal_hf.policies.commentary_network import embed_texts


logger = logger_of(__name__)

LEAST = 0.15
"""About the fewest errors of both kinds in nineteen settings (`benchmarks/LOG.md`)."""


def kept_rows(
    rows: Dataset, clean: Dataset, encoder: Any, tokenizer: Any, *, least: float = LEAST, seed: int = 0
) -> Dataset:
    """The rows whose labels are probably right, by `label_weights` over a frozen encoder; the others are left out.

    Rows without a label are kept.

    Args:
        rows: training rows, with a column of texts or the two of a pair, and one of classes, `label` or `labels`.
        clean: some whose labels are right, with the same columns.
        encoder: a transformers model without a head (`AutoModel`), which tells the classes from one another.
        tokenizer: the encoder's own.
        least: a label with less of the weight of a right one is left out.
        seed: of the head over the encoder.

    Raises:
        ValueError: a column that is missing, or what `label_weights` refuses.
    """
    name = label_column(rows)
    if name is None or name not in clean.column_names:
        raise ValueError(
            f"kept_rows: expected a column `label` or `labels`, the same in both sets; there are {rows.column_names} "
            f"and {clean.column_names}."
        )
    columns = find_text_columns(rows.column_names)
    features, clean_features = (embed_texts(_texts(part, columns), encoder, tokenizer) for part in (rows, clean))
    labels = np.asarray(rows.with_format(None)[name][:])
    weights = label_weights(features, labels, clean_features, clean.with_format(None)[name][:], seed=seed)
    kept = np.flatnonzero((weights.numpy() >= least) | (labels < 0))
    logger.info(
        "%d of %d rows are kept: their labels have at least %g of a right one's weight.", len(kept), len(rows), least
    )
    if gone := sorted(set(labels[labels >= 0].tolist()) - set(labels[kept].tolist())):
        logger.warning(
            "kept_rows: of %d classes no row is kept, the first is %d. Add the clean rows, lower `least`, or look at "
            "these labels.",
            len(gone),
            gone[0],
        )
    return rows.select(kept)


def _texts(rows: Dataset, columns: tuple[str, ...]) -> list[str]:
    """One a row; the two of a pair after one another."""
    plain = rows.with_format(None)
    return [" ".join(parts) for parts in zip(*(plain[column][:] for column in columns), strict=True)]
