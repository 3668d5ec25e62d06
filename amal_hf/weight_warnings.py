"""What is said where weights go without something that they were given, or should not have been given it."""

import math
from collections.abc import Mapping, Sequence

from amal_hf.clean_probe import FEWEST_ROWS
from amal_hf.distillation import Distillation
from amal_hf.loggers import logger_of
from amal_hf.policies.bayes_share import MOST_CLASSES
from amal_hf.policies.policy import Policy


logger = logger_of(__name__)

MANY_WRONG, FAR_FEWER = 0.1, 0.5
"""Of eight sets of wrong labels these tell five in which a teacher had been trained on them, and suspect no teacher
that had not (`benchmarks/LOG.md`)."""


def warn_of_large_meta_batch(rows: int, batch_size: int) -> None:
    """Warn where what clean rows say of an example cannot be asked, as too few are outside the present meta batch.

    Not of so few rows that no smaller batch would leave enough.
    """
    if rows - batch_size < FEWEST_ROWS < rows:
        logger.warning(
            "A meta batch of %d of the %d clean rows leaves less than %d to say what labels these would have: weights "
            "go without. Lower meta_batch_size.",
            batch_size,
            rows,
            FEWEST_ROWS,
        )


def warn_of_unread_teacher(policy: Policy, teachers: Sequence[Distillation]) -> None:
    """Say so where it makes no difference to the weights that a teacher has not seen the labels.

    Args:
        policy: once it was told of labels.
        teachers: of the losses.
    """
    names = [teacher.name for teacher in teachers if not teacher.has_seen_labels]
    if names and "wrong_labels_by_teacher" not in policy.figures():
        logger.warning(
            "Distillation %s: has_seen_labels=False makes no difference to weights of %s here. LossNetwork(), which "
            "is in amal(), reads it of one such teacher beside CrossEntropy(), for weights that are a mixture, where "
            "labels are one class each, of at most %d, and training rows can be drawn by number. Train so, or leave "
            "it out.",
            names,
            type(policy).__name__,
            MOST_CLASSES,
        )


def warn_of_seen_labels(figures: Mapping[str, float]) -> None:
    """Say so where a teacher takes far fewer labels for wrong than clean rows do: it was trained on them.

    Args:
        figures: of a policy at the end of training.
    """
    by_rows, by_teacher = (figures.get(name, math.nan) for name in ("wrong_labels", "wrong_labels_by_teacher"))
    if by_rows > MANY_WRONG and by_teacher < FAR_FEWER * by_rows:
        logger.warning(
            "By clean rows %.0f %% of the training labels are wrong, by the teacher of which it is said that it has "
            "not seen them %.0f %%: it may have been trained on them after all, and then takes them for right. Leave "
            "out has_seen_labels=False, or take a teacher of the clean rows alone.",
            100 * by_rows,
            100 * by_teacher,
        )
