"""Tokens as examples: every labelled token of a batch becomes a row of its own, with a weight of its own.

    ℓ_i = 1/T_i Σ_t w_it ℓ_it        T_i: tokens of example i that count

Losses, policies and features then see what they see of sentences: logits `(n, C)` and labels `(n,)`. The logits of
these tokens are copied, `(n, C)`, where weights of whole examples take them in chunks.
"""

from collections.abc import Sequence, Set
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amal_hf.batch_rows import all_ids_of, kept
from amal_hf.cross_entropy import CrossEntropy
from amal_hf.mixture import Mixture, Weighed
from amal_hf.policies.policy import Signals
from amal_hf.shapes import KEPT, Batch, Evaluation, ExampleIds, Logits, LossTable, PerExample, Targets
from amal_hf.student_states import token_states
from amal_hf.task import Task, distilled_tokens


class TokenRows(NamedTuple):
    """The tokens of a batch that count.

    Attributes:
        mask: `(B, T)`, bool, at the places of their logits.
        example: `(n,)`, the row of the batch that each belongs to.
        share: `(n,)`, `1 / T_i`.
    """

    mask: Tensor
    example: Tensor
    share: PerExample

    def of_logits(self, logits: Logits) -> SimpleNamespace:
        """A student's outputs for these tokens alone."""
        return SimpleNamespace(logits=logits[self.mask])

    def of_batch(self, batch: Batch, task: Task, columns: Set[str]) -> dict[str, Any]:
        """The batch as it is for these tokens: what belongs to tokens token by token, the rest once for each.

        Args:
            batch: prepared.
            task: says how far logits stand from their labels.
            columns: those that hold labels.
        """
        labels = {name: task.targets(batch[name]) for name in columns if name in batch and batch[name].ndim == 2}
        return {name: self._of_value(value) for name, value in {**batch, **labels}.items() if name != KEPT}

    def of_state(self, state: Tensor) -> Tensor:
        """Hidden states `(B, T, D)` of these tokens, or `(B, D)` of their examples; `(n, D)`."""
        return state[self.mask] if state.ndim == 3 else state[self.example]

    def _of_value(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or len(value) != len(self.mask):
            return value
        return value[self.mask] if value.shape[:2] == self.mask.shape else value[self.example]


def token_rows(batch: Batch, task: Task) -> TokenRows:
    """Which tokens of a batch count: those on which a student is compared with its teacher, or with labels.

    Raises:
        ValueError: the batch has one label for a whole example.
    """
    labels = batch.get("labels")
    if labels is not None and labels.ndim != 2:
        raise ValueError(
            f"Method(per_token=True): labels have the shape {tuple(labels.shape)}, one for an example. Weights of "
            f"tokens need labels of tokens; leave per_token out."
        )
    mask = distilled_tokens(batch, task)
    if KEPT in batch:
        mask = mask & (torch.arange(len(mask), device=mask.device) < batch[KEPT])[:, None]
    example = mask.nonzero()[:, 0]
    counts = mask.sum(1)
    return TokenRows(mask, example, 1 / counts[example].to(torch.float32))


def mean_by_example(values: Tensor, rows: TokenRows, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """`(n, K) -> (B, K)`: means over those of each example's tokens that have a loss, 0 where none has; and which do.

    Args:
        values: of tokens.
        rows: which tokens these are.
        present: `(n, K)`, bool: which losses they have; `None` for all.
    """
    there = torch.ones_like(values) if present is None else present.to(values)
    nothing = values.new_zeros(len(rows.mask), values.shape[1])
    sums, counts = (nothing.index_add(0, rows.example, part) for part in (values * there, there))
    return sums / counts.clamp(min=1), counts > 0


class TokenMixture(Mixture):
    """A mixture whose rows are tokens."""

    def _tokens(self, batch: Batch, rows: TokenRows) -> dict[str, Any]:
        labels = {loss.column for loss in self.losses if isinstance(loss, CrossEntropy)}
        return rows.of_batch(batch, self.task, labels | {"labels"})

    def ids(self, batch: Batch) -> ExampleIds:
        """The example that each token belongs to."""
        return all_ids_of(batch)[token_rows(batch, self.task).example]

    def evaluate(self, outputs: Any, batch: Batch, targets: Targets | None = None, reads: bool = True) -> Evaluation:
        """All losses of all tokens, `(n, K)`, each already divided by the tokens of its example."""
        rows = token_rows(batch, self.task)
        flat, tokens = rows.of_logits(outputs.logits), self._tokens(batch, rows)
        losses = self._table(flat, tokens)
        states = tuple(rows.of_state(state) for state in token_states(outputs, batch))
        teachers = tuple(tokens[loss.logits_key] for loss in self.distillations)
        task = replace(self.task, shifted=False)
        ask = partial(self.ask, batch=tokens)
        present = partial(self._all_present, tokens)
        signals = Signals(losses.detach(), flat.logits.detach(), teachers, tokens, task, states, ask, present)
        return Evaluation(losses * rows.share[:, None].to(losses), self._features(signals, reads))

    def _rows(self, batch: Batch) -> Batch:
        return self._tokens(batch, token_rows(batch, self.task))

    def weigh(self, outputs: Any, batch: Batch, progress: float, targets: Targets | None = None) -> Weighed:
        """As for examples; what is noted for the log are the losses of tokens as they are."""
        weighed = super().weigh(outputs, batch, progress, targets)
        share = token_rows(batch, self.task).share[:, None]
        return weighed._replace(losses=weighed.losses / share.to(weighed.losses))

    def present_of(self, batches: Sequence[Batch]) -> Tensor | None:
        """Which losses the tokens have; teachers' logits do not say, and are as large as the student's."""
        logits = {loss.logits_key for loss in self.distillations}
        told = [{name: value for name, value in batch.items() if name not in logits} for batch in batches]
        return super().present_of([self._tokens(batch, token_rows(batch, self.task)) for batch in told])

    def remember(self, batch: Batch, weights: LossTable, present: Tensor | None) -> None:
        """The mean weight of an example's tokens that have the loss; NaN for an example without tokens."""
        rows = token_rows(batch, self.task)
        means, _ = mean_by_example(weights, rows, present)
        counted = torch.where(rows.mask.any(1, keepdim=True), means, torch.nan)
        super().remember(batch, kept(counted, batch), None)

    def note(self, outputs: Any, batch: Batch, losses: LossTable, present: Tensor | None) -> None:
        """The mean loss of an example's tokens that have it."""
        rows = token_rows(batch, self.task)
        means, there = mean_by_example(losses / rows.share[:, None].to(losses), rows, present)
        super().note(outputs, batch, kept(means, batch), kept(there, batch))
