"""Which of a teacher's logits are for which class, or word, of the student."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from transformers import PreTrainedConfig

from amal_hf.loggers import logger_of
from amal_hf.model_labels import are_generic, label_names


logger = logger_of(__name__)

Order: TypeAlias = list[int] | slice | None
"""Which of a teacher's logits are for the student's classes, in their order; `None` for all as they are."""


def label_order(
    teacher_config: PreTrainedConfig, student_config: PreTrainedConfig, classes: Sequence[str] = ()
) -> list[int] | None:
    """For every class of the student its place among the teacher's; None if the order is the same.

    Names are compared in any case. Generic ones (LABEL_0, LABEL_1 ...) tell nothing: for a student's the names in its
    training set are taken, and where neither fits the teacher's the same order is assumed, with a warning.

    Args:
        teacher_config: of the teacher.
        student_config: of the student.
        classes: names of the training set's classes.

    Raises:
        ValueError: the number of classes or their names differ.
    """
    theirs, ours = label_names(teacher_config), label_names(student_config)
    unnamed = are_generic(ours)
    if unnamed and len(classes) == len(ours):
        ours = list(classes)
    taught, wanted = _in_any_case(theirs), _in_any_case(ours)
    if len(theirs) == len(ours) and (taught == wanted or are_generic(theirs)):
        return None
    if sorted(taught) == sorted(wanted):
        logger.info("The teacher's labels %s are put into the student's order %s.", theirs, ours)
        return [taught.index(name) for name in wanted]
    if unnamed and len(theirs) == len(ours):
        logger.warning(
            "The student's classes have no names, and are taken to be in the order of the teacher's: %s. Set id2label "
            "and label2id of the student to be sure.",
            theirs,
        )
        return None
    raise ValueError(
        f"The teacher's labels {theirs} are not the student's {ours}. Both must have the same names; set id2label "
        "and label2id in one of the configurations if only the names differ."
    )


def _in_any_case(names: list[str]) -> list[str]:
    folded = [name.casefold() for name in names]
    return folded if len(set(folded)) == len(names) else names


def word_order(teacher_config: PreTrainedConfig, student_config: PreTrainedConfig, alike: bool) -> slice | None:
    """Which of the teacher's logits are for words of the student; None for all.

    Args:
        teacher_config: of the teacher.
        student_config: of the student, a generator.
        alike: whether both are known to have the same tokenizer: then a longer table of the teacher's has only been
            filled up, as those of large models are.

    Raises:
        ValueError: its logits stand for other words, or it reads in another way.
    """
    theirs, ours = (config.get_text_config(decoder=True).vocab_size for config in (teacher_config, student_config))
    if theirs != ours and not (alike and theirs > ours):
        raise ValueError(
            f"The teacher writes with {theirs} tokens, the student with {ours}, so their logits cannot be compared. "
            "Use a teacher with the student's vocabulary. If it has the same tokenizer and a longer table of words, "
            "give both: Distillation(teacher, tokenizer=...) without top_k, and the trainer's `processing_class`."
        )
    if teacher_config.is_encoder_decoder != student_config.is_encoder_decoder:
        raise ValueError(
            f"One of teacher ({teacher_config.model_type}) and student ({student_config.model_type}) is an "
            "encoder-decoder and the other is not, so they write at different places. Use two of one kind."
        )
    return None if theirs == ours else slice(ours)


def same_words(one: Any, other: Any) -> bool:
    """Whether two tokenizers are known, and write the same words under the same numbers."""
    return one is not None and other is not None and bool(one.get_vocab() == other.get_vocab())
