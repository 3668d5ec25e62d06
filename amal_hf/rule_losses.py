"""One loss for every rule that fired."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from amal_hf.columns import is_transformed
from amal_hf.losses import Loss
from amal_hf.rules import Rule, all_votes, check_some_vote, check_votes
from amal_hf.shapes import ABSTAIN, VOTES, Batch, Logits, LossTable
from amal_hf.task import Task, at_least_fp32


class RuleLosses(Loss):
    """Cross-entropy to the vote of each rule, a column a rule; a rule that abstains costs nothing and has no weight.

    With a policy, every rule is believed as far as it helps, on every example anew. For tokens a rule's value is the
    mean over the tokens that it votes on; where a student answers several yes/no questions, a vote is a yes to one.

    Args:
        rules: the rules, or their names, in the order of the column of votes; or how many there are.
        name: of the loss as a whole, in logs.
        column: of votes, `(m,)` a row (`(T, m)` for tokens), -1 for abstaining; as `apply_rules` and `add_votes` write
            it.

    Raises:
        ValueError: no rules, two of one name, or something else.

    References:
        AMAL, arXiv:2202.03250, rule denoising; one term for each rule instead of one for all.
    """

    def __init__(self, rules: Sequence[str | Rule] | int, name: str = "rules", column: str = VOTES) -> None:
        if isinstance(rules, int):
            named = [f"rule_{number}" for number in range(rules)]
        else:
            named = [rule.name if isinstance(rule, Rule) else rule for rule in rules]
        if isinstance(rules, str) or not all(isinstance(name, str) for name in named):
            raise ValueError(f"RuleLosses: rules must be a list of names or rules, or how many; got {rules!r}.")
        if not named or len(set(named)) < len(named):
            raise ValueError(f"RuleLosses: needs rules, each with a name of its own; got {named}.")
        self.rules = named
        self.name = name
        self.column = column
        self.columns = (column,)
        self.task = Task()

    def describe(self) -> str:
        """How many rules."""
        return f"RuleLosses, {len(self.rules)} rules"

    @property
    def names(self) -> tuple[str, ...]:
        """The rules, under the name of the loss."""
        return tuple(f"{self.name}/{rule}" for rule in self.rules)

    def bind(self, task: Task) -> None:
        """Take over the student's problem type."""
        self.task = task

    def check(self, rows: Any, classes: int) -> None:
        """Votes that are there, are of these rules, and are for classes of the student.

        Raises:
            ValueError: says which are not.
        """
        votes_of(rows, self.column, len(self.rules), classes)

    def present(self, batch: Batch) -> Tensor:
        """Which rules fired, `(B, m)`."""
        fired = self._votes(batch) != ABSTAIN
        return fired.any(1) if fired.ndim == 3 else fired

    def __call__(self, outputs: Any, batch: Batch) -> LossTable:
        """`(B, m)`."""
        return self.of_teacher(outputs.logits, batch)

    def of_teacher(self, logits: Logits, batch: Batch) -> LossTable:
        """`(B, m)`: the same for a teacher."""
        votes = self._votes(batch)
        fired = votes != ABSTAIN
        log_p = self._log_probabilities(logits)
        values = torch.where(fired, -log_p.gather(-1, votes.clamp(min=0)), 0.0)
        return values if values.ndim == 2 else values.sum(1) / fired.sum(1).clamp(min=1)

    def _log_probabilities(self, logits: Logits) -> Tensor:
        logits = at_least_fp32(logits)
        several = self.task.problem_type == "multi_label_classification"
        return F.logsigmoid(logits) if several else F.log_softmax(logits, -1)

    def _votes(self, batch: Batch) -> Tensor:
        votes: Tensor = batch[self.column].long()
        if votes.shape[-1] != len(self.rules):
            raise ValueError(
                f"RuleLosses '{self.name}': made for {len(self.rules)} rules, and column '{self.column}' holds votes "
                f"of {votes.shape[-1]}. Make it with the names of all rules, in their order."
            )
        return votes


def votes_of(rows: Any, column: str, rules: int, classes: int) -> NDArray[np.int64] | None:
    """All votes of a dataset, `(n, m)` (of all tokens, where rules vote on these); `None` of a stream, or of rows that
    a function makes.

    Raises:
        ValueError: no such column, rows without votes, votes of another number of rules, or for a class that the
            student does not have.
    """
    names = getattr(rows, "column_names", None)
    if names is None or not hasattr(rows, "__len__") or is_transformed(rows):
        return None
    if column not in names:
        raise ValueError(
            f"Losses of rules read the votes in column '{column}', and the training set has {names}. Write it with "
            f"apply_rules or add_votes."
        )
    parts = [np.asarray(row) for row in all_votes(rows, column)]
    widths = sorted({part.shape[-1] for part in parts})
    if widths != [rules]:
        raise ValueError(f"Column '{column}' holds votes of {widths} rules; the losses are made for {rules}.")
    votes: NDArray[np.int64] = np.concatenate([part.reshape(-1, rules) for part in parts])
    check_votes(votes, classes)
    check_some_vote(votes)
    return votes
