"""Training rows whose labels have weight enough to be trained on."""

import math
from typing import Any

import numpy as np
from datasets import Dataset

from amal_hf.columns import find_text_columns, require_columns
from amal_hf.data_checks import check_names
from amal_hf.label_weights import check_labels, label_weights
from amal_hf.labelled_features import read_labels
from amal_hf.loggers import logger_of
from amal_hf.model_labels import label_column
from amal_hf.policies.commentary_network import embed_texts
from amal_hf.probably_right import check_share


logger = logger_of(__name__)


def kept_rows(
    rows: Dataset, clean: Dataset, encoder: Any, tokenizer: Any, *, wrong: float | None = None, seed: int = 0
) -> Dataset:
    """The rows whose labels are probably right, by `label_weights` over a frozen encoder; the others are left out.

    About as many labels are left out as are wrong by the clean rows, none where these cannot tell. Rows without a
    label are kept.

    Args:
        rows: training rows, with a column of texts or the two of a pair, and one of classes, `label` or `labels`.
        clean: some whose labels are right, with the same columns.
        encoder: a transformers model without a head (`AutoModel`), which tells the classes from one another.
        tokenizer: the encoder's own.
        wrong: how many labels are, from 0 to 1, if that is known; by default as the clean rows have it.
        seed: of the head over the encoder.

    Raises:
        TypeError: labels that are no numbers.
        ValueError: before anything is embedded, a column that is missing, a share that is none, classes that have
            other names in `clean`, or labels that `label_weights` refuses.
    """
    check_share(wrong)
    name = label_column(rows)
    if name is None or name not in clean.column_names:
        raise ValueError(
            f"kept_rows: expected a column `label` or `labels`, the same in both sets; there are {rows.column_names} "
            f"and {clean.column_names}."
        )
    check_names(rows, clean, "kept_rows", ("rows", "clean"))
    columns = find_text_columns(rows.column_names)
    require_columns(clean.column_names, columns)
    given, right = (read_labels("kept_rows", part.with_format(None)[name][:]) for part in (rows, clean))
    check_labels("kept_rows", given, right)
    features, clean_features = (embed_texts(_texts(part, columns), encoder, tokenizer) for part in (rows, clean))
    found = label_weights(features, given, clean_features, right, seed=seed)
    labels = given.numpy()
    kept = np.flatnonzero(found.probably_right(wrong).numpy() | (labels < 0))
    logger.info("%d of %d rows are kept.", len(kept), len(rows))
    if wrong is None and math.isnan(found.wrong):
        logger.warning(
            "kept_rows: %d clean rows cannot tell how many labels are wrong, so that all are kept. More of them may, "
            "of at most 512 classes; or say by `wrong` how many are.",
            len(clean),
        )
    elif wrong is None:
        told = "By %d clean rows %.1f %% of the labels are wrong, with a standard error of %.1f."
        logger.info(told, len(clean), 100 * found.wrong, 100 * found.wrong_error)
    if gone := sorted(set(labels[labels >= 0].tolist()) - set(labels[kept].tolist())):
        logger.warning(
            "kept_rows: of %d classes no row is kept, the first is %d. Add the clean rows, or look at these labels.",
            len(gone),
            gone[0],
        )
    return rows.select(kept)


def _texts(rows: Dataset, columns: tuple[str, ...]) -> list[str]:
    """One a row; the two of a pair after one another."""
    plain = rows.with_format(None)
    return [" ".join(parts) for parts in zip(*(plain[column][:] for column in columns), strict=True)]
