"""Training rows whose labels have weight enough to be trained on."""

from typing import Any

from datasets import Dataset

from amal_hf.embedded_rows import embedded_rows, labels_of_both, warn_of_lost_classes
from amal_hf.loggers import logger_of


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
    labels = labels_of_both("kept_rows", rows, clean, wrong)
    both = embedded_rows("kept_rows", rows, clean, labels, encoder, tokenizer)
    kept = (both.probably_right(wrong, seed) | (both.labels < 0)).nonzero()[:, 0]
    logger.info("%d of %d rows are kept.", len(kept), len(rows))
    warn_of_lost_classes("kept_rows", both.labels, both.labels[kept])
    return rows.select(kept.numpy())
