"""What targets cost a translator that sees no source, or a recogniser that hears nothing: its decoder alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from amal_hf.learner import Student
from amal_hf.policies.source_gain import target_cost
from amal_hf.shapes import Batch, PerExample
from amal_hf.student_states import with_logits
from amal_hf.task import Task
from amal_hf.undisturbed import undisturbed


@dataclass
class _Source(BaseModelOutput):
    """What an encoder has read; decoders of sounds ask it how much of that counts."""

    attention_mask: Tensor | None = None


def cost_without_source(student: Student, batch: Batch, task: Task) -> PerExample:
    """`(B,)`: cross-entropy of the targets where the decoder has one state of zeros to look at, without dropout.

    Attention to zeros adds nothing but its biases. Of the kinds of "no source" that were tried this one told wrong
    pairs best, and it is the same however a batch is cut, which another pair's source is not.
    """
    with undisturbed(student.model), torch.no_grad():
        outputs = with_logits(student.forward(**_decoder_inputs(student, batch)))
        return target_cost(outputs.logits, batch["labels"], task)


def _decoder_inputs(student: Student, batch: Batch) -> dict[str, Any]:
    """What the student's forward takes, less all that says what the source is."""
    given = student.inputs.plain(batch)
    own = {name: value for name, value in given.items() if name.startswith("decoder_") or name == "use_cache"}
    labels = batch["labels"]
    model: Any = student.model
    nothing = torch.zeros(len(labels), 1, model.get_encoder().config.hidden_size, device=labels.device)
    seen = {"attention_mask": labels.new_ones(len(labels), 1)} if "attention_mask" in given else {}
    return {**own, **seen, "encoder_outputs": _Source(last_hidden_state=nothing.to(model.dtype))}
