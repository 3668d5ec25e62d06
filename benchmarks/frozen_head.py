"""A student of seconds: a small head over embeddings that are computed once, trained by `AMALTrainer` like any other.

The embeddings of all texts are a table inside the student; a batch holds row numbers.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class HeadConfig(PreTrainedConfig):
    """Widths of a head."""

    model_type = "head_over_a_table"

    def __init__(self, width: int = 384, hidden: int = 128, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width
        self.hidden = hidden


class Head(PreTrainedModel):
    """One hidden layer over rows of a table.

    Args:
        config: widths and classes.
        table: `(N, width)` embeddings, not trained, not saved.
    """

    config_class = HeadConfig
    table: Tensor

    def __init__(self, config: HeadConfig, table: Tensor) -> None:
        super().__init__(config)
        self.register_buffer("table", table, persistent=False)
        classes: int = config.num_labels or 0
        self.layers = nn.Sequential(
            nn.Linear(config.width, config.hidden),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(config.hidden, classes),
        )

    def forward(
        self, row: Tensor, labels: Tensor | None = None, output_hidden_states: bool = False
    ) -> SequenceClassifierOutput:
        """Logits, `(B, C)`, of the texts with numbers `row`, `(B,)`; embeddings are its hidden state, one a text."""
        embeddings = self.table[row]
        logits = self.layers(embeddings)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        states = (embeddings[:, None],) if output_hidden_states else None
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=states)


def standardised(embeddings: Tensor) -> Tensor:
    """Every row with mean zero and variance one."""
    return nn.functional.layer_norm(embeddings, embeddings.shape[1:])


def new_head(table: Tensor, classes: int, hidden: int = 128) -> Head:
    """A head of random weights."""
    return Head(HeadConfig(width=table.shape[1], hidden=hidden, num_labels=classes), table)
