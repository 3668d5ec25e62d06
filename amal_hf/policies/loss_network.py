"""A small network that reads how student and teachers do on an example, and weighs its losses."""

import math

import torch
from torch import Tensor

from amal_hf.class_counts import MOST_CLASSES, ClassCounts, class_of
from amal_hf.clean_probe import CleanProbe, CleanRows
from amal_hf.policies.bayes_share import BayesShare
from amal_hf.policies.bounds import GatedConvex, MeanOne, Normalisation
from amal_hf.policies.network_policy import NetworkPolicy
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.policies.surface import fit_and_entropy, surface, surface_width
from amal_hf.shapes import Features, Logits, LossTable, PerExample
from amal_hf.wrong_labels import WrongLabels


SLOWER = 0.1
"""Of the learning rate where the start is worth keeping: over features 80.5 on dev for 79.5 on the mean of nine
settings, for 2 layers on banking77 81.9 for 81.2 (`benchmarks/LOG.md`)."""


class LossNetwork(NetworkPolicy):
    """Weights from surface statistics of an example.

    It sees the losses, the probability that student, teachers and a probe give the label, their entropies, how common
    the label's class has been so far, and progress. The probe says what the clean rows alone make of an example
    (`clean_probe.py`), where the student gives one class for each. What the network learns on one example holds for
    all that look alike, so it needs a meta step only now and then and follows the student as it trains. It starts at
    the initial mixture for every example; from the first meta step on, examples of rare classes count more
    (`balance`). Where there is nothing but labels, weights are what was learned only as far as clean rows tell
    that labels are wrong, or of other classes (`wrong_labels.py`): where they are as good, examples weigh alike.

    Beside a teacher that has not seen the labels (`Distillation(..., has_seen_labels=False)`) it starts at the mixture
    of Bayes' rule (`noisy_labels.py`), reads the label's share in it, and learns where it is wrong: where examples
    have one of at most 512 classes, and `normalisation` is a mixture of each example's losses. That teacher is asked
    about up to 10,000 training rows, drawn at random, before the first meta step, and believed as surely as it is
    calibrated, or else as these labels say; of a stream, which has none to draw from, it starts at the initial
    mixture.

    Args:
        hidden: width of the one hidden layer.
        learning_rate: of its own Adam. 1e-2: at 3e-3 the pattern came too late to matter. A tenth of it where it
            starts from Bayes' rule.
        normalisation: by default `GatedConvex()`, a softmax over the losses of an example times how much it counts,
            where there is a teacher that can stand in for a wrong label, and `MeanOne()` where there is none: then
            examples compete, as all that is said of one may be wrong. `benchmarks/LOG.md` compares these in both
            cases. Or `Convex()`, `ConvexOrNone()`, `AboveAverage()`.
        seed: of its first weights.
        balance: an example starts by counting for its class's count to the power of `-balance`, scaled to a mean of
            one: with 1 all classes weigh the same in total, with 0 all examples do. 0.5: most of what 1 wins on rare
            classes, and at most 0.3 points lost elsewhere (`benchmarks/LOG.md`). Without effect with a normalisation
            that fixes what an example counts for, as `Convex()` does.
        probe: read what the clean rows alone say. Leave it out of a network that is to be reused (`Frozen`), where
            there are none.

    Raises:
        ValueError: a number out of its range.

    References: The form of Meta-Weight-Net (Shu et al. 2019, arXiv:1902.07379), widened from one loss to several,
        inside AMAL's objective (arXiv:2202.03250). Labels and a classifier by Bayes' rule: Khetan et al. 2018,
        arXiv:1712.04577.
    """

    interval = 4
    bayes: BayesShare | None

    def __init__(
        self,
        hidden: int = 32,
        learning_rate: float = 1e-2,
        normalisation: Normalisation | None = None,
        seed: int = 0,
        balance: float = 0.5,
        probe: bool = True,
    ) -> None:
        super().__init__(hidden, learning_rate, normalisation, seed)
        if not 0 <= balance <= 1:
            raise ValueError(f"LossNetwork: balance must lie in [0, 1], got {balance}.")
        self.balance = balance
        self.reads_clean_states = probe
        self.bayes = None

    def usual_normalisation(self, sizes: Sizes) -> Normalisation:
        """By whether anything can stand in for a wrong label."""
        return GatedConvex() if sizes.teachers else MeanOne()

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """A new network, and nothing known of classes, labels and clean rows."""
        self.class_counts = ClassCounts(sizes.classes)
        if self.reads_clean_states:
            self.probe = CleanProbe(sizes.classes)
            self.wrong_labels = WrongLabels()
        self.labels_alone = sizes.labels_alone
        mixes = self.takes_usual or self.normalisation.is_mixture
        self.bayes = BayesShare(sizes, initial) if mixes and BayesShare.fits(sizes) else None
        self.citation = "" if self.bayes is None else self.bayes.citation
        super().reset(sizes, initial)

    def width(self, sizes: Sizes) -> int:
        """Bayes' share, the surface, what the probe says, how common the class is, and progress."""
        return (self.bayes is not None) + surface_width(sizes) + 2 * self.reads_clean_states + 2

    def observe(self, signals: Signals) -> Features:
        """`(B, F)`: what Bayes' rule asks of, the surface, fit, entropy and belief of the probe, and the class."""
        seen = [] if self.bayes is None else [self.bayes.logits(signals)]
        seen.append(surface(signals))
        classes = class_of(signals.batch, len(seen[0]), seen[0].device)
        if self.reads_clean_states:
            seen.append(self._probed(signals, classes))
        return torch.cat([*seen, classes[:, None]], 1).detach()

    def note_clean(self, rows: CleanRows) -> None:
        """For the probe, unless classes are words."""
        if self.probe.classes <= MOST_CLASSES:
            self.probe.note(rows)

    @property
    def rows_wanted(self) -> int:
        """Those that Bayes' rule asks for."""
        return 0 if self.bayes is None else self.bayes.rows_wanted

    def note_labels(self, logits: Logits, labels: PerExample) -> None:
        """For Bayes' rule; from where it starts the network goes more slowly."""
        if self.bayes is not None and self.bayes.note(logits, labels):
            for group in self.optimizer.param_groups:
                group["lr"] = SLOWER * self.learning_rate

    def _probed(self, signals: Signals, classes: PerExample) -> Tensor:
        """`(B, 3)`: fit, entropy and belief of the probe; of a coin where it has not been shown anything."""
        if not self.probe.knows:
            fit_or_belief, entropy = (signals.losses.new_full((len(signals.losses), 1), x) for x in (0.5, 1.0))
            return torch.cat([fit_or_belief, entropy, fit_or_belief], 1)
        states = signals.hidden_states[-1]
        logits = self.probe.logits(states)
        beliefs = self.probe.beliefs(logits, states, classes.clamp(min=0).long())
        return torch.cat([fit_and_entropy(logits, signals), beliefs[:, None]], 1)

    def inputs(self, observation: Observation) -> Tensor:
        """What the network reads: features, what the class and Bayes' rule say in the place of numbers, progress."""
        # The belief is for the estimate of wrong labels: the network reads what the probe says with all it knows.
        seen, classes = observation.features[:, : -2 if self.reads_clean_states else -1], observation.features[:, -1:]
        read = [seen, self.class_counts.commonness(classes)]
        if self.bayes is not None:
            read = [self.bayes.share(observation).nan_to_num(0.5)[:, None], seen[:, self.bayes.classes :], read[1]]
        return super().inputs(observation._replace(features=torch.cat(read, 1)))

    def scores(self, observation: Observation) -> Tensor:
        """Those of the network, from where it starts."""
        scores = super().scores(observation)
        return scores if self.bayes is None else self.bayes.moved(scores, self.bayes.share(observation).to(scores))

    def counts_for(self, observation: Observation) -> Tensor:
        """By how common the class is."""
        return self.class_counts.balance(observation.features[:, -1:], self.balance)

    def weights(self, observation: Observation) -> LossTable:
        """`(B, K)`, with a graph to the network; alike where labels are as good as clean ones."""
        weights = super().weights(observation)
        if not (self.reads_clean_states and self.labels_alone):
            return weights
        alike = self.counts_for(observation)
        if observation.present is not None:
            alike = alike * observation.present
        return torch.lerp(alike.to(weights), weights, self.wrong_labels.strength.to(weights))

    def update(self, observation: Observation, slopes: LossTable) -> None:
        """Takes note of classes and of wrong labels, then learns."""
        self.class_counts.note(observation.features[:, -1])
        if self.reads_clean_states:
            *_, beliefs, classes = observation.features.unbind(1)
            self.wrong_labels.note(self.probe, beliefs, classes, self.class_counts.seen)
        super().update(observation, slopes)

    def figures(self) -> dict[str, float]:
        """The share of training labels that are wrong, where it can be told.

        `wrong_labels` by clean rows, `wrong_labels_by_teacher` by one that has not seen them.
        """
        found = {
            "wrong_labels": float(self.wrong_labels.share) if self.reads_clean_states else math.nan,
            "wrong_labels_by_teacher": math.nan if self.bayes is None else float(self.bayes.wrong),
        }
        return {name: share for name, share in found.items() if not math.isnan(share)}

    def describe(self) -> str:
        """Width, normalisation, whether clean rows are read, and where it starts."""
        probe = ", clean probe" if self.reads_clean_states else ""
        return super().describe() + probe + ("" if self.bayes is None else ", from Bayes' rule")
