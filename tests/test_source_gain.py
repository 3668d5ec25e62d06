"""What a target gains from its source, and policies that read it."""

from dataclasses import replace

import datasets
import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows
from generation import collator, generator_arguments, pairs, tiny_generator
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel, set_seed

from amal_hf import (
    AboveAverage,
    AMALSeq2SeqTrainer,
    AMALTrainer,
    CrossEntropy,
    Delayed,
    GeneralizedCrossEntropy,
    MeanOne,
    Method,
    SmallLoss,
    SourceGain,
    StateNetwork,
    amal,
    deep_interactions,
)
from amal_hf.metrics import auc
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.policies.source_gain import source_gain
from amal_hf.shapes import WITHOUT_SOURCE
from amal_hf.task import Task
from amal_hf.without_source import cost_without_source


SELECTION = Method("source_gain", SourceGain(0.25))


def bert_to_bert():
    """An encoder wider than its decoder."""
    set_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 60, "intermediate_size": 32}
    parts = BertConfig(hidden_size=24, **sizes), BertConfig(hidden_size=16, **sizes)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(*parts, pad_token_id=0, decoder_start_token_id=2)
    return EncoderDecoderModel(config=config).double()


STUDENTS = {
    "t5": lambda: tiny_generator("t5"),
    "bart": lambda: tiny_generator("bart"),
    "marian": lambda: tiny_generator("marian"),
    "bert to bert": bert_to_bert,
}


def new_trainer(folder, method=SELECTION, student=None, train=None, losses=None, **options):
    return AMALSeq2SeqTrainer(
        model=tiny_generator("t5", dropout_rate=0.1) if student is None else student,
        args=generator_arguments(folder, **{"max_steps": 4, "meta_interval": 1, **options}),
        train_dataset=pairs(24, "t5") if train is None else train,
        meta_dataset=pairs(8, "t5", 4) if method.learns else None,
        data_collator=collator(),
        losses=losses or [CrossEntropy()],
        method=method,
    )


def batch_of(trainer, rows):
    return next(iter(trainer.get_eval_dataloader(rows)))


@pytest.mark.parametrize("student", STUDENTS)
def test_the_cost_without_a_source_does_not_depend_on_it(tmp_path, student):
    """Another source, however long, costs the same to the last bit; with dropout on, and at random states that are
    not moved. The gain with the pair's own source is the difference to the model's own loss.
    """
    model = STUDENTS[student]()
    trainer = new_trainer(tmp_path, student=model)
    trainer._reset()
    rows = pairs(5, "t5", 7)
    batch = batch_of(trainer, rows)
    other = {**batch, "input_ids": batch["input_ids"].flip(0)[:, :3], "attention_mask": batch["attention_mask"][:, :3]}
    model.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    prepared, changed = trainer._prepare_batch(batch), trainer._prepare_batch(other)
    assert torch.get_rng_state().equal(before) and model.training
    without = prepared[WITHOUT_SOURCE]
    assert without.equal(changed[WITHOUT_SOURCE])
    assert without.isfinite().all() and without.unique().numel() > 1 and not without.requires_grad
    model.eval()
    for number in range(len(rows)):
        alone = batch_of(trainer, rows.select([number]))
        outputs = model(**{name: value for name, value in alone.items() if name != "example_id"})
        signals = Signals(torch.zeros(1, 1), outputs.logits, (), trainer._prepare_batch(alone), Task())
        torch.testing.assert_close(
            source_gain(signals).double(),
            (without[number] - outputs.loss.detach())[None].double(),
            rtol=1e-5,
            atol=1e-6,
        )


def test_without_a_source_a_t5_is_its_decoder_without_cross_attention(tmp_path):
    """In T5, where attention has no biases, states of zeros are the same as no cross-attention at all."""
    model = tiny_generator("t5")
    trainer = new_trainer(tmp_path, student=model)
    trainer._reset()
    batch = batch_of(trainer, pairs(5, "t5", 7))
    model.eval()
    alone = model.decoder(input_ids=batch["decoder_input_ids"]).last_hidden_state
    scale = model.model_dim**-0.5 if model.config.tie_word_embeddings else 1.0
    logits = model.lm_head(alone * scale).log_softmax(-1)
    labels = batch["labels"]
    picked = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = -(picked * (labels >= 0)).sum(1) / (labels >= 0).sum(1)
    torch.testing.assert_close(trainer._prepare_batch(batch)[WITHOUT_SOURCE].double(), expected.detach())


def test_a_selection_that_leaves_out_nothing_trains_as_if_it_did_not_look(tmp_path):
    """All parameters are those of a run of pairs alike, to the last bit, with dropout: the look is not noticed."""
    runs = []
    for method in (Method("source_gain", SourceGain(0.0)), None):
        set_seed(5)
        trainer = new_trainer(tmp_path / str(len(runs)), method) if method else plain(tmp_path)
        trainer.train()
        runs.append([p.detach().clone() for p in trainer.model.parameters()])
    assert all(mine.equal(other) for mine, other in zip(*runs, strict=True))


def plain(folder):
    return AMALSeq2SeqTrainer(
        model=tiny_generator("t5", dropout_rate=0.1),
        args=generator_arguments(folder / "plain", max_steps=4),
        train_dataset=pairs(24, "t5"),
        data_collator=collator(),
        losses=[CrossEntropy()],
    )


def test_those_with_the_highest_gain_are_kept():
    """By the gain, not by the loss; the number left out rises until half of the training is done."""
    policy = SourceGain(0.5, among=None)
    assert (policy.forgotten, policy.ramp, SmallLoss().ramp) == (0.5, 0.5, 0.3)
    policy.reset(Sizes(1, (), None), torch.ones(1))
    logits = torch.zeros(4, 2, 3)
    logits[:, :, 0] = torch.tensor([3.0, 2.0, 1.0, 0.0])[:, None]  # the first has the smallest loss
    labels = torch.zeros(4, 2, dtype=torch.long)
    own = -logits.log_softmax(-1)[:, 0, 0]
    gains = torch.tensor([-0.5, 0.3, 0.1, 0.7])
    batch = {"labels": labels, WITHOUT_SOURCE: own + gains}
    features = policy.observe(Signals(own[:, None], logits, (), batch, Task(label_smoothing=0.1)))
    torch.testing.assert_close(features[:, 0], -gains)
    for progress, kept in (
        (0.0, [1, 1, 1, 1]),
        (0.25, [0, 4 / 3, 4 / 3, 4 / 3]),
        (0.5, [0, 2, 0, 2]),
        (1.0, [0, 2, 0, 2]),
    ):
        weights = policy.weights(Observation(torch.arange(4), features, progress))
        torch.testing.assert_close(weights[:, 0], torch.tensor(kept, dtype=torch.float32))


def test_a_network_reads_the_gain_beside_the_rest(tmp_path):
    """One more column, which is the gain; and weights that depend on it once they have learned."""
    signals = Signals(
        torch.ones(3, 1),
        torch.zeros(3, 2, 5),
        (),
        {"labels": torch.ones(3, 2, dtype=torch.long), WITHOUT_SOURCE: torch.tensor([1.0, 2.0, 3.0])},
        Task(),
    )
    with_gain, without = StateNetwork((), source_gain=True), StateNetwork(())
    for policy in (with_gain, without):
        policy.reset(Sizes(1, (), None, classes=5), torch.ones(1))
    more, fewer = with_gain.observe(signals), without.observe(signals)
    assert more.shape[1] == fewer.shape[1] + 1
    gains = torch.tensor([1.0, 2.0, 3.0]) - torch.tensor(5.0).log()
    assert any(torch.allclose(column, gains) for column in more.T)
    assert "source gain" in with_gain.describe() and "source gain" not in without.describe()


NETWORKS = {
    "at once": lambda: StateNetwork((), learning_rate=0.005, normalisation=MeanOne(), source_gain=True),
    "later": lambda: Delayed(
        StateNetwork((), learning_rate=0.05, normalisation=AboveAverage(), likelihoods=True, source_gain=True), 0.5
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_with_the_gain_learns_by_window_and_by_trajectory(tmp_path, network):
    """Batches of a window and of recorded steps hold what the targets cost without a source."""
    methods = [deep_interactions(NETWORKS[network](), window=2)]
    methods += [deep_interactions(NETWORKS[network]())] if network == "at once" else []
    for number, method in enumerate(methods):
        trainer = new_trainer(tmp_path / str(number), method, max_steps=12, meta_interval=None)
        trainer.train()
        weights = torch.tensor(trainer.example_weights()["labels"][:])
        assert weights.isfinite().all() and weights.std() > 1e-4


def test_no_pass_without_a_source_once_weights_are_used(tmp_path, monkeypatch):
    """The decoder makes it in each step of the first half, and in none of the second."""
    steps = []

    def counted(student, batch, task):
        steps.append(student.step)
        return cost_without_source(student, batch, task)

    monkeypatch.setattr("amal_hf.meta_steps.cost_without_source", counted)
    new_trainer(tmp_path, deep_interactions(NETWORKS["later"](), window=2), max_steps=12, meta_interval=None).train()
    assert {*steps} == {*range(6)}


def test_an_interrupted_selection_goes_on_to_the_last_bit(tmp_path):
    """Nothing is kept from step to step but the student."""
    whole = new_trainer(tmp_path / "whole", max_steps=6, save_strategy="steps", save_steps=3)
    whole.train()
    rest = new_trainer(tmp_path / "rest", max_steps=6)
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert all(a.equal(b) for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True))


def test_a_student_in_half_precision(tmp_path):
    """States of zeros are of the model's own type."""
    trainer = new_trainer(tmp_path, student=tiny_generator("t5").bfloat16())
    trainer.train()
    weights = torch.tensor(trainer.example_weights()["labels"][:])
    assert weights.isfinite().sum() == 16  # in four steps


def test_wrong_pairs_gain_nothing_before_their_loss_tells(tmp_path):
    """A T5 learns to copy a word. A third of the pairs have another's; half of all targets go on with words that
    nobody can know. Losses tell these from the others, gains tell right pairs from wrong ones.
    """
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(4, 24, (960, 1), generator=generator)
    copied = words.clone()
    copied[:320] = words[:320].roll(1, 0)
    rest = torch.randint(4, 24, (960, 3), generator=generator) * (torch.arange(960) % 2)[:, None] + 3
    rows = {
        "input_ids": words.tolist(),
        "attention_mask": torch.ones_like(words).tolist(),
        "labels": [[*row, 1] for row in torch.cat([copied, rest], 1).tolist()],
    }
    train = datasets.Dataset.from_dict(rows)
    student = tiny_generator("t5", d_model=32, num_layers=1).float()
    method = Method("source_gain", SourceGain(0.0))
    options = {"max_steps": 300, "learning_rate": 1e-2, "per_device_train_batch_size": 32}
    trainer = new_trainer(tmp_path, method, student, train, **options)
    trainer.train()
    right = torch.arange(960) >= 320
    student.eval()
    found = {"loss": [], "gain": []}
    for batch in trainer.get_eval_dataloader(train):
        outputs = student(**{name: value for name, value in batch.items() if name != "example_id"})
        prepared = trainer._prepare_batch(batch)
        signals = Signals(torch.zeros(len(batch["labels"]), 1), outputs.logits, (), prepared, Task())
        gain = source_gain(signals)
        found["gain"].append(gain)
        found["loss"].append(gain - prepared[WITHOUT_SOURCE])
    told = {name: auc(torch.cat(values).detach().numpy(), right.numpy()) for name, values in found.items()}
    assert told["gain"] > 0.85 and told["loss"] < 0.8, told


def test_a_student_without_a_source_is_refused(tmp_path):
    """A classifier and a causal model read no source apart, a token has none: said before the first step."""
    classifier = {"model": tiny_bert(), "args": toy_arguments(tmp_path), "train_dataset": toy_rows(8)}
    for policy in (SourceGain(), StateNetwork((), source_gain=True)):
        with pytest.raises(ValueError, match=f"{type(policy).__name__} reads .* no encoder-decoder. Use SmallLoss"):
            AMALTrainer(**classifier, losses=[CrossEntropy()], method=Method("m", policy), meta_dataset=toy_rows(4))
    with pytest.raises(ValueError, match="no encoder-decoder"):
        AMALSeq2SeqTrainer(
            model=tiny_generator("gpt2"),
            args=generator_arguments(tmp_path),
            train_dataset=pairs(8, "gpt2"),
            data_collator=collator(),
            losses=[CrossEntropy()],
            method=SELECTION,
        )
    network = StateNetwork((), source_gain=True)
    with pytest.raises(ValueError, match="per_token"):
        new_trainer(tmp_path, replace(amal(network), per_token=True))
    with pytest.raises(ValueError, match="SourceGain: forgotten"):
        SourceGain(1.0)


def test_the_gain_is_of_plain_cross_entropy_whatever_is_trained_on(tmp_path):
    """A robust loss or smoothed labels change neither cost; a run with several micro-batches a step weighs pairs."""
    costs = []
    for number, (loss, smoothing) in enumerate(
        [(CrossEntropy(), 0.0), (CrossEntropy(), 0.2), (GeneralizedCrossEntropy(0.3), 0.0)]
    ):
        options = {"label_smoothing_factor": smoothing, "gradient_accumulation_steps": 2}
        trainer = new_trainer(tmp_path / str(number), losses=[loss], **options)
        trainer._reset()
        prepared = trainer._prepare_batch(batch_of(trainer, pairs(5, "t5", 7)))
        logits = torch.linspace(-1, 1, 60).expand(*prepared["labels"].shape, 60)
        signals = Signals(torch.zeros(5, 1), logits, (), prepared, trainer.mixture.task)
        costs.append((prepared[WITHOUT_SOURCE], source_gain(signals)))
    assert all(one.equal(other) for cost in costs[1:] for one, other in zip(cost, costs[0], strict=True))
    trainer.train()
    weights = torch.tensor(trainer.example_weights()["labels"][:])
    assert weights[weights.isfinite()].unique().numel() > 1
