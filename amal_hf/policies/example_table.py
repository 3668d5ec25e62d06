"""A free weight for every example and loss: AMAL's own policy."""

from collections.abc import Callable

import torch
from torch import Tensor

from amal_hf.own_adam import check_learning_rate
from amal_hf.policies.bounds import Projection, clamp
from amal_hf.policies.policy import Observation, Policy, Sizes, as_mixture
from amal_hf.policies.store import RowStore
from amal_hf.processes import rows_of_all
from amal_hf.shapes import ExampleIds, LossTable


class ExampleTable(Policy):
    """One row for an example, one column for a loss; every update moves the rows of the batch along their slopes.

    An example is only judged when it is in the batch of a meta step, so a table wants one at every training step.
    Weights are free: what an example lacks leaves its share to nobody, while a fixed or convex mixture shares it out.

    Args:
        learning_rate: step on a weight for a slope of average size. The official code multiplies by 1500·lr/B, which
            at lr 2e-5 and B = 32 moves nothing.
        bound: `clamp` (each weight in [0, 2], the default) or `convex` (each row on the simplex).
        initial: `(K,)` weights to start from; `None` takes the run's mixture.

    Raises:
        ValueError: a learning rate that is not positive and finite.

    References:
        AMAL, arXiv:2202.03250, section "Adaptive mixing"; bounds as in the official code.
    """

    needs_ids = True
    store: RowStore

    def __init__(
        self, learning_rate: float = 0.1, bound: Projection = clamp, initial: list[float] | None = None
    ) -> None:
        super().__init__()
        check_learning_rate(self, learning_rate)
        self.learning_rate = learning_rate
        self.bound = bound
        self.initial = initial

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """All rows back to the initial mixture."""
        start = initial if self.initial is None else as_mixture(self.initial, sizes.losses)
        self.store = RowStore(sizes.examples, self.bound(start[None])[0], sizes.folder)

    def weights(self, observation: Observation) -> LossTable:
        """The examples' rows."""
        return self.store.read(observation.ids)

    @torch.no_grad()
    def update(self, observation: Observation, slopes: LossTable) -> None:
        """`w ← bound(w + learning_rate · slope)` for the rows of the batch; ids and slopes of all processes travel."""
        slopes = rows_of_all(slopes)
        # The steps of a trajectory may hold an example more than once: its moves add up.
        ids, places = rows_of_all(observation.ids).unique(return_inverse=True)
        moves = slopes.new_zeros(len(ids), slopes.shape[1]).index_add(0, places, slopes)
        self.store.write(ids, self.bound(self.store.read(ids) + self.learning_rate * moves))

    def restorer(self, ids: ExampleIds) -> Callable[[], None]:
        """Keeps the examples' rows, not the whole table."""
        rows = self.store.read(ids)
        return lambda: self.store.write(ids, rows)

    def rows(self) -> RowStore:
        """The table itself."""
        return self.store
