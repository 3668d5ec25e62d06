"""One small network for all losses, for mixtures of many of which an example has few: the votes of rules."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amal_hf.policies.bounds import Convex, MeanOne, Normalisation
from amal_hf.policies.network_policy import NetworkPolicy
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.policies.surface import fit_and_entropy
from amal_hf.shapes import Features


class PerLossNetwork(NetworkPolicy):
    """Weights from a network that reads one loss of an example at a time, and a score of each loss's own.

    `LossNetwork` learns an output for each loss, from the examples that have it. A rule that fires on one example in a
    hundred has next to none; here what is learned of one rule's votes holds for all. Of a loss it sees its size, the
    probability `exp(−loss)` of what it asks for, the mean of that over the example's other losses, the student's
    entropy, progress, and both of the first for each teacher: whether it would have voted so.

    Args:
        hidden: width of the one hidden layer.
        learning_rate: of its own Adam; 3e-3. Without a teacher it orders the rules of a set of questions better than
            1e-2, and beside one its students were better (`benchmarks/LOG.md`).
        normalisation: by default `Convex()` beside a teacher and `MeanOne()` without. Not `GatedConvex`: no reader of
            one loss can say how much the whole example counts.
        seed: of its first weights.

    Raises:
        ValueError: a number out of its range, or a normalisation that asks for a score of the whole example.

    References: AMAL's objective (arXiv:2202.03250) with a network in the place of free weights.
    """

    interval = 4

    def __init__(
        self, hidden: int = 32, learning_rate: float = 3e-3, normalisation: Normalisation | None = None, seed: int = 0
    ) -> None:
        super().__init__(hidden, learning_rate, normalisation, seed)
        if self.normalisation.scores_example:
            kind = type(normalisation).__name__
            raise ValueError(
                f"PerLossNetwork: {kind} needs a score for the whole example, and this network reads one loss at a "
                f"time. Use Convex(), ConvexOrNone() or MeanOne(), or LossNetwork(normalisation={kind}())."
            )

    def usual_normalisation(self, sizes: Sizes) -> Normalisation:
        """A softmax over the losses beside a teacher."""
        return Convex() if sizes.teachers else MeanOne()

    def new_network(self, sizes: Sizes, start: Tensor) -> nn.Module:
        """The reader of one loss, and the scores that losses start with."""
        self.tables = 1 + len(sizes.teachers)
        return _Reader(self.width(sizes), self.hidden, start)

    def width(self, sizes: Sizes) -> int:
        """What is read of one loss."""
        return 5 + 2 * len(sizes.teachers)

    def observe(self, signals: Signals) -> Features:
        """`(B, K (1 + teachers) + 1)`: the losses, what they cost the teachers, and the student's entropy."""
        entropy = fit_and_entropy(signals.logits, signals)[:, 1:].detach()
        # A loss may be negative (a user's own); what matters is its order of magnitude.
        tables = (signals.losses, *map(signals.ask, signals.teacher_logits))
        losses = [table.detach().clamp(min=0) for table in tables]
        return torch.cat([*losses, entropy], 1)

    def inputs(self, observation: Observation) -> Tensor:
        """`(B, K, 5 + 2 teachers)`: what is read of each loss."""
        features = observation.features.to(next(self.network.parameters()).dtype)
        (losses, *asked), entropy = features[:, :-1].chunk(self.tables, 1), features[:, -1:]
        present = torch.ones_like(losses) if observation.present is None else observation.present.to(losses)
        fit = losses.neg().exp() * present
        others = (fit.sum(1, keepdim=True) - fit) / (present.sum(1, keepdim=True) - 1).clamp(min=1)
        rest = [part.expand_as(losses) for part in (entropy, observation.progress_of(losses))]
        teachers = [part for table in asked for part in (table.log1p(), table.neg().exp())]
        return torch.stack([losses.log1p(), fit, others, *rest, *teachers], -1)


class _Reader(nn.Module):
    """Scores `(B, K)` from `(B, K, width)`; one more for "none of them" where the normalisation has that choice."""

    def __init__(self, width: int, hidden: int, start: Tensor) -> None:
        super().__init__()
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.shared = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), last)
        self.scores = nn.Parameter(start.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """What all losses share, added to the score of each."""
        shared = self.shared(inputs)[..., 0]
        return F.pad(shared, (0, len(self.scores) - shared.shape[1])) + self.scores
