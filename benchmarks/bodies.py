"""What students and teachers of the quality benchmark are made of.

frozen    a head over frozen MiniLM embeddings (seconds a run); its teacher is a wider head over the same
2, 3, 6   so many layers of MiniLM, all of it trained; the teacher is the whole MiniLM, fine-tuned. Words that no text
          has are left out of its table: nothing would ever reach them, and they would cost a fifth of the time

Texts are read once: as row numbers of a table of embeddings, or as tokens.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from frozen_head import new_head, standardised
from kept_arrays import kept_array
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from amal_hf import embed_texts, student_from_teacher
from amal_hf.precision import has_fast_bf16


CACHE = Path(".cache") / "quality"
MAX_LENGTH = 48


class Body(ABC):
    """How a text is read, and by whom.

    Attributes:
        kind: bodies of one kind share their teachers.
        epochs: budget of every run, in passes over the training rows.
        learning_rate, batch_size: of students.
        teacher_epochs, teacher_rate: of teachers.
        clean_steps_a_class: a clean teacher has at least so many: of few rows, many classes are not learned in a few
            passes.
        tokenizer: pads batches; `None` where there is nothing to pad.
        bf16: whether students are trained in half precision.
    """

    kind: str
    epochs: int
    learning_rate: float
    batch_size: int
    teacher_epochs: int
    teacher_rate: float
    clean_steps_a_class: int = 0
    tokenizer: Any = None
    bf16: bool = False

    @abstractmethod
    def encode(self, rows: Dataset) -> Dataset:
        """The rows with what a student reads in place of texts."""

    @abstractmethod
    def student(self, classes: int) -> PreTrainedModel:
        """A new student."""

    @abstractmethod
    def teacher(self, classes: int) -> PreTrainedModel:
        """A new teacher."""


class FrozenBody(Body):
    """Heads over one table of embeddings.

    Args:
        name: of the data set, for the cache.
        texts: all there are, in any order.
        model: folder of the encoder.
    """

    kind = "frozen"
    epochs, learning_rate, batch_size = 8, 3e-3, 128
    teacher_epochs, teacher_rate = 4, 2e-3

    def __init__(self, name: str, texts: list[str], model: Path) -> None:
        known = sorted(set(texts))
        self.rows = {text: row for row, text in enumerate(known)}
        self.table = standardised(_embedded(name, known, model))

    def encode(self, rows: Dataset) -> Dataset:
        """Adds column `row`."""
        return rows.add_column("row", [self.rows[text] for text in rows["text"]])

    def student(self, classes: int) -> PreTrainedModel:
        """128 units."""
        return new_head(self.table, classes)

    def teacher(self, classes: int) -> PreTrainedModel:
        """512 units."""
        return new_head(self.table, classes, hidden=512)


class LayeredBody(Body):
    """Layers of one pretrained encoder.

    Args:
        layers: of the student.
        texts: all there are, in any order.
        model: folder of the encoder.
        learning_rate: of students.
    """

    kind = "minilm"
    epochs, learning_rate, batch_size = 3, 2e-4, 32
    teacher_epochs, teacher_rate = 2, 1e-4
    clean_steps_a_class = 15

    def __init__(self, layers: int, texts: list[str], model: Path, learning_rate: float) -> None:
        self.layers = layers
        self.learning_rate = learning_rate
        self.model = model
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.bf16 = has_fast_bf16()
        self.known = sorted({self.tokenizer.pad_token_id}.union(*self._tokens(texts)["input_ids"]))
        self.rows = {token: row for row, token in enumerate(self.known)}

    def encode(self, rows: Dataset) -> Dataset:
        """Adds the tokenizer's columns, its tokens counted among those that occur."""

        def read(batch: dict[str, Any]) -> dict[str, Any]:
            found = self._tokens(batch["text"])
            return {**found, "input_ids": [[self.rows[token] for token in text] for text in found["input_ids"]]}

        return rows.map(read, batched=True)

    def student(self, classes: int) -> PreTrainedModel:
        """Some layers of the pretrained encoder with a new head."""
        return student_from_teacher(self.teacher(classes), self.layers)

    def teacher(self, classes: int) -> PreTrainedModel:
        """All of them."""
        model = AutoModelForSequenceClassification.from_pretrained(self.model, num_labels=classes, dtype=torch.float32)
        words = model.get_input_embeddings().weight.detach()[self.known]
        # padding is token 0 before and after, which is where the collator puts it
        model.set_input_embeddings(nn.Embedding.from_pretrained(words, freeze=False, padding_idx=0))
        model.config.vocab_size = len(words)
        return model

    def _tokens(self, texts: list[str]) -> Any:
        return self.tokenizer(texts, truncation=True, max_length=MAX_LENGTH)


def _embedded(name: str, texts: list[str], model: Path) -> Tensor:
    """`(N, d)`, kept in a file."""
    file = CACHE / f"{name}-{len(texts)}-embeddings.npy"

    def make() -> NDArray[np.float16]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder = AutoModel.from_pretrained(model, dtype=torch.float32).to(device)
        tokenizer = AutoTokenizer.from_pretrained(model, model_max_length=128)
        with torch.no_grad():
            return embed_texts(texts, encoder, tokenizer).numpy().astype(np.float16)

    return torch.from_numpy(kept_array(file, make)).float()
