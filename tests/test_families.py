"""The heads that people distil, family by family."""

import pytest
import torch
from conftest import LENGTH, VOCABULARY, toy_arguments, toy_rows
from test_trainer import Gradients
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    set_seed,
)

from amal_hf import AMALTrainer, CrossEntropy, Distillation, LossNetwork, amal


FAMILIES = {
    "albert": {"embedding_size": 8},
    "bert": {},
    "camembert": {},
    "deberta-v2": {},
    "distilbert": {
        "dim": 16,
        "n_heads": 2,
        "n_layers": 2,
        "hidden_dim": 32,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    },
    "electra": {"embedding_size": 8},
    "modernbert": {"attn_implementation": "eager", "classifier_dropout": 0.0},
    "mpnet": {},
    "roberta": {},
    "xlm-roberta": {},
}
HEADS = {"sentences": AutoModelForSequenceClassification, "tokens": AutoModelForTokenClassification}


def tiny_model(family, head):
    """A random model of the family without dropout, in fp64."""
    set_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.0,
        summary_last_dropout=0.0,
        classifier_dropout_prob=0.0,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
        **{k: v for k, v in FAMILIES[family].items() if k != "classifier_dropout"},
    )
    return head.from_config(config).double()


def token_rows(count):
    """Sentences with a label on some of their tokens."""
    rows = toy_rows(count)
    ids = torch.tensor(rows["input_ids"][:])
    labels = torch.where(ids % 4 == 0, -100, ids % 3)
    return rows.remove_columns("labels").add_column("labels", labels.tolist())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_do_not_depend_on_accumulation(tmp_path, family, head):
    """Many heads take `num_items_in_batch` and ignore it, which makes `Trainer` inflate their gradients.

    With weights on, none may.
    """
    rows = toy_rows(10) if head == "sentences" else token_rows(10)
    shape = (10, 3) if head == "sentences" else (10, LENGTH, 3)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    runs = []
    for size, accumulation in ((6, 1), (2, 3)):
        seen = Gradients()
        trainer = AMALTrainer(
            model=tiny_model(family, HEADS[head]),
            train_dataset=rows,
            meta_dataset=rows.select(range(4)),
            callbacks=[seen],
            losses=[CrossEntropy(), Distillation(lambda batch: logits[batch["example_id"]])],
            method=amal(LossNetwork(learning_rate=0.05)),
            args=toy_arguments(
                tmp_path,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation,
                max_steps=2,
                meta_interval=1,
                optim="sgd",
                learning_rate=0.1,
                train_sampling_strategy="sequential",
                max_grad_norm=0.0,
            ),
        )
        trainer.train()
        runs.append(seen.steps)
    for ours, theirs in zip(*runs, strict=True):
        norm = torch.stack([g.norm() for g in ours.values()]).norm()
        difference = torch.stack([(ours[name] - theirs[name]).norm() for name in ours]).norm()
        assert norm > 1e-3, "a vacuous comparison"
        assert difference / norm < 1e-6
