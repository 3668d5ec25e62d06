"""A small network that reads how student and teachers do on an example, and weighs its losses."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from amal_hf.class_counts import MOST_CLASSES, ClassCounts, class_of
from amal_hf.clean_probe import CleanProbe, CleanRows
from amal_hf.losses import CrossEntropy, entropy
from amal_hf.policies.bounds import GatedConvex, MeanOne, Normalisation
from amal_hf.policies.policy import Observation, Policy, Signals, Sizes
from amal_hf.processes import summed_gradients, total_count
from amal_hf.shapes import Features, Logits, LossTable
from amal_hf.top_logits import TopLogits
from amal_hf.wrong_labels import WrongLabels


class LossNetwork(Policy):
    """Weights from surface statistics of an example.

    It sees the losses, the probability that student, teachers and a probe give the label, their entropies, how common
    the label's class has been so far, and progress. The probe says what the clean rows alone make of an example
    (`clean_probe.py`), where the student gives one class for each. What the network learns on one example holds for
    all that look alike, so it needs a meta step only now and then and follows the student as it trains. It starts at
    the initial mixture for every example; from the first meta step on, examples of rare classes count more
    (`balance`). Where there is nothing but labels, weights are what was learned only as far as clean rows tell
    that labels are wrong, or of other classes (`wrong_labels.py`): where they are as good, examples weigh alike.

    Args:
        hidden: width of the one hidden layer.
        learning_rate: of its own Adam. 1e-2: at 3e-3 the pattern came too late to matter.
        normalisation: by default `GatedConvex()`, a softmax over the losses of an example times how much it counts,
            where there is a teacher that can stand in for a wrong label, and `MeanOne()` where there is none: then
            examples compete, as all that is said of one may be wrong. `benchmarks/LOG.md` compares these in both
            cases. Or `Convex()`, `ConvexOrNone()`, `AboveAverage()`.
        seed: of its first weights.
        balance: an example starts by counting for its class's count to the power of `-balance`, scaled to a mean of
            one: with 1 all classes weigh the same in total, with 0 all examples do. 0.5: most of what 1 wins on rare
            classes, and at most 0.3 points lost elsewhere (`benchmarks/LOG.md`). Without effect in subclasses with
            features of their own, and with a normalisation that fixes what an example counts for, as `Convex()` does.
        probe: read what the clean rows alone say. Leave it out of a network that is to be reused (`Frozen`), where
            there are none. Not in subclasses with features of their own.

    Raises:
        ValueError: a number out of its range.

    References: The form of Meta-Weight-Net (Shu et al. 2019, arXiv:1902.07379), widened from one loss to several,
        inside AMAL's objective (arXiv:2202.03250).
    """

    interval = 4
    network: nn.Module
    normalisation: Normalisation
    pulls: Tensor

    def __init__(
        self,
        hidden: int = 32,
        learning_rate: float = 1e-2,
        normalisation: Normalisation | None = None,
        seed: int = 0,
        balance: float = 0.5,
        probe: bool = True,
    ) -> None:
        super().__init__()
        if hidden < 1 or not 0 < learning_rate < float("inf"):
            raise ValueError(
                f"{type(self).__name__}: hidden and learning_rate must be positive and finite, got {hidden} and "
                f"{learning_rate}."
            )
        if not 0 <= balance <= 1:
            raise ValueError(f"LossNetwork: balance must lie in [0, 1], got {balance}.")
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.register_buffer("pulls", torch.ones(1), persistent=False)
        self.by_sizes = normalisation is None
        self.normalisation = MeanOne() if normalisation is None else normalisation
        self.seed = seed
        self.balance = balance
        self.reads_clean_states = probe and self.counts_classes

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """A new network that starts with the initial mixture."""
        self.pulls = torch.tensor(sizes.pulls or [1.0] * sizes.losses)
        if self.counts_classes:
            self.class_counts = ClassCounts(sizes.classes)
        if self.reads_clean_states:
            self.probe = CleanProbe(sizes.classes)
            self.wrong_labels = WrongLabels()
        self.labels_alone = sizes.labels_alone
        if self.by_sizes:
            self.normalisation = self.usual_normalisation(sizes)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            self.network = self.new_network(sizes, self.normalisation.start(initial))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)

    @property
    def counts_classes(self) -> bool:
        """Whether the last of the features is the number of the class: not where a subclass has its own."""
        return type(self).observe is LossNetwork.observe

    def usual_normalisation(self, sizes: Sizes) -> Normalisation:
        """What weights are normalised by where nothing else was asked for."""
        return GatedConvex() if sizes.teachers else MeanOne()

    def new_network(self, sizes: Sizes, start: Tensor) -> nn.Module:
        """From `inputs` to scores, which are `start` at first: the output layer's weight is zero."""
        last = nn.Linear(self.hidden, len(start))
        nn.init.zeros_(last.weight)
        last.bias.data.copy_(start)
        return nn.Sequential(self.body(sizes), nn.Tanh(), last)

    def observe(self, signals: Signals) -> Features:
        """`(B, K + 3 + 2 teachers + 2)`: the surface, and the number of the label's class."""
        surface = self.surface(signals)
        return torch.cat([surface, class_of(signals.batch, len(surface), surface.device)[:, None]], 1)

    def surface(self, signals: Signals) -> Features:
        """`(B, K + 2 + 2 teachers + 2)`: log losses, then fit and entropy of student, teachers and probe."""
        seen = [fit_and_entropy(logits, signals) for logits in (signals.logits, *signals.teacher_logits)]
        if self.reads_clean_states:
            seen.append(self._probed(signals))
        # A loss may be negative (a user's own); what matters is its order of magnitude.
        return torch.cat([signals.losses.clamp(min=0).log1p(), *seen], 1).detach()

    def note_clean(self, rows: CleanRows) -> None:
        """For the probe, unless classes are words."""
        if self.probe.classes <= MOST_CLASSES:
            self.probe.note(rows)

    def _probed(self, signals: Signals) -> Tensor:
        """`(B, 2)`: fit and entropy of the probe; of a coin where it has not been shown anything."""
        if not self.probe.knows:
            return signals.losses.new_tensor([0.5, 1.0]).expand(len(signals.losses), 2)
        return fit_and_entropy(self.probe.logits(signals.hidden_states[-1]), signals)

    def weights(self, observation: Observation) -> LossTable:
        """`(B, K)`, with a graph to the network."""
        scores, counts_for = self._scores(observation), self._counts_for(observation)
        weights: LossTable = self.normalisation(scores, observation.present, counts_for)
        if not (self.reads_clean_states and self.labels_alone):
            return weights
        alike = torch.ones_like(weights) if counts_for is None else counts_for
        if observation.present is not None:
            alike = alike * observation.present
        return torch.lerp(alike.to(weights), weights, self.wrong_labels.strength.to(weights))

    def update(self, observation: Observation, slopes: LossTable) -> None:
        """One Adam step on `−mean Σ_k w_ik(φ) s_ik / pull_k`.

        The gradient is taken without touching any `.grad` of the student.
        """
        if self.counts_classes:
            self.class_counts.note(observation.features[:, -1])
        if self.reads_clean_states:
            *_, beliefs, _, classes = observation.features.unbind(1)
            self.wrong_labels.note(self.probe, beliefs, classes, self.class_counts.seen)
        scores, counts_for = self._scores(observation), self._counts_for(observation)
        weights = self.normalisation.of_step(scores, observation.present, counts_for)
        gain = (weights * slopes / self.pulls).sum() / total_count(len(slopes), slopes.device)
        parameters = dict(self.network.named_parameters())
        for name, gradient in summed_gradients(-gain, parameters).items():
            parameters[name].grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.normalisation.follow(scores.detach(), self._scores(observation), observation.present, counts_for)

    def figures(self) -> dict[str, float]:
        """`wrong_labels`: the share of training labels that are wrong, where clean rows can tell."""
        share = float(self.wrong_labels.share) if self.reads_clean_states else math.nan
        return {} if math.isnan(share) else {"wrong_labels": share}

    def describe(self) -> str:
        """Width, normalisation, and whether clean rows are read."""
        probe = ", clean probe" if self.reads_clean_states else ""
        return f"{type(self).__name__}, hidden {self.hidden}, {type(self.normalisation).__name__}{probe}"

    def get_extra_state(self) -> dict[str, object]:
        """Adam's moments, saved with the weights."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, object]) -> None:
        """Restore Adam's moments."""
        self.optimizer.load_state_dict(state)

    def inputs(self, observation: Observation) -> Tensor:
        """What the network reads: features with how common a class is in the place of its number, and progress."""
        features = observation.features
        if self.counts_classes:
            features = torch.cat([features[:, :-1], self.class_counts.commonness(features[:, -1:])], 1)
        features = features.to(next(self.network.parameters()).dtype)
        progress = torch.as_tensor(observation.progress, dtype=features.dtype, device=features.device)
        return torch.cat([features, progress.expand(len(features))[:, None]], 1)

    def body(self, sizes: Sizes) -> nn.Module:
        """From `inputs` to the hidden layer."""
        return nn.Linear(self.width(sizes), self.hidden)

    def width(self, sizes: Sizes) -> int:
        """Columns of `inputs`."""
        return self.surface_width(sizes) + 1

    def surface_width(self, sizes: Sizes) -> int:
        """Columns of surface statistics, progress included."""
        return sizes.losses + 2 * (1 + sizes.teachers + self.reads_clean_states) + 1

    def _counts_for(self, observation: Observation) -> Tensor | None:
        if not self.counts_classes:
            return None
        return self.class_counts.balance(observation.features[:, -1:], self.balance)

    def _scores(self, observation: Observation) -> Tensor:
        inputs = self.inputs(observation)
        if inputs.device != next(self.network.parameters()).device:
            self._move(inputs.device)
        scores: Tensor = self.network(inputs)
        return scores

    def _move(self, device: torch.device) -> None:
        # Adam's moments follow their parameters when its own state is loaded again.
        state = self.optimizer.state_dict()
        self.to(device)
        self.optimizer.load_state_dict(state)


def fit_and_entropy(logits: Logits | TopLogits, signals: Signals) -> Tensor:
    """`(B, 2)`: probability of the label (its generalisation `exp(−loss)` for other tasks), and relative entropy."""
    # Without label smoothing: a probability is wanted.
    task, labels = replace(signals.task, label_smoothing=0.0), signals.batch.get("labels")
    scores = logits.logits if isinstance(logits, TopLogits) else logits
    share = entropy(scores, task, signals.batch)
    if labels is None:
        return torch.stack([torch.ones_like(share), share], 1)
    if isinstance(logits, TopLogits):
        labels, task = logits.positions(task.targets(labels)), replace(task, shifted=False)
    cross_entropy = CrossEntropy()
    cross_entropy.bind(task)
    return torch.stack([cross_entropy.of_logits(scores, labels).neg().exp(), share], 1)
