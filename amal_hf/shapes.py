"""Names for the shapes and containers that the mathematics passes around.

Legend, used in every docstring of the package:

    B  examples in a batch         K  losses            C  classes
    T  tokens of a sequence        F  features a policy sees of an example
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor


PerExample: TypeAlias = Tensor
"""`(B,)`: one value an example."""

LossTable: TypeAlias = Tensor
"""`(B, K)`: one value for every example and loss."""

Features: TypeAlias = Tensor
"""`(B, F)`: what a policy looks at; `F` may be 0."""

ExampleIds: TypeAlias = Tensor
"""`(B,)`, int64: the row of the training set (or, for a stream, its own id)."""

Logits: TypeAlias = Tensor
"""`(B, C)`, or `(B, T, C)` where tokens are labelled or written."""

Params: TypeAlias = Mapping[str, Tensor]
"""Parameters (or a vector shaped like them) by name."""

Batch: TypeAlias = Mapping[str, Any]
"""What a collator returns, on the student's device."""

Targets: TypeAlias = Sequence[tuple[Batch, PerExample]]
"""Batches to take the losses from, each with the share that it has of an example's loss."""

Teacher: TypeAlias = Callable[[Batch], Any]
"""Anything that gives fixed `Logits` for a batch, in the student's label order (or the largest: `TopLogits`)."""


class Evaluation(NamedTuple):
    """What one forward pass of the student over a batch gives."""

    losses: LossTable
    features: Features

    @classmethod
    def joined(cls, parts: Sequence["Evaluation"]) -> "Evaluation":
        """That of several batches as one."""
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))


Evaluate: TypeAlias = Callable[[], Evaluation]
"""Runs the student at its present parameters over a fixed batch."""

IGNORED = -100
"""The label of a row, or of a token, that has none, as `transformers` marks it."""

ABSTAIN = -1
"""The vote of a rule that says nothing."""

VOTES = "weak_labels"
"""The column of votes, one number for each rule."""

TRUE_LABEL = "true_label"
"""The column of true classes, where they are known and `label` is not to be trusted or left out."""

EXAMPLE_ID = "example_id"
"""The column that carries `ExampleIds` from the training set to the losses."""

META_ROW = "amal_meta_row"
"""The column of a meta batch that says which rows of the meta set it has."""

WITHOUT_SOURCE = "amal_without_source"
"""The column of a prepared batch that says what its targets cost a translator that sees no source, `(B,)`."""

REPEATED = "amal_is_repeated"
"""The column that marks rows of a stream that only fill up its last batch."""

KEPT = "kept_rows"
"""How many rows of a batch count, from the first; without this entry all do. The rest only keep a process busy."""
