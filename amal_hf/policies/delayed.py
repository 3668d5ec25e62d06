"""Weights that are learned first and used afterwards."""

from collections.abc import Callable

import torch
from torch import Tensor

from amal_hf.clean_probe import CleanRows
from amal_hf.policies.policy import Observation, Policy, Signals, Sizes, among_present, sharing, weights_of
from amal_hf.policies.store import RowStore
from amal_hf.processes import rows_of_all
from amal_hf.shapes import ExampleIds, Features, Logits, LossTable, PerExample


class Delayed(Policy):
    """The initial mixture for a share of training; then every example keeps the weights that a policy gave it last.

    A student that trains on everything shows what each example does to it. Once weights act, examples that have lost
    theirs are not learned any more, so their slopes say less and less. After the first part nothing is learned, and
    training costs what it does with a fixed mixture.

    Args:
        policy: learns from the end of the meta warm-up.
        until: share of training, in (0, 1).
        draw: from the first pass that begins then, draw rows as often as their weights say, in the place of weighing
            them: on average the same loss, but no step is spent on examples without weight. As each such pass begins,
            the policy is asked anew about all rows, which costs a forward pass over them: a student that trains on
            fewer wrong examples tells them better. For a training set whose rows are known, drawn at random.

    Raises:
        ValueError: a share out of its range, or weights that hold for one step or are not learned.
    """

    needs_ids = True
    mixture: Tensor
    asked: Tensor
    store: RowStore

    def __init__(self, policy: Policy, until: float, draw: bool = False) -> None:
        super().__init__()
        if not 0 < until < 1:
            raise ValueError(f"Delayed: until must be a share of training between 0 and 1, got {until}.")
        if policy.holds_for_one_step:
            raise ValueError(
                f"Delayed: weights of {type(policy).__name__} hold for one step: nothing is learned before they are "
                f"used. Use AMALArguments.meta_warmup_steps."
            )
        if not policy.learns:
            raise ValueError(
                f"Delayed: {type(policy).__name__} does not learn its weights, so none would ever be used. Use it "
                f"alone, with a later start of its own where it has one (SmallLoss.ramp)."
            )
        self.policy = policy
        self.until = until
        self.draws = draw
        self.needs_hidden_states = policy.needs_hidden_states
        self.needs_source_gain = policy.needs_source_gain
        self.needs_one_class = policy.needs_one_class
        self.notes_steps = policy.notes_steps
        self.reads_clean_states = policy.reads_clean_states
        self.interval = policy.interval
        self.learning_rate = policy.learning_rate

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """Everything begins at the initial mixture.

        Raises:
            ValueError: a policy with a table too large for memory, as a checkpoint holds only one that is a file.
        """
        self.drawn = False
        self.register_buffer("mixture", initial.clone())
        self.register_buffer("asked", torch.zeros((), dtype=torch.float64))
        self.store = RowStore(sizes.examples, initial, sizes.folder)
        self.policy.learning_rate = self.learning_rate
        self.policy.reset(sizes._replace(folder=None), initial)
        self.citation = self.policy.citation
        rows = self.policy.rows()
        if rows is not None and not rows.in_memory:
            raise ValueError(
                f"Delayed: {type(self.policy).__name__} for {sizes.examples} examples and {sizes.losses} losses would "
                f"be a file beside the file of weights in use, and checkpoints keep one. Use a network, or the table "
                f"without Delayed."
            )

    def note_clean(self, rows: CleanRows) -> None:
        """For the policy."""
        self.policy.note_clean(rows)

    def note_step(self, features: Features) -> None:
        """For the policy."""
        self.policy.note_step(features)

    @property
    def rows_wanted(self) -> int:
        """By the policy."""
        return self.policy.rows_wanted

    def note_labels(self, logits: Logits, labels: PerExample) -> None:
        """For the policy."""
        self.policy.note_labels(logits, labels)

    def figures(self) -> dict[str, float]:
        """Those of the policy."""
        return self.policy.figures()

    def observe(self, signals: Signals) -> Features:
        """As the policy does."""
        return self.policy.observe(signals)

    def weights(self, observation: Observation) -> LossTable:
        """The initial mixture, `(B, K)`, or the examples' rows; of one that was never judged the mixture all along."""
        self.mixture = self.mixture.to(observation.features.device)  # once: a GPU would be waited for at every step
        initial = among_present(self.mixture, observation)
        if not isinstance(observation.progress, Tensor) and observation.progress < self.until:
            return initial
        held = self.store.read(observation.ids)
        unlearned = (observation.progress_of(held) < self.until) | (held == self.mixture.to(held)).all(1, keepdim=True)
        weights = torch.where(unlearned, initial.to(held), held)
        return sharing(weights, initial.to(held)) if self.drawn else weights

    @torch.no_grad()
    def update(self, observation: Observation, slopes: LossTable) -> None:
        """As the policy does; the examples get its weights as they are then."""
        with torch.enable_grad():
            self.policy.update(observation, slopes)
        self._keep(observation)

    def _keep(self, observation: Observation) -> None:
        weights = rows_of_all(weights_of(self.policy, observation))
        if self.policy.sums_to_one:  # and the mixture of examples that were not judged may not
            weights = weights * self.mixture.sum().to(weights)
        self.store.write(rows_of_all(observation.ids), weights)

    def learns_at(self, progress: float) -> bool:
        """Until its weights are used."""
        return progress < self.until

    def reads_at(self, progress: float) -> bool:
        """Until its weights are used: they belong to examples."""
        return progress < self.until

    def rates(self, progress: float) -> PerExample | None:
        """The sums of the rows, `(N,)`, once weights are used, if rows are to be drawn; this pass is weighed so."""
        self.drawn = self.draws and progress >= self.until
        return torch.cat([rows.sum(1).cpu() for _, rows in self.store.blocks()]) if self.drawn else None

    def wants_rows_at(self, progress: float) -> bool:
        """Once a pass from which rows are drawn; what a policy keeps by example has not changed."""
        return self.draws and self.policy.rows() is None and self.until <= progress != self.asked.item()

    @torch.no_grad()
    def note_rows(self, observation: Observation) -> None:
        """The examples get the weights that the policy gives them now, as at the last progress it has learned at."""
        self.asked.fill_(observation.progress)
        self._keep(observation._replace(progress=self.until))

    def restorer(self, ids: ExampleIds) -> Callable[[], None]:
        """What the policy knows, and the examples' rows."""
        inner, rows = self.policy.restorer(ids), self.store.read(ids)

        def restore() -> None:
            inner()
            self.store.write(ids, rows)

        return restore

    def rows(self) -> RowStore:
        """What the policy gave each example, used or not."""
        return self.store

    def describe(self) -> str:
        """The policy, and from when on its weights are used."""
        used = "rows drawn" if self.draws else "used"
        return f"{self.policy.describe()}, {used} from {self.until:.0%} of training on"
