"""What policies that are small networks have in common: a hidden layer, and an Adam of their own."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from amal_hf.own_adam import check_learning_rate, follow_to
from amal_hf.policies.bounds import MeanOne, Normalisation
from amal_hf.policies.policy import Observation, Policy, Sizes
from amal_hf.processes import summed_gradients, total_count
from amal_hf.shapes import LossTable


class NetworkPolicy(Policy):
    """Weights from what `observe` sees of an example, by a network of one hidden layer.

    A subclass says what is seen (`observe`), and how many columns the network reads (`width`): those, and one more for
    the training progress, which is added. The network starts at the initial mixture for every example.

    Args:
        hidden: width of the one hidden layer.
        learning_rate: of its own Adam.
        normalisation: from scores to weights, one of `bounds.py`; `None` leaves it to `usual_normalisation`.
        seed: of its first weights.

    Raises:
        ValueError: a number out of its range.

    References: The form of Meta-Weight-Net (Shu et al. 2019, arXiv:1902.07379), for several losses.
    """

    network: nn.Module
    normalisation: Normalisation
    pulls: Tensor

    def __init__(self, hidden: int, learning_rate: float, normalisation: Normalisation | None, seed: int) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"{type(self).__name__}: hidden must be at least 1, got {hidden}.")
        check_learning_rate(self, learning_rate)
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.register_buffer("pulls", torch.ones(1), persistent=False)
        self.takes_usual = normalisation is None
        self.normalisation = MeanOne() if normalisation is None else normalisation
        self.seed = seed

    @abstractmethod
    def width(self, sizes: Sizes) -> int:
        """Columns of `inputs`."""

    @property
    def sums_to_one(self) -> bool:
        """As its normalisation has it."""
        return self.normalisation.sums_to_one

    def usual_normalisation(self, sizes: Sizes) -> Normalisation:
        """What weights are normalised by where nothing else was asked for."""
        del sizes
        return MeanOne()

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """A new network that starts with the initial mixture."""
        self.pulls = torch.tensor(sizes.pulls or [1.0] * sizes.losses)
        if self.takes_usual:
            self.normalisation = self.usual_normalisation(sizes)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            self.network = self.new_network(sizes, self.normalisation.start(initial))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)

    def new_network(self, sizes: Sizes, start: Tensor) -> nn.Module:
        """From `inputs` to scores, which are `start` at first: the output layer's weight is zero."""
        last = nn.Linear(self.hidden, len(start))
        nn.init.zeros_(last.weight)
        last.bias.data.copy_(start)
        return nn.Sequential(self.body(sizes), nn.Tanh(), last)

    def body(self, sizes: Sizes) -> nn.Module:
        """From `inputs` to the hidden layer."""
        return nn.Linear(self.width(sizes), self.hidden)

    def inputs(self, observation: Observation) -> Tensor:
        """What the network reads: features and progress."""
        features = observation.features.to(next(self.network.parameters()).dtype)
        return torch.cat([features, observation.progress_of(features)], 1)

    def counts_for(self, observation: Observation) -> Tensor | None:
        """What examples count for before anything is learned, `(B, 1)`; `None` where all count alike."""
        del observation
        return None

    def weights(self, observation: Observation) -> LossTable:
        """`(B, K)`, with a graph to the network."""
        scores = self.scores(observation)
        weights: LossTable = self.normalisation(scores, observation.present, self.counts_for(observation))
        return weights

    def update(self, observation: Observation, slopes: LossTable) -> None:
        """One Adam step on `−mean Σ_k w_ik(φ) s_ik / pull_k`.

        The gradient is taken without touching any `.grad` of the student.
        """
        scores, counts_for = self.scores(observation), self.counts_for(observation)
        weights = self.normalisation.of_step(scores, observation.present, counts_for)
        gain = (weights * slopes / self.pulls).sum() / total_count(len(slopes), slopes.device)
        parameters = dict(self.network.named_parameters())
        for name, gradient in summed_gradients(-gain, parameters).items():
            parameters[name].grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.normalisation.note_update(scores.detach(), self.scores(observation), observation.present, counts_for)

    def scores(self, observation: Observation) -> Tensor:
        """What weights are normalised from, `(B, K)` or more columns; see `bounds.py`."""
        inputs = self.inputs(observation)
        follow_to(inputs.device, self, self.optimizer)
        scores: Tensor = self.network(inputs)
        return scores

    def describe(self) -> str:
        """Width and normalisation."""
        return f"{type(self).__name__}, hidden {self.hidden}, {type(self.normalisation).__name__}"

    def get_extra_state(self) -> dict[str, object]:
        """Adam's moments, saved with the weights."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, object]) -> None:
        """Restore Adam's moments."""
        self.optimizer.load_state_dict(state)
