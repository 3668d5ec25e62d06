"""Commentaries from learning to reuse: inside the trainer, on disk, on a hub, and with another student."""

import json
import logging
import os
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import VOCABULARY, tiny_bert, toy_arguments, toy_rows
from hub import client_environment, running_hub
from transformers import (
    AutoConfig,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    TrainerCallback,
    set_seed,
)

from amal_hf import (
    AMALTrainer,
    AttentionMask,
    Commentary,
    CommentaryNetwork,
    CrossEntropy,
    Distillation,
    LabelBlend,
    LastLayer,
    Method,
    TokenMask,
    Trajectory,
    amal,
    commentaries,
    embed_texts,
)
from amal_hf.policies.fixed_weights import FixedWeights


ROWS = 24
TABLE = torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(0))
EMBEDDINGS = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(1))
KINDS = {
    "weights": (lambda: CommentaryNetwork(EMBEDDINGS, 3), EMBEDDINGS),
    "blend": (lambda: LabelBlend(3), None),
    "token mask": (lambda: TokenMask(TABLE, [0]), TABLE),
    "attention mask": (lambda: AttentionMask(TABLE, [0]), TABLE),
}
all_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def new_trainer(folder, method, model=None, train=None, callbacks=None, losses=None, **options):
    return AMALTrainer(
        model=tiny_bert() if model is None else model,
        args=toy_arguments(folder, **options),
        train_dataset=toy_rows(ROWS) if train is None else train,
        eval_dataset=toy_rows(12, 3),
        meta_dataset=toy_rows(10, 4) if method.learns else None,
        method=method,
        losses=losses,
        callbacks=callbacks,
    )


def another_student(**config):
    """Of another architecture."""
    set_seed(1)
    sizes = {"dim": 12, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "num_labels": 3}
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **{**sizes, **config})
    )


def learned(folder, kind):
    trainer = new_trainer(folder, commentaries(kind[0]()))
    trainer.train()
    return trainer


# ---- learning ----


@all_kinds
def test_a_commentary_learns_and_evaluation_stays_plain(tmp_path, kind):
    """Something moves away from the start, weights or changes; what evaluation sees is the batch as it is."""
    trainer = learned(tmp_path, kind)
    policy = trainer.method.batch_policy or trainer.method.policy
    fresh = kind[0]()
    if isinstance(policy, CommentaryNetwork):
        assert np.std(trainer.example_weights()["labels"]) > 0
    else:
        pairs = zip(policy.parameters(), fresh.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)
        assert all(torch.isfinite(p).all() for p in policy.parameters())
    rows = toy_rows(12, 3).with_format("torch")[:]
    with torch.no_grad():
        plain = trainer.model.eval()(**rows).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.item(), rel=1e-5)


def test_blending_nothing_is_training_as_usual(tmp_path):
    """λ = 1 leaves every example itself: the run ends where one without a commentary does."""
    blend = LabelBlend(3, initial=-200.0)
    blend.freeze()
    runs = [
        new_trainer(tmp_path, Method("none", FixedWeights(), batch_policy=policy), no_dropout(), losses=two_losses())
        for policy in (blend, None)
    ]
    for run in runs:
        run.train()
    for ours, theirs in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_blended_losses_are_shared(tmp_path):
    """Every loss of the mixture is λ ℓ(·, own) + (1 − λ) ℓ(·, partner's), the teacher's as well."""
    trainer = new_trainer(tmp_path, commentaries(LabelBlend(3)), no_dropout(), losses=two_losses())
    batch = trainer.mixture.prepare(trainer.data_collator([trainer.train_dataset[row] for row in range(6)]))
    inputs, targets = trainer._inputs.trained(batch, 2)
    outputs = trainer.model(**inputs)
    table = trainer.mixture.evaluate(outputs, batch, targets).losses
    (_, share), (other, rest) = targets
    own = trainer.mixture.evaluate(outputs, batch).losses
    partner = trainer.mixture.evaluate(outputs, other).losses
    torch.testing.assert_close(table, share[:, None] * own + rest[:, None] * partner)
    assert not torch.allclose(own, partner), "a vacuous comparison"


def no_dropout():
    return tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def two_losses():
    logits = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(9))
    return [CrossEntropy(), Distillation(lambda batch: logits[batch["example_id"]])]


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_an_interrupted_blend_equals_the_uninterrupted_one(tmp_path):
    """Matrix, Adam's moments and partners go on where they stopped, bit for bit."""
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    whole = new_trainer(tmp_path / "whole", commentaries(LabelBlend(3)), **options)
    whole.train()
    for step in (1, 4):
        folder = tmp_path / str(step)
        new_trainer(folder, commentaries(LabelBlend(3)), callbacks=[StopAt(step)], **options).train()
        again = new_trainer(folder, commentaries(LabelBlend(3)), **options)
        again.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        assert torch.equal(again.method.batch_policy.matrix, whole.method.batch_policy.matrix)
        for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_short_runs_begin_where_the_first_began(tmp_path):
    """Algorithm 1: with `short_runs` the student is put back after every so many steps, and weights still learn."""
    method = commentaries(CommentaryNetwork(EMBEDDINGS, 3), short_runs=3)
    trainer = new_trainer(tmp_path, method, max_steps=9, lr_scheduler_type="constant")
    trainer.train()
    assert method.trajectory.steps == method.restart_every == 3
    assert np.std(trainer.example_weights()["labels"]) > 0


# ---- reuse ----


@all_kinds
def test_reused_by_a_student_of_another_architecture(tmp_path, kind):
    """Saved, read and applied frozen, in a longer run: what was learned does not move and needs no meta set."""
    trainer = learned(tmp_path / "first", kind)
    Commentary.learned_by(trainer, encoder="a table").save_pretrained(tmp_path / "commentary")
    read = Commentary.from_pretrained(tmp_path / "commentary")
    assert read.schema.horizon == 6 and read.schema.encoder == "a table" and read.schema.losses == ["labels"]
    student = another_student()
    again = new_trainer(tmp_path / "second", read.method_for(student, toy_rows(ROWS), kind[1]), student, max_steps=11)
    again.train()
    assert all(torch.isfinite(p).all() for p in student.parameters())
    held = again.method.batch_policy or again.method.policy.policy
    for name, value in read.tensors.items():
        assert torch.equal(held.state_dict()[name].cpu(), value)


def test_weights_keep_their_meaning_in_a_run_of_another_length(tmp_path):
    """Progress is a share: half-way through, an example weighs what it weighed half-way through the first run."""
    trainer = learned(tmp_path, KINDS["weights"])
    read = Commentary.learned_by(trainer)
    longer = new_trainer(tmp_path, read.method_for(trainer.model, toy_rows(ROWS), EMBEDDINGS), max_steps=60)
    batch = longer.mixture.prepare(longer.data_collator([longer.train_dataset[row] for row in range(6)]))
    outputs = longer.model(**longer._inputs.plain(batch))
    one, other = (mixture.weigh(outputs, batch, 0.5).weights for mixture in (trainer.mixture, longer.mixture))
    torch.testing.assert_close(one, other)


def test_weights_go_by_the_losses_they_were_learned_for(tmp_path):
    """In another order each loss would get the other's weights, without a word."""
    trainer = new_trainer(tmp_path, commentaries(CommentaryNetwork(EMBEDDINGS, 3)), no_dropout(), losses=two_losses())
    trainer.train()
    read = Commentary.learned_by(trainer)
    method = read.method_for(no_dropout(), toy_rows(ROWS), EMBEDDINGS)
    new_trainer(tmp_path, method, no_dropout(), losses=two_losses())
    with pytest.raises(ValueError, match="in this order"):
        new_trainer(tmp_path, method, no_dropout(), losses=two_losses()[::-1])


def test_other_rows_are_warned_of(tmp_path, caplog):
    """The same labels over other texts: it works, but says what it is."""
    read = Commentary.learned_by(learned(tmp_path, KINDS["blend"]))
    with caplog.at_level(logging.WARNING):
        read.method_for(tiny_bert(), toy_rows(ROWS))
        assert not caplog.records
        read.method_for(tiny_bert(), toy_rows(ROWS, seed=5))
    assert "learned on other training rows" in caplog.text


def test_rows_that_were_no_dataset_are_not_compared(tmp_path, caplog):
    """There is nothing that they could be known by."""
    rows = [toy_rows(ROWS)[row] for row in range(ROWS)]
    trainer = new_trainer(tmp_path, commentaries(LabelBlend(3)), train=rows)
    trainer.train()
    with caplog.at_level(logging.WARNING, logger="amal_hf"):
        Commentary.learned_by(trainer).method_for(tiny_bert(), toy_rows(ROWS))
    assert "other training rows" not in caplog.text


@pytest.mark.parametrize("family", ["gpt2", "modernbert", "deberta-v2"])
def test_a_mask_does_not_take_the_place_of_one_that_hides_words(tmp_path, family):
    """Later words from a student that reads forward, distant ones from one with windows; and not every student takes a
    mask for pairs of tokens. Masks on embeddings suit all that read both ways.
    """
    student = tiny_bert()
    student.config.__class__ = type(AutoConfig.for_model(family))
    student.config.layer_types = ["full_attention", "sliding_attention"] if family == "modernbert" else None
    vectors = torch.randn(VOCABULARY, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="AttentionMask takes the place of the mask.*Use TokenMask"):
        new_trainer(tmp_path, commentaries(AttentionMask(vectors, [0])), student)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda read, folder: read.method_for(tiny_bert(num_labels=2), toy_rows(ROWS)), "learned for the labels"),
        (lambda read, folder: read.method_for(tiny_bert(), toy_rows(ROWS), TABLE), "needs no data; got a tensor"),
        (lambda read, folder: (folder / "commentary.safetensors").write_bytes(b"no"), "not a safetensors file"),
        (lambda read, folder: (folder / "commentary.json").write_text("{}"), "not a schema"),
        (lambda read, folder: later_format(folder), "Update amal_hf"),
        (lambda read, folder: (folder / "commentary.json").unlink(), "has no commentary.json"),
    ],
    ids=["labels", "data", "tensors", "schema", "format", "missing"],
)
def test_bad_reuse_is_refused(tmp_path, spoil, message):
    """Another label map, superfluous data, damaged or missing files: before anything is trained."""
    read = Commentary.learned_by(learned(tmp_path / "run", KINDS["blend"]))
    read.save_pretrained(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        spoil(read, tmp_path)
        Commentary.from_pretrained(tmp_path)


def later_format(folder):
    schema = json.loads((folder / "commentary.json").read_text())
    (folder / "commentary.json").write_text(json.dumps({**schema, "format": 99}))


def test_missing_data_is_refused(tmp_path):
    """Weights need the embeddings of the rows; the message names the encoder."""
    read = Commentary.learned_by(learned(tmp_path, KINDS["weights"]), encoder="some/encoder")
    with pytest.raises(ValueError, match="needs data from the encoder 'some/encoder'; got none"):
        read.method_for(tiny_bert(), toy_rows(ROWS))
    with pytest.raises(ValueError, match="got 3 for 24 rows"):
        new_trainer(tmp_path, read.method_for(tiny_bert(), toy_rows(ROWS), EMBEDDINGS[:3]))


def test_data_of_another_encoder_is_refused(tmp_path):
    """By the width of its vectors, before anything is trained; the shapes are said."""
    read = Commentary.learned_by(learned(tmp_path, KINDS["token mask"]))
    with pytest.raises(ValueError, match=r"\(\(32, 16\), \(32, 10\)\)\}. Use data from the same encoder"):
        read.method_for(tiny_bert(), toy_rows(ROWS), TABLE[:, :5])


def test_what_has_no_commentary_is_refused(tmp_path):
    """`learned_by` a method of another kind says what to use."""
    trainer = new_trainer(tmp_path, amal())
    with pytest.raises(ValueError, match="Use save_policy"):
        Commentary.learned_by(trainer)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda folder: new_trainer(folder, commentaries(LabelBlend(4))), "made for 4 labels, and the student has 3"),
        (
            lambda folder: new_trainer(
                folder, Method("m", FixedWeights(), tangent=LastLayer(), batch_policy=LabelBlend(3))
            ),
            "below the output layer",
        ),
        (lambda folder: commentaries(LabelBlend(3), short_runs=5), "neither through a trajectory"),
        (
            lambda folder: Method("m", FixedWeights(), trajectory=Trajectory(2), batch_policy=LabelBlend(3)),
            "NeumannDirection",
        ),
    ],
    ids=["labels", "last layer", "short runs", "trajectory"],
)
def test_bad_methods_are_refused(tmp_path, build, message):
    """At construction, with what to do instead."""
    with pytest.raises(ValueError, match=message):
        build(tmp_path)


PUSH_AND_READ = """
import sys
from amal_hf import Commentary
here = Commentary.from_pretrained(sys.argv[1])
print(here.push_to_hub("me/questions"))
there = Commentary.from_pretrained("me/questions")
assert there.schema == here.schema
assert all((there.tensors[name] == here.tensors[name]).all() for name in here.tensors)
"""


def test_stored_beside_a_dataset_on_a_hub(tmp_path):
    """The real client pushes both files into the dataset's repository and reads them back, bit for bit."""
    Commentary.learned_by(learned(tmp_path / "run", KINDS["blend"])).save_pretrained(tmp_path / "made")
    with running_hub() as hub:
        environment = {**os.environ, **client_environment(hub, tmp_path / "home")}
        command = [sys.executable, "-c", PUSH_AND_READ, str(tmp_path / "made")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "/datasets/me/questions/commit/" in done.stdout
        assert set(hub.repositories["datasets/me/questions"]) == {
            "commentary/commentary.json",
            "commentary/commentary.safetensors",
        }


# ---- what is learned ----


def test_texts_are_embedded_by_their_own_tokens(tmp_path):
    """A row is the mean over its tokens, padding left out, whatever it is batched with; dropout is off."""
    from test_teachers import WORDS, tokenizer

    encoder = tiny_bert().bert.train()
    texts = [WORDS[0], " ".join(WORDS[:3]), WORDS[1]]
    together = embed_texts(texts, encoder, tokenizer(), batch_size=3)
    alone = torch.cat([embed_texts([text], encoder, tokenizer(), batch_size=1) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert together.shape == (3, 16) and encoder.training
    with torch.no_grad():
        inputs = tokenizer()(texts[1], return_tensors="pt")
        states = encoder.eval()(**inputs).last_hidden_state[0]
    torch.testing.assert_close(together[1], states.mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "column",
    [
        lambda texts: pd.Series(texts, index=[2, 0, 1]),
        lambda texts: datasets.Dataset.from_dict({"text": texts})["text"],
    ],
    ids=["table", "dataset"],
)
def test_texts_of_a_column_are_embedded_in_their_order(column):
    """Whatever the rows of a shuffled table are called."""
    from test_teachers import WORDS, tokenizer

    encoder, texts = tiny_bert().bert, [" ".join(WORDS[: count + 1]) for count in range(3)]
    expected, found = (embed_texts(given, encoder, tokenizer()) for given in (texts, column(texts)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([], "no texts"),
        (["a", None, "b"], "1 of 3 texts are missing, the first at 1"),
        (pd.Series(["a", "b", float("nan"), None]), "2 of 4 texts are missing, the first at 2"),
    ],
    ids=["none", "null", "table"],
)
def test_texts_that_are_missing_are_named(texts, told):
    """Before a tokenizer fails on them."""
    with pytest.raises(ValueError, match=told):
        embed_texts(texts, None, None)


def rows_of(count, seed, word_of):
    """Fillers (30 and above) with one word that tells the class, somewhere."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    ids = torch.randint(30, VOCABULARY, (count, 10), generator=generator)
    places = torch.randint(0, 10, (count,), generator=generator)
    ids[torch.arange(count), places] = word_of(labels, generator)
    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist(), "labels": labels.tolist()}
    return datasets.Dataset.from_dict(rows)


def clear(labels, generator):
    """A word of its own for every class."""
    del generator
    return 10 + labels


def confusable(labels, generator):
    """Classes 0 and 1 mostly share a word; 2 and 3 never do."""
    shared = (labels < 2) & (torch.rand(len(labels), generator=generator) < 0.7)
    return torch.where(shared, 20, 10 + labels)


def long_run(folder, commentary, word_of):
    trainer = AMALTrainer(
        model=tiny_bert(hidden_size=32, intermediate_size=64, num_labels=4),
        args=toy_arguments(
            folder, max_steps=200, learning_rate=3e-3, per_device_train_batch_size=16, meta_batch_size=32
        ),
        train_dataset=rows_of(300, 0, word_of),
        meta_dataset=rows_of(200, 50, word_of),
        method=commentaries(commentary),
    )
    trainer.train()
    return trainer.method.batch_policy


def test_masks_keep_planted_key_words(tmp_path):
    """The words that tell the class are kept; fillers are not, within the budget. Fresh texts, same words."""
    vectors = torch.randn(VOCABULARY, 16, generator=torch.Generator().manual_seed(0))
    policy = long_run(tmp_path, TokenMask(vectors, [0]), clear)
    ids = torch.tensor(rows_of(100, 99, clear)["input_ids"][:])
    keep = policy.keep(ids, torch.ones_like(ids)).detach()
    assert keep[ids < 30].mean() > 0.75 and keep[ids >= 30].mean() < 0.5
    assert keep.mean() <= 0.5 + 1e-6


def test_blends_tell_confusable_labels_from_distinct_ones(tmp_path):
    """λ of two labels that share their words ends elsewhere than λ of two that do not."""
    shares = long_run(tmp_path, LabelBlend(4, learning_rate=3e-2), confusable).shares().detach()
    confused, distinct = (shares[0, 1] + shares[1, 0]) / 2, (shares[2, 3] + shares[3, 2]) / 2
    assert abs(confused - distinct) > 0.04
