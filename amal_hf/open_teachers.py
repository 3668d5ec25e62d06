"""Opens the teachers that losses compare with, before training."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from amal_hf.distillation import Distillation
from amal_hf.generators import is_encoder_decoder, without_adapters
from amal_hf.sharded import cut
from amal_hf.teacher_inputs import TeacherInputs
from amal_hf.teachers import LiveTeacher, open_teacher


def distillations(teachers: Any) -> list[Distillation]:
    """`teacher_model=` as losses: `teacher`, `teacher_2` and so on; losses of this kind as they are."""
    if teachers is None:
        return []
    several = list(teachers) if isinstance(teachers, (list, tuple)) else [teachers]
    names = ["teacher", *(f"teacher_{number}" for number in range(2, len(several) + 1))]
    return [
        copy.copy(teacher) if isinstance(teacher, Distillation) else Distillation(teacher, name=name)
        for teacher, name in zip(several, names, strict=False)
    ]


def open_teachers(
    losses: Sequence[Distillation],
    *,
    student: Any,
    dataset: Any,
    collator: Callable[[list[Any]], Any],
    columns: set[str],
    tokenizer: Any,
    cache_dir: str | None,
    autocast: Callable[[], AbstractContextManager[Any]],
    cut_over_processes: bool = False,
) -> None:
    """Give every loss its teacher, live or cached.

    Args:
        losses: whose `source` is a model, a name, or a callable that is taken as it is.
        student: whose labels the teachers must have.
        dataset: the training set.
        collator: makes its batches.
        columns: what the student's forward takes, and a teacher's may.
        tokenizer: the student's.
        cache_dir: where logits are kept; `None` for live teachers.
        autocast: the precision that the student computes in.
        cut_over_processes: cut live teachers over all processes, as FSDP2 does the student.
    """
    # The decoder of an encoder-decoder reads what the labels say.
    read = columns | {"labels"} if is_encoder_decoder(student) else columns
    present = getattr(dataset, "column_names", None) or []
    for loss in losses:
        is_model = isinstance(loss.source, nn.Module) and hasattr(loss.source, "config")
        if callable(loss.source) and not is_model:
            loss.teacher = loss.source
            continue
        inputs = TeacherInputs(
            dataset=dataset,
            collator=collator,
            columns=[name for name in present if name in read],
            tokenizer=_tokenizer_in(tokenizer),
            text_columns=loss.text_columns,
        )
        loss.teacher = open_teacher(
            loss.source,
            student=without_adapters(student),
            inputs=inputs,
            tokenizer=loss.tokenizer,
            cache_dir=cache_dir,
            autocast=autocast,
            top=loss.top,
        )
        if cut_over_processes and isinstance(loss.teacher, LiveTeacher):
            cut(loss.teacher.model)


def _tokenizer_in(processing_class: Any) -> Any:
    """A processor of sounds or pictures has a tokenizer beside it; what makes features of these alone has none."""
    found = getattr(processing_class, "tokenizer", processing_class)
    return found if hasattr(found, "get_vocab") else None
