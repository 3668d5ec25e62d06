"""What the student is fed with: a batch as it is, or as a batch policy changes it."""

from collections.abc import Set
from typing import Any

from torch import nn

from amal_hf.batch_policies.batch_policy import BatchPolicy
from amal_hf.shapes import Batch, Targets


class StudentInputs:
    """Picks from a batch what the student's forward takes; never labels, since losses are computed outside.

    Args:
        model: the student itself, without wrappers.
        columns: names that its forward takes.
        hidden_states: whether to ask for hidden states.
        batch_policy: changes the batches that are trained on.
    """

    def __init__(
        self, model: nn.Module, columns: Set[str], hidden_states: bool, batch_policy: BatchPolicy | None
    ) -> None:
        self.model = model
        self.columns = columns
        self.hidden_states = hidden_states
        self.batch_policy = batch_policy

    def plain(self, batch: Batch) -> dict[str, Any]:
        """The batch as it is."""
        inputs = {name: value for name, value in batch.items() if name in self.columns}
        if self.hidden_states:
            inputs["output_hidden_states"] = True
        # Generators otherwise keep keys and values of all layers for the next word.
        return {**inputs, "use_cache": False} if "use_cache" in self.columns else inputs

    def trained(self, batch: Batch, step: int) -> tuple[dict[str, Any], Targets | None]:
        """The batch as it is trained on at an optimizer step, and what to compare with if not the batch itself."""
        inputs = self.plain(batch)
        if self.batch_policy is None:
            return inputs, None
        embed: Any = self.model.get_input_embeddings
        embeddings = embed()(inputs.pop("input_ids"))
        self.batch_policy.follow_to(embeddings.device)
        changed = self.batch_policy.change(embeddings, batch, step)
        seen = {"inputs_embeds": changed.embeddings, "attention_mask": changed.attention_mask}
        return {**inputs, **seen}, changed.targets
