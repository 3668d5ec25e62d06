"""Rows and clean ones, checked and read by a frozen encoder: which labels are probably right."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from amal_hf.columns import find_text_columns, require_columns
from amal_hf.data_checks import check_names
from amal_hf.label_weights import check_labels, label_weights
from amal_hf.labelled_features import read_labels
from amal_hf.loggers import logger_of
from amal_hf.model_labels import label_column
from amal_hf.policies.commentary_network import embed_texts
from amal_hf.probably_right import check_share


logger = logger_of(__name__)


@dataclass(frozen=True)
class EmbeddedRows:
    """Features and class numbers of two sets.

    Attributes:
        reader: the function that was called, for messages.
        features: `(N, d)`.
        labels: `(N,)`; negative for none.
        clean_features: `(M, d)`.
        clean_labels: `(M,)`, right ones.
    """

    reader: str
    features: Tensor
    labels: Tensor
    clean_features: Tensor
    clean_labels: Tensor

    def probably_right(self, wrong: float | None, seed: int) -> Tensor:
        """`(N,)`, bool: labels with weight enough, by `label_weights`; says how many are wrong where nobody else has.

        Args:
            wrong: how many are, from 0 to 1, if that is known.
            seed: of the head over the encoder.
        """
        found = label_weights(self.features, self.labels, self.clean_features, self.clean_labels, seed=seed)
        count = len(self.clean_labels)
        if wrong is None and math.isnan(found.wrong):
            logger.warning(
                "%s: %d clean rows cannot tell how many labels are wrong, so that all pass for right. More of them "
                "may, of at most 512 classes; or say by `wrong` how many are.",
                self.reader,
                count,
            )
        elif wrong is None:
            told = "By %d clean rows %.1f %% of the labels are wrong, with a standard error of %.1f."
            logger.info(told, count, 100 * found.wrong, 100 * found.wrong_error)
        return found.probably_right(wrong)


def labels_of_both(reader: str, rows: Dataset, clean: Dataset, wrong: float | None) -> tuple[Tensor, Tensor]:
    """Class numbers, `(N,)` and `(M,)`, of rows and clean ones; whatever is amiss is said before a text is embedded.

    Args:
        reader: the function that was called, for messages.
        rows: with a column of texts or the two of a pair, and one of classes, `label` or `labels`.
        clean: some whose labels are right, with the same columns.
        wrong: how many labels are, if that is known.

    Raises:
        TypeError: labels that are no numbers.
        ValueError: a column that is missing, a share that is none, classes that have other names in `clean`, or labels
            that `label_weights` refuses.
    """
    check_share(wrong)
    name = label_column(rows)
    if name is None or name not in clean.column_names:
        raise ValueError(
            f"{reader}: expected a column `label` or `labels`, the same in both sets; there are {rows.column_names} "
            f"and {clean.column_names}."
        )
    check_names(rows, clean, reader, ("rows", "clean"))
    require_columns(clean.column_names, find_text_columns(rows.column_names, 'rename_column(..., "text")'))
    given, right = (
        read_labels(reader, f"labels of {whose}", part.with_format(None)[name][:])
        for whose, part in (("rows", rows), ("clean", clean))
    )
    check_labels(reader, given, right)
    return given, right


def embedded_rows(
    reader: str, rows: Dataset, clean: Dataset, labels: tuple[Tensor, Tensor], encoder: Any, tokenizer: Any
) -> EmbeddedRows:
    """Both sets as features.

    Args:
        reader: the function that was called, for messages.
        rows: with a column of texts or the two of a pair.
        clean: the same.
        labels: `labels_of_both`.
        encoder: a transformers model without a head.
        tokenizer: the encoder's own.
    """
    columns = find_text_columns(rows.column_names)
    features, clean_features = (
        torch.as_tensor(embed_texts(_texts(part, columns), encoder, tokenizer)) for part in (rows, clean)
    )
    return EmbeddedRows(reader, features, labels[0], clean_features, labels[1])


def warn_of_lost_classes(reader: str, before: Tensor, after: Tensor) -> None:
    """Say which classes have a label, `(N,)`, and none of those that are left, `(K,)`; negative ones are no labels."""
    if gone := sorted(set(before[before >= 0].tolist()) - set(after.tolist())):
        logger.warning(
            "%s: of %d classes no label passes for right, the first is %d. Have clean rows of them among the training "
            "rows, or look at these labels.",
            reader,
            len(gone),
            gone[0],
        )


def _texts(rows: Dataset, columns: tuple[str, ...]) -> list[str]:
    """One a row; the two of a pair after one another."""
    plain = rows.with_format(None)
    return [" ".join(parts) for parts in zip(*(plain[column][:] for column in columns), strict=True)]
