"""Tiny random students and toy data. Nothing here or in any test reaches a network."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_EVALUATE_OFFLINE"] = "1"

import gc
import inspect

import datasets
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

import amal_hf
from amal_hf import AMALArguments


VOCABULARY, LENGTH = 60, 10


# transformers 5.23 renamed what was gradient checkpointing.
CHECKPOINTING = (
    "activation_checkpointing" if hasattr(AMALArguments, "activation_checkpointing") else "gradient_checkpointing"
)


def tiny_bert(seed: int = 0, head: type[PreTrainedModel] = BertForSequenceClassification, **config) -> PreTrainedModel:
    """A random BERT of a few thousand parameters."""
    set_seed(seed)
    sizes = {
        "num_labels": 3,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    return head(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **{**sizes, **config}))


def tiny_vit(seed: int = 0) -> PreTrainedModel:
    """A random classifier of pictures of 8 times 8."""
    set_seed(seed)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3))


def toy_rows(count: int, seed: int = 0, labels: int = 3) -> datasets.Dataset:
    """Token ids whose first token decides the class."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (count, LENGTH), generator=generator)
    return datasets.Dataset.from_dict(
        {
            "input_ids": ids.tolist(),
            "attention_mask": torch.ones_like(ids).tolist(),
            "labels": (ids[:, 0] % labels).tolist(),
        }
    )


def toy_arguments(folder, **options) -> AMALArguments:
    """Arguments of a short, quiet run."""
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "logging_steps": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "meta_batch_size": 8,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "write_figures": False,  # seconds a run
    }
    return AMALArguments(output_dir=str(folder), **{**defaults, **options})


def exported(kind: type) -> set[str]:
    """The classes of a family that the package offers: each has to be in the table by which the family is tested."""
    found = {name: getattr(amal_hf, name) for name in amal_hf.__all__}
    return {
        name
        for name, one in found.items()
        if inspect.isclass(one) and issubclass(one, kind) and not inspect.isabstract(one)
    }


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage():
    """Accelerate collects garbage before every run: a third of a second where all that is imported is searched."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny models are faster on one thread, and sums come out the same every time."""
    torch.set_num_threads(1)
