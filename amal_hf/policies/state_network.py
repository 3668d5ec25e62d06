"""A network fed with the student's internal states."""

import math

import torch
from torch import Tensor, nn

from amal_hf.policies.bounds import Normalisation, TwiceSigmoid
from amal_hf.policies.network_policy import NetworkPolicy
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.policies.slope_memory import SlopeMemory, of_likelihoods
from amal_hf.policies.source_gain import source_gain
from amal_hf.policies.surface import surface, surface_width
from amal_hf.processes import total
from amal_hf.shapes import IGNORED, Batch, Features, Logits, LossTable
from amal_hf.task import at_least_fp32
from amal_hf.tokens import token_means


LABEL_WIDTH, MOST_LABELS = 16, 512
"""Width of a label's embedding, and how many are told apart; a larger vocabulary is hashed."""


MOST_LOSS = 100.0
"""In log(1 + loss), which of no finite loss in fp32 is above 89."""


class StateNetwork(NetworkPolicy):
    """Weights from hidden states, label and surface statistics of an example.

    It reads hidden states of chosen layers, averaged over the attended tokens and without a gradient; an embedding of
    the label (for labels of tokens the mean over them); and on the surface what `LossNetwork` reads, the margin of the
    label, and how the losses compare with their running mean. It starts at the initial mixture.

    Args:
        layers: which hidden states: `None` all, `(-1,)` the last, `()` none of them (surface alone): the paper's
            ablation.
        hidden: width of the one hidden layer; 128, not tuned.
        learning_rate: of its own Adam; 3e-3.
        normalisation: `TwiceSigmoid()` (w = 1 for one loss at the start), or another of `bounds.py`. `MeanOne()` rules
            out that all weights rise or fall together, which is a learning rate in disguise.
        likelihoods: take all slopes for those of likelihoods (`exp(−loss)` of a cross-entropy). An example with a
            large loss has a long gradient, which helps whatever it says: a network that reads the loss would weigh up
            what is hard before it weighs down what is wrong. For runs of many epochs whose student begins with little
            knowledge, such as a translator from scratch.
        memory: read the mean of an example's own slopes so far as well. Where nothing else tells examples apart;
            beside `source_gain` its noise did harm (`benchmarks/LOG.md`).
        labels: read the label. Where labels are words, thousands of them, a network that did learned more slowly from
            recorded slopes of translations (`benchmarks/LOG.md`).
        source_gain: read by how much the target is likelier for having its source (`SourceGain`). For students that
            translate; one more forward pass of the decoder a step.
        seed: of its first weights.

    Raises:
        ValueError: a number out of its range, or layers that the student does not have.

    References:
        Fan et al. 2021, "Learning to Reweight with Deep Interactions", arXiv:2007.04649. The paper's network is not
        described in what we could read; widths and activation are ours.
    """

    needs_hidden_states = True
    running_losses: Tensor
    exponents: Tensor

    def __init__(
        self,
        layers: tuple[int, ...] | None = None,
        hidden: int = 128,
        learning_rate: float = 3e-3,
        normalisation: Normalisation | None = None,
        likelihoods: bool = False,
        memory: bool = False,
        labels: bool = True,
        source_gain: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(hidden, learning_rate, TwiceSigmoid() if normalisation is None else normalisation, seed)
        self.layers = layers
        self.likelihoods = likelihoods
        self.memory = memory
        self.needs_ids = memory
        self.labels = labels
        self.needs_source_gain = source_gain
        self.needs_hidden_states = layers != ()

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """A new network for these layers and labels.

        Raises:
            ValueError: a layer that the student does not have.
        """
        self.widths = self._chosen(sizes.states)
        self.label_count = min(sizes.classes, MOST_LABELS) if self.labels else 0
        self.register_buffer("running_losses", torch.zeros(sizes.losses))
        exponents = torch.tensor(sizes.exponents or [0.0] * sizes.losses)
        self.register_buffer("exponents", exponents, persistent=False)
        if self.memory:
            self.slopes = SlopeMemory(sizes.examples, sizes.losses)
        super().reset(sizes, initial)

    def describe(self) -> str:
        """Layers, width and normalisation."""
        options = {
            "likelihoods": self.likelihoods,
            "memory": self.memory,
            "no labels": not self.labels,
            "source gain": self.needs_source_gain,
        }
        return ", ".join([super().describe(), f"layers {self.layers}", *(name for name, on in options.items() if on)])

    def body(self, sizes: Sizes) -> nn.Module:
        """From features to the hidden layer."""
        return _Reader(self.widths, self.label_count, self.rest_width(sizes), self.hidden)

    def rest_width(self, sizes: Sizes) -> int:
        """Columns beside states and label: surface, margin, gain, losses against their mean, progress, memory."""
        return surface_width(sizes) + 2 + self.needs_source_gain + sizes.losses * (1 + self.memory)

    def width(self, sizes: Sizes) -> int:
        """Columns of `inputs`."""
        return sum(self.widths) + self.label_count + self.rest_width(sizes)

    def observe(self, signals: Signals) -> Features:
        """`(B, F)`: states, label, then the surface."""
        given = signals.hidden_states
        pooled = [given[place].float() for place in self._places(len(given)) if -len(given) <= place < len(given)]
        if [state.shape[1] for state in pooled] != self.widths:
            raise ValueError(
                f"StateNetwork: the student gave hidden states of widths {[state.shape[1] for state in given]}, from "
                f"which layers of widths {self.widths} were to be taken, as its configuration says. Use "
                f"StateNetwork(layers=()), which reads none."
            )
        labels = label_shares(signals.batch, signals.logits, self.label_count)
        shown = surface(signals)
        against_mean = shown[:, : len(self.running_losses)] - self.running_losses.to(shown)
        gain = [source_gain(signals)[:, None]] if self.needs_source_gain else []
        return torch.cat([*pooled, labels, shown, margin(signals)[:, None], *gain, against_mean], 1).detach()

    def update(self, observation: Observation, slopes: LossTable) -> None:
        """Learns, and takes note of the losses for their running mean."""
        first = sum(self.widths) + self.label_count
        losses = observation.features[:, first : first + len(self.running_losses)]
        if self.likelihoods:
            slopes = of_likelihoods(slopes, losses.expm1(), self.exponents)
        super().update(observation, slopes)
        if self.memory:
            self.slopes.note(observation.ids, slopes)
        known = losses < MOST_LOSS  # a loss that is infinite stands there as the largest number
        mean = total(losses.where(known, 0.0).to(self.running_losses.dtype).sum(0)) / total(known.sum(0)).clamp(min=1)
        self.running_losses = self.running_losses.to(losses.device).lerp(mean, 0.1)

    def inputs(self, observation: Observation) -> Tensor:
        """Features and progress, and with a memory the mean slopes of these very examples so far."""
        inputs = super().inputs(observation)
        return torch.cat([inputs, self.slopes.read(observation.ids).to(inputs)], 1) if self.memory else inputs

    def _places(self, count: int) -> list[int]:
        return list(range(count)) if self.layers is None else list(self.layers)

    def _chosen(self, states: tuple[int, ...]) -> list[int]:
        wrong = [place for place in self._places(len(states)) if not -len(states) <= place < len(states)]
        if wrong:
            raise ValueError(
                f"StateNetwork: layers {wrong} are not among the student's {len(states)} hidden states (0 is the "
                f"embeddings', -1 the last layer's)."
            )
        return [states[place] for place in self._places(len(states))]


class _Reader(nn.Module):
    """States normalised layer by layer to length one, labels embedded, the surface as it is; then one hidden layer.

    A state is one observation and not as many as it has entries: at length √d, which is what `LayerNorm` gives, each
    step of Adam moved the scores by what the states happened to be, and the surface was drowned (AUC 0.55, not 0.91).
    """

    def __init__(self, widths: list[int], labels: int, surface: int, hidden: int) -> None:
        super().__init__()
        self.parts = [*widths, labels, surface]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.embedding = nn.Linear(labels, LABEL_WIDTH, bias=False) if labels else nn.Identity()
        self.hidden = nn.Linear(sum(widths) + LABEL_WIDTH * (labels > 0) + surface, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, F) -> (B, hidden)`."""
        *states, labels, surface = features.split(self.parts, 1)
        normed = [norm(state) / math.sqrt(state.shape[1]) for norm, state in zip(self.norms, states, strict=True)]
        hidden: Tensor = self.hidden(torch.cat([*normed, self.embedding(labels), surface], 1))
        return hidden


def label_shares(batch: Batch, logits: Logits, labels: int) -> Tensor:
    """`(B, labels)`: how much of each label an example has: a one for a class, shares over the tokens, the labels
    themselves where there are several at once; zeros for a number or where there is none.
    """
    given = batch.get("labels")
    shares = torch.zeros(len(logits), labels, device=logits.device)
    if given is None or labels == 0:
        return shares
    if given.is_floating_point():
        return given.float().clamp(min=0) if given.shape == shares.shape else shares
    flat = given.reshape(len(given), -1)
    known = (flat != IGNORED) & (flat >= 0)
    shares.scatter_add_(1, flat.clamp(min=0) % labels, known.to(shares.dtype))
    return shares / known.sum(1, keepdim=True).clamp(min=1)


def margin(signals: Signals) -> Tensor:
    """Probability of the label less that of the likeliest other class, `(B,)`; 0 where an example is not one class.

    For labels of tokens the mean over them: it tells wrong translations from right ones long before their loss does.
    """
    labels, logits = signals.batch.get("labels"), signals.logits
    if labels is None or labels.is_floating_point() or logits.ndim != labels.ndim + 1 or logits.shape[-1] < 2:
        return signals.losses.new_zeros(len(logits))
    if logits.ndim == 3:
        targets = signals.task.targets(labels)
        flat = targets.flatten()
        return token_means(lambda picked, places: _margins(picked, flat[places]), logits, targets != IGNORED)
    return _margins(logits, labels)


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """`(n, C), (n,) -> (n,)`."""
    probabilities, place = at_least_fp32(logits).softmax(-1), labels.clamp(min=0)[:, None]
    others = probabilities.scatter(1, place, 0).amax(1)
    return torch.where(labels >= 0, probabilities.gather(1, place)[:, 0] - others, 0.0)
