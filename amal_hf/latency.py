"""How long a classifier takes for a sentence, tokenisation included, and on what."""

import platform
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amal_hf.text_limit import text_limit


class Latency(NamedTuple):
    """Milliseconds a sentence: median and 95th percentile over batches."""

    p50: float
    p95: float


def measure_latency(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
    batches: int = 30,
) -> Latency:
    """Classify `batches` batches of `texts`, after three more to warm up; texts are taken in turn, over and over.

    Args:
        model: left in evaluation mode, on the device it is on.
        tokenizer: its tokenizer.
        texts: what to classify; at least one.
        batch_size: sentences at a time.
        batches: how many are timed.

    Raises:
        ValueError: no texts.
    """
    if not texts:
        raise ValueError("measure_latency: there are no texts to classify; pass some sentences of the task.")
    model.eval()
    milliseconds = [
        _time(model, tokenizer, _take(texts, batch_size, number)) / batch_size for number in range(batches + 3)
    ]
    low, high = np.percentile(milliseconds[3:], [50, 95])
    return Latency(float(low), float(high))


def hardware_name(device: torch.device | str = "cpu") -> str:
    """What a measurement was made on, for tables and cards."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    if torch.device(device).type == "mps":
        return f"{platform.machine()} GPU"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _take(texts: Sequence[str], batch_size: int, number: int) -> list[str]:
    first = number * batch_size
    return [texts[position % len(texts)] for position in range(first, first + batch_size)]


@torch.inference_mode()
def _time(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    started = time.perf_counter()
    limit = text_limit(tokenizer, model.config)
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(model.device)
    # Copying the result to the CPU waits for the device.
    model(**encoded).logits.cpu()
    return 1000 * (time.perf_counter() - started)
