"""Weights of tokens: the same loss where all are alike, and a weight for every token where they are not."""

import dataclasses
import math
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from conftest import VOCABULARY, tiny_bert, toy_arguments, toy_rows
from generation import CAUSAL, collator, generator_arguments, pairs, tiny_generator
from transformers import BertForTokenClassification

from amal_hf import (
    AMALSeq2SeqTrainer,
    AMALTrainer,
    CrossEntropy,
    Distillation,
    ExampleTable,
    LastLayer,
    LossNetwork,
    MeanOne,
    Method,
    PerLossNetwork,
    RuleLosses,
    StateNetwork,
    Trajectory,
    amal,
    deep_interactions,
    learning_to_reweight,
)
from amal_hf.mixture import Mixture
from amal_hf.policies.fixed_weights import FixedWeights
from amal_hf.task import Task
from amal_hf.token_mixture import TokenMixture, TokenRows, token_rows


def of_tokens(method):
    return dataclasses.replace(method, per_token=True)


def tagged_rows(count, seed=0, wrong=0.0):
    """Every token's class is its id modulo three; some training labels are another class."""
    rows = toy_rows(count, seed).to_list()
    generator = torch.Generator().manual_seed(seed)
    for row in rows:
        labels = torch.tensor(row["input_ids"]) % 3
        flipped = torch.rand(len(labels), generator=generator) < wrong
        row["labels"] = [-100, *torch.where(flipped, (labels + 1) % 3, labels)[1:].tolist()]
        row["flipped"] = flipped.tolist()
    return datasets.Dataset.from_list(rows)


def tagger(**config):
    return tiny_bert(
        head=BertForTokenClassification, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **config
    )


def student_and_batch(family):
    """A student of tokens, and four rows with a teacher's logits."""
    if family == "tagger":
        model, rows = tagger().double(), tagged_rows(4).remove_columns("flipped").with_format("torch")[:]
        return model, {**rows, "teacher_logits": torch.randn(4, 10, 3, dtype=torch.float64)}
    model = tiny_generator(family)
    batch = collator(model)([dict(row) for row in pairs(4, family)])
    shape = (*batch["labels"].shape, VOCABULARY)
    return model, {**batch, "teacher_logits": torch.randn(shape, dtype=torch.float64)}


@pytest.mark.parametrize("family", ["tagger", "gpt2", "bart"])
@pytest.mark.parametrize("kind", [Mixture, TokenMixture])
def test_teachers_are_asked_about_tokens(family, kind):
    """What a teacher's logits cost is the label's loss of a student who thinks the same, of a sentence or a token."""
    _, batch = student_and_batch(family)
    task = Task(shifted=family in CAUSAL)
    mixture = kind([CrossEntropy(), Distillation(lambda b: b["teacher_logits"])], PerLossNetwork(), task)
    mixture.reset(None, torch.tensor([0.5, 0.5]))
    seen = mixture.evaluate(SimpleNamespace(logits=batch["teacher_logits"]), batch)
    share = token_rows(batch, task).share if kind is TokenMixture else torch.ones(4)
    assert seen.losses[:, 0].max() > 0
    torch.testing.assert_close(seen.features[:, 2] * share.to(seen.features), seen.losses[:, 0].to(seen.features))
    torch.testing.assert_close(seen.features[:, 2], seen.features[:, 0])


@pytest.mark.parametrize("family", ["tagger", "gpt2", "bart"])
def test_equal_weights_of_tokens_are_weights_of_examples(family):
    """With the same weight everywhere, tokens add up to what their sentences are: losses, total and gradient."""
    model, batch = student_and_batch(family)
    task = Task(shifted=family in CAUSAL)
    totals = []
    for kind in (Mixture, TokenMixture):
        losses = [CrossEntropy(), Distillation(lambda b: b["teacher_logits"])]
        mixture = kind(losses, FixedWeights(), task)
        mixture.reset(None, torch.tensor([0.3, 0.7]))
        read = ("input_ids", "attention_mask", "decoder_input_ids")
        inputs = {name: value for name, value in batch.items() if name in read}
        outputs = model(**inputs)
        weighed = mixture.weigh(outputs, batch, 0.0)
        totals.append((weighed.total, torch.autograd.grad(weighed.total, list(model.parameters()), allow_unused=True)))
    (one, gradient), (other, other_gradient) = totals
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
    for ours, theirs in zip(gradient, other_gradient, strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def new_trainer(folder, method, rows=22, model=None, **options):
    return AMALTrainer(
        model=tagger() if model is None else model,
        args=toy_arguments(folder, **{"meta_interval": 1, **options}),
        train_dataset=tagged_rows(rows).remove_columns("flipped"),
        meta_dataset=tagged_rows(10, 4).remove_columns("flipped"),
        method=method,
    )


def test_gradients_do_not_depend_on_how_a_batch_is_cut(tmp_path):
    """Batches of 12, or of 4 three times: the same student at the end, in fp64."""
    ends = []
    for size, accumulation in ((12, 1), (4, 3)):
        trainer = new_trainer(
            tmp_path,
            of_tokens(amal(LossNetwork(normalisation=MeanOne()))),
            model=tagger().double(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
        )
        trainer.train()
        ends.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert (ends[0] - ends[1]).norm() / ends[0].norm() < 1e-6


def test_wrong_tokens_lose_their_weight(tmp_path):
    """Within a sentence, tokens with wrong labels end with less weight than right ones."""
    rows = tagged_rows(200, wrong=0.3)
    trainer = AMALTrainer(
        model=tagger(hidden_size=32, intermediate_size=64),
        args=toy_arguments(
            tmp_path, max_steps=150, learning_rate=5e-3, per_device_train_batch_size=16, meta_batch_size=10
        ),
        train_dataset=rows.remove_columns("flipped"),
        meta_dataset=tagged_rows(50, 4).remove_columns("flipped"),
        method=of_tokens(amal(LossNetwork(normalisation=MeanOne()))),
    )
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(100)])
    outputs = trainer.model.eval()(**trainer._inputs.plain(batch))
    weights = trainer.mixture.weigh(outputs, batch, 1.0).weights[:, 0]
    wrong = torch.tensor(rows["flipped"][:100])[batch["labels"] != -100]
    assert weights[~wrong].mean() > 2 * weights[wrong].mean()
    assert len(trainer.example_weights()) == 200


@pytest.mark.parametrize("method", [amal, lambda: deep_interactions(StateNetwork(), trajectory=Trajectory(2))])
@pytest.mark.parametrize("family", ["bart", "gpt2"])
def test_translators_and_language_models(tmp_path, family, method):
    """Both kinds of generators train with weights of tokens, also through a trajectory on states of tokens."""
    model = tiny_generator(family).float()
    made = of_tokens(method())
    trainer = (AMALTrainer if family in CAUSAL else AMALSeq2SeqTrainer)(
        model=model,
        args=generator_arguments(tmp_path, max_steps=6),
        train_dataset=pairs(16, family),
        meta_dataset=pairs(8, family, 1),
        data_collator=collator(model),
        losses=[CrossEntropy(), CrossEntropy("again")],
        method=made,
    )
    trainer.train()
    weights = torch.tensor(trainer.example_weights()["labels"][:])
    assert torch.isfinite(weights).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda folder: of_tokens(amal(ExampleTable())), "goes by example"),
        (lambda folder: of_tokens(learning_to_reweight()), "goes by example"),
        (
            lambda folder: AMALTrainer(
                model=tiny_bert(),
                args=toy_arguments(folder),
                train_dataset=toy_rows(8),
                meta_dataset=toy_rows(8, 1),
                method=of_tokens(amal()),
            ),
            "gives one answer for an example",
        ),
        (
            lambda folder: new_trainer(folder, Method("m", LossNetwork(), tangent=LastLayer(), per_token=True)),
            "does not go with LastLayer",
        ),
    ],
    ids=["table", "online", "classifier", "last layer"],
)
def test_bad_input(tmp_path, build, message):
    """At construction, with what to use."""
    with pytest.raises(ValueError, match=message):
        build(tmp_path)


def test_an_example_is_noted_by_the_tokens_that_have_a_loss(tmp_path):
    """Of rules that vote on one token in two, mean loss and mean weight are of those; a row without any has none."""
    rows = tagged_rows(8).remove_columns("flipped")
    votes = [
        [[label, -1] if place % 2 and number else [-1, -1] for place, label in enumerate(row["labels"])]
        for number, row in enumerate(rows)
    ]
    trainer = AMALTrainer(
        model=tagger(),
        args=toy_arguments(tmp_path, max_steps=2, per_device_train_batch_size=4),
        train_dataset=rows.add_column("weak_labels", votes),
        losses=[CrossEntropy(), RuleLosses(["a", "b"])],
        method=of_tokens(Method("fixed", FixedWeights())),
    )
    trainer.train()
    noted = trainer.mixture.notes.of(torch.arange(8))
    assert np.isnan(noted["loss/rules"][0]) and np.isfinite(noted["loss/rules"][1:]).all()
    # An untrained student gives every class much the same.
    np.testing.assert_allclose(noted["loss/rules"][1:], math.log(3), atol=0.5)
    np.testing.assert_allclose(noted["loss/labels"], math.log(3), atol=0.5)
    weights = trainer.example_weights()
    # A token with a label and one vote shares between these two; one with a label alone gives all to it.
    assert weights["rules/a"][0] == 0 and weights["rules/a"][1:] == pytest.approx([0.5] * 7, abs=0.2)
    assert weights["labels"][0] == pytest.approx(1.0)


@pytest.mark.parametrize("family", ["tagger", "gpt2", "bart"])
def test_logits_are_not_copied_to_see_which_losses_tokens_have(family, monkeypatch):
    """Over a vocabulary a teacher's are the largest tensor of a step beside the student's."""
    _, batch = student_and_batch(family)
    mixture = TokenMixture(
        [CrossEntropy(), Distillation(lambda b: None)], FixedWeights(), Task(shifted=family in CAUSAL)
    )
    of_value, seen = TokenRows._of_value, []
    monkeypatch.setattr(TokenRows, "_of_value", lambda rows, value: seen.append(value) or of_value(rows, value))
    present = mixture.present_of([batch])
    assert present.shape == (len(mixture.ids(batch)), 2) and present.all()
    assert seen and not any(value is batch["teacher_logits"] for value in seen)
