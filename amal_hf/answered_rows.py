"""Training rows with the answers of a teacher of seconds: a regression over a frozen encoder, fitted to other rows."""

from typing import Any, cast

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from amal_hf.calibration import calibrated_temperature
from amal_hf.distillation import Distillation
from amal_hf.embedded_rows import embedded_rows, labels_of_both, warn_of_lost_classes
from amal_hf.model_labels import class_names
from amal_hf.out_of_fold import out_of_fold_logits
from amal_hf.shapes import Batch, Logits


ANSWERS = "answers"
"""The column."""


def answered_rows(
    rows: Dataset, clean: Dataset, encoder: Any, tokenizer: Any, *, wrong: float | None = None, seed: int = 0
) -> tuple[Dataset, Distillation]:
    """Rows and then clean ones, with logits `(C,)` in a column `answers`, and the loss that distils them.

    A softmax regression over the frozen encoder learns from the clean rows and from the labels that are probably
    right, by `label_weights`. It is asked about all rows, and has not seen the label of any that it is asked about
    (`out_of_fold_logits`); the clean rows say how sure it may be (`calibrated_temperature`). The loss says both, for
    Bayes' rule: `losses=[CrossEntropy(), by_features]` with `amal()` or `bayes_mixture()`. Rows without a label are
    answered too.

    Args:
        rows: training rows, with a column of texts or the two of a pair, and one of classes, `label` or `labels`.
        clean: some whose labels are right, with the same columns.
        encoder: a transformers model without a head (`AutoModel`), which tells the classes from one another.
        tokenizer: the encoder's own.
        wrong: how many labels are, from 0 to 1, if that is known; by default as the clean rows have it.
        seed: of the head over the encoder, and of the rows that are asked about together.

    Raises:
        TypeError: labels that are no numbers.
        ValueError: before anything is embedded, a column that is missing or has the name `answers`, columns of other
            kinds in `clean`, a share that is none, classes that have other names in `clean`, or labels that
            `label_weights` refuses; afterwards, an encoder that does not tell the classes from one another.
    """
    if ANSWERS in (*rows.column_names, *clean.column_names):
        raise ValueError(
            f"answered_rows: expected no column `{ANSWERS}`, where the teacher's go; there are {rows.column_names} "
            f"and {clean.column_names}. Rename it, or take it out of both sets."
        )
    labels = labels_of_both("answered_rows", rows, clean, wrong)
    joined = concatenate_datasets([rows, clean])
    both = embedded_rows("answered_rows", rows, clean, labels, encoder, tokenizer)
    right = both.probably_right(wrong, seed)
    given = torch.cat([both.labels, both.clean_labels])
    known = torch.cat([both.labels.where(right, -1), both.clean_labels])  # the others are asked about, not learned
    warn_of_lost_classes("answered_rows", given, known)
    classes = max(len(class_names(rows)), len(class_names(clean)), 1 + int(given.max()))
    features = torch.cat([both.features, both.clean_features])
    logits = out_of_fold_logits(features, known, classes=classes, seed=seed)
    sure = _sureness(logits[len(rows) :], both.clean_labels)
    loss = Distillation(_answers, temperature=1.0, columns=ANSWERS, has_seen_labels=False, calibrated_at=1.0)
    return joined.add_column(ANSWERS, list((logits / sure).numpy())), loss


def _answers(batch: Batch) -> Logits:
    return cast(Tensor, batch[ANSWERS])


def _sureness(logits: Logits, labels: Tensor) -> float:
    try:
        return calibrated_temperature(logits, labels)
    except ValueError as error:
        error.add_note(
            "answered_rows: this encoder does not tell these classes from one another. Take another one, or a teacher "
            "that was fine-tuned on the clean rows."
        )
        raise
