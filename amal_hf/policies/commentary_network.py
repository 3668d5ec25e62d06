"""A commentary on a dataset: weights from what an example says and how far training is, whoever the student is."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amal_hf.class_counts import one_class_labels
from amal_hf.own_adam import follow_to
from amal_hf.policies.bounds import MeanOne
from amal_hf.policies.network_policy import NetworkPolicy
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.shapes import Features
from amal_hf.text_limit import text_limit


class CommentaryNetwork(NetworkPolicy):
    """Weights `w(x, y, t)` of an example, its label and the training progress; nothing of the student is looked at.

    Every label has an output of its own: whether a label suits a text is a product of both, which a layer over their
    concatenation hardly learns. Each output is a linear reading of the text, which few clean rows suffice for, and a
    hidden layer over text and progress for what changes while a student trains (benchmarks/LOG.md compares them).

    The example is seen through a frozen text encoder (`embed_texts`), so that what is learned with one student holds
    for another of any architecture and tokenizer. Progress is that of the present run, in [0, 1], so that a commentary
    keeps its meaning in a run of another length. Weights are normalised to mean one: the unnormalised sum of the
    paper's code makes them a learning-rate control.

    Args:
        embeddings: `(N, d)`, the training rows in order, as `embed_texts` gives them.
        labels: C.
        hidden: width of the one hidden layer.
        learning_rate: of its own Adam. 1e-3.
        frequencies: of the Fourier features of progress.
        seed: of its first weights.

    Raises:
        ValueError: embeddings that are not a finite matrix, or a size or rate out of range.

    References:
        Teaching with Commentaries, arXiv:2011.03037, example weighting curricula; there a convolutional network with
        one more input channel for the step.
    """

    needs_ids = True
    needs_one_class = True
    embeddings: Tensor

    def __init__(
        self,
        embeddings: Tensor,
        labels: int,
        hidden: int = 32,
        learning_rate: float = 1e-3,
        frequencies: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(hidden, learning_rate, MeanOne(), seed)
        if embeddings.ndim != 2 or not bool(torch.isfinite(embeddings).all()):
            raise ValueError(
                f"CommentaryNetwork: embeddings must be a finite matrix (N, d), one row an example; got shape "
                f"{tuple(embeddings.shape)}. Make them with embed_texts()."
            )
        if min(labels, frequencies) < 1:
            raise ValueError(
                f"CommentaryNetwork: labels and frequencies must be at least 1, got {labels} and {frequencies}."
            )
        # Belongs to the dataset and not to what is learned, so it is not saved.
        self.register_buffer("embeddings", embeddings.float(), persistent=False)
        self.labels = labels
        self.frequencies = frequencies

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """A new network whose output layer is zero.

        Raises:
            ValueError: not one embedding for each training row, or other classes than the student has.
        """
        if sizes.classes and sizes.classes != self.labels:
            raise ValueError(
                f"CommentaryNetwork: made for {self.labels} labels, and the student has {sizes.classes} classes. Make "
                f"it with labels=model.config.num_labels."
            )
        if sizes.examples != len(self.embeddings):
            raise ValueError(
                f"CommentaryNetwork: expected one embedding for each training row, got {len(self.embeddings)} for "
                f"{sizes.examples} rows. Embed the texts of this training set: embed_texts()."
            )
        super().reset(sizes, initial)

    def new_network(self, sizes: Sizes, start: Tensor) -> nn.Module:
        """Outputs for every label."""
        return _Reader(self.embeddings.shape[1], self.width(sizes), self.hidden, start.repeat(self.labels))

    def width(self, sizes: Sizes) -> int:
        """Text and waves."""
        del sizes
        return self.embeddings.shape[1] + 2 * self.frequencies

    def arguments(self) -> dict[str, Any]:
        """What one like it is made with, beside the embeddings."""
        names = ("labels", "hidden", "learning_rate", "frequencies", "seed")
        return {name: getattr(self, name) for name in names}

    def observe(self, signals: Signals) -> Features:
        """The label, one-hot, `(B, C)`; all zero for a row without a label."""
        device = signals.losses.device
        labels = one_class_labels(signals.batch, len(signals.losses), "CommentaryNetwork").to(device)
        return (labels[:, None] == torch.arange(self.labels, device=device)).float()

    def inputs(self, observation: Observation) -> Tensor:
        """`(B, d + 2 · frequencies)`: the text and the waves of progress."""
        follow_to(observation.features.device, self, self.optimizer)
        texts = self.embeddings[observation.ids].to(next(self.network.parameters()).dtype)
        waves = fourier(observation.progress_of(texts)[:, 0], self.frequencies)
        return torch.cat([F.layer_norm(texts, texts.shape[1:]), waves], 1)

    def scores(self, observation: Observation) -> Tensor:
        """Those of each example's label."""
        labels = observation.features.float()
        by_label = super().scores(observation).unflatten(1, (self.labels, -1))
        # A row without a label gets what all labels would get on average.
        shares = torch.where(labels.any(1, keepdim=True), labels, 1 / self.labels)
        return (by_label * shares[..., None]).sum(1)


class _Reader(nn.Module):
    """Scores of all labels; at first `start` for every text."""

    def __init__(self, text: int, width: int, hidden: int, start: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(text, len(start))
        self.hidden = nn.Linear(width, hidden)
        self.last = nn.Linear(hidden, len(start), bias=False)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.last.weight)
        self.linear.bias.data.copy_(start)

    def forward(self, inputs: Tensor) -> Tensor:
        """Text and waves, `(B, width)`, to `(B, outputs)`."""
        changing: Tensor = self.last(self.hidden(inputs).tanh())
        scores: Tensor = self.linear(inputs[:, : self.linear.in_features]) + changing
        return scores


def fourier(progress: Tensor, frequencies: int) -> Tensor:
    """`(B,) -> (B, 2 · frequencies)`: sines and cosines of half waves, after clipping to [0, 1]."""
    numbers = torch.arange(1, frequencies + 1, dtype=progress.dtype, device=progress.device)
    angles = math.pi * progress.clamp(0, 1)[:, None] * numbers
    return torch.cat([angles.sin(), angles.cos()], 1)


@torch.no_grad()
def embed_texts(texts: Sequence[str], encoder: Any, tokenizer: Any, batch_size: int = 64) -> Tensor:
    """Mean-pooled last hidden states of a frozen encoder, `(N, d)` on the CPU; once a dataset.

    Args:
        texts: in the order of the rows.
        encoder: a transformers model without a head (`AutoModel`).
        tokenizer: the encoder's own.
        batch_size: texts in one forward pass.

    Raises:
        ValueError: there are none, or one is missing (`None` or NaN).
    """
    texts = list(texts)  # a column of a pandas table goes by the names of its rows, not by their places
    missing = [place for place, text in enumerate(texts) if text is None or text != text]
    if missing or not texts:
        told = (
            f"{len(missing)} of {len(texts)} texts are missing, the first at {missing[0]}" if missing else "no texts"
        )
        raise ValueError(f"embed_texts: {told}. Leave such rows out, or pass '' for them.")
    training, limit = encoder.training, text_limit(tokenizer, encoder.config)
    encoder.eval()
    # Texts of like length together: one long text pads a whole batch.
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]), reverse=True)
    parts = []
    for start in range(0, len(texts), batch_size):
        block = [texts[place] for place in order[start : start + batch_size]]
        inputs = tokenizer(block, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        inputs = inputs.to(encoder.device)
        hidden = encoder(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"][:, :, None].to(hidden)
        parts.append(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).cpu())
    encoder.train(training)
    embedded = torch.cat(parts)
    return embedded[torch.tensor(order).argsort()]
