"""Tiny random generators and targets of ragged length."""

import datasets
import torch
from conftest import VOCABULARY, toy_arguments
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, set_seed

from amal_hf import AMALSeq2SeqArguments


_WORDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
_START = {**_WORDS, "decoder_start_token_id": 0, "forced_eos_token_id": None}
_LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
_WIDTHS = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64}
_STILL = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}

UNUSUAL = {"m2m_100": {**_LAYERS, **_WIDTHS, **_STILL, **_START}}
FAMILIES = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0, **_START},
    "bart": {**_LAYERS, **_WIDTHS, **_STILL, **_START},
    "marian": {**_LAYERS, **_WIDTHS, **_STILL, **_START, "decoder_vocab_size": VOCABULARY},
    "gpt2": {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        **_WORDS,
    },
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        **_WORDS,
    },
}
CAUSAL = ("gpt2", "llama")


def tiny_generator(family, seed=0, **config):
    """A random generator of a few thousand parameters, in fp64 and without dropout."""
    set_seed(seed)
    configured = AutoConfig.for_model(
        family, **{"vocab_size": VOCABULARY, **{**FAMILIES, **UNUSUAL}[family], **config}
    )
    head = AutoModelForCausalLM if family in CAUSAL else AutoModelForSeq2SeqLM
    return head.from_config(configured, attn_implementation="eager").double()


def pairs(count, family, seed=0):
    """Rows of ragged length; of a causal model the first half of a row is a prompt without labels."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low: torch.randint(low, 12, (count,), generator=generator).tolist()  # noqa: E731
    words = lambda length: torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()  # noqa: E731
    source = [words(length) for length in draw(4)]
    if family in CAUSAL:
        labels = [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in source]
    else:
        labels = [[*words(length), 1] for length in draw(1)]
    mask = [[1] * len(row) for row in source]
    return datasets.Dataset.from_dict({"input_ids": source, "attention_mask": mask, "labels": labels})


class Padder:
    """What `DataCollatorForSeq2Seq` needs of a tokenizer."""

    padding_side = "right"

    def pad(self, features, **_):
        """Batches of ids and mask."""
        longest = max(len(row["input_ids"]) for row in features)
        filled = lambda name: torch.tensor(  # noqa: E731
            [[*row[name], *[0] * (longest - len(row[name]))] for row in features]
        )
        batch = {name: filled(name) for name in ("input_ids", "attention_mask")}
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([list(row["labels"]) for row in features])
        return batch

    def save_pretrained(self, folder):
        """`Trainer` saves what a collator reads with."""


def collator(model=None):
    """Pads sources with 0 and labels with -100."""
    return DataCollatorForSeq2Seq(Padder(), model, return_tensors="pt")


def generator_arguments(folder, **options):
    """`toy_arguments` with the options of generation."""
    return AMALSeq2SeqArguments(**{**_fields(toy_arguments(folder)), **options})


def _fields(args):
    names = ("output_dir", "per_device_train_batch_size", "max_steps", "learning_rate", "logging_steps")
    more = ("save_strategy", "disable_tqdm", "meta_batch_size", "use_cpu", "dataloader_pin_memory")
    return {name: getattr(args, name) for name in (*names, *more)}
