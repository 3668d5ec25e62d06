"""Learning to Reweight, Meta-Weight-Net and their controls."""

import math

import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows
from datasets import Dataset
from reference import learning_to_reweight_by_unrolling

from amal_hf import (
    AMALTrainer,
    AnnealedWeights,
    ClassProportional,
    CrossEntropy,
    CustomLoss,
    DoubleBackward,
    FiniteDifference,
    ForwardMode,
    HardMining,
    MetaWeightNet,
    Method,
    RandomRectified,
    RectifiedSlopes,
    SmallLoss,
    learning_to_reweight,
    meta_weight_net,
)
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.shapes import IGNORED
from amal_hf.task import Task


def observation(count, columns=1):
    return Observation(torch.arange(count), torch.arange(count * columns).float().reshape(count, columns), 0.5)


def begun(policy, losses=1):
    policy.reset(Sizes(losses, (), 8), torch.full((losses,), 1 / losses))
    return policy


# ---- Learning to Reweight ----


def test_weights_are_rectified_slopes_with_mean_one():
    """By hand: slopes 3, -1, 1 and 0 of one step give weights 3, 0, 1 and 0, in whatever order they are asked for."""
    policy = begun(RectifiedSlopes())
    ids = torch.tensor([7, 2, 5, 3])
    policy.update(Observation(ids, torch.empty(4, 0), 0.5), torch.tensor([[3.0], [-1.0], [1.0], [0.0]]))
    asked = Observation(torch.tensor([5, 7, 3, 2]), torch.empty(4, 0), 0.5)
    torch.testing.assert_close(policy.weights(asked), torch.tensor([[1.0], [3.0], [0.0], [0.0]]))
    assert not policy.skips_step


@pytest.mark.parametrize("skip_empty", [True, False])
def test_an_empty_step_has_weight_zero_everywhere(skip_empty):
    """No division by zero, and the student is left alone only if that was asked for."""
    policy = begun(RectifiedSlopes(skip_empty), losses=2)
    policy.update(observation(3), -torch.ones(3, 2))
    assert not policy.weights(observation(3)).any()
    assert policy.skips_step == skip_empty


TANGENTS = {"finite differences": FiniteDifference(), "forward": ForwardMode(), "double backward": DoubleBackward()}


@pytest.mark.parametrize("tangent", TANGENTS.values(), ids=TANGENTS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_equals_the_published_procedure(tmp_path, tangent, accumulation):
    """The student after five steps is that of the paper's two forward and two backward passes, written out naively:
    for SGD, over the whole optimizer step also when it is accumulated.
    """
    rows, clean = toy_rows(40), toy_rows(8, seed=1)
    student = tiny_bert(attn_implementation="eager", hidden_dropout_prob=0, attention_probs_dropout_prob=0).double()
    expected = tiny_bert(attn_implementation="eager").double()
    learning_to_reweight_by_unrolling(expected, rows, clean, batch=8, steps=5, learning_rate=0.5)
    args = toy_arguments(
        tmp_path,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=5,
        learning_rate=0.5,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
    )
    method = learning_to_reweight(tangent=tangent)
    AMALTrainer(model=student, args=args, train_dataset=rows, meta_dataset=clean, method=method).train()
    start = dict(tiny_bert().double().named_parameters())
    for (name, p), q in zip(student.named_parameters(), expected.parameters(), strict=True):
        moved, wanted = p - start[name], q - start[name]
        torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-6 * wanted.abs().max().item() + 1e-12, msg=name)


def loss_that_hurts(outputs, batch):
    """The opposite of the task loss: following it never helps."""
    return -CrossEntropy()(outputs, batch)


@pytest.mark.parametrize("skip_empty", [True, False])
def test_empty_steps_leave_the_student_alone(tmp_path, skip_empty):
    """If nothing helps, an optimizer with momentum and weight decay moves nothing, and the log counts the steps; in
    the published form weight decay acts.
    """
    student = tiny_bert(num_labels=2)
    rows = toy_rows(1, labels=2).select([0] * 8)  # train and meta rows are one: the opposite loss can only hurt
    args = toy_arguments(tmp_path, max_steps=3, logging_steps=3, weight_decay=0.1, learning_rate=1e-4)
    trainer = AMALTrainer(
        model=student,
        args=args,
        train_dataset=rows,
        meta_dataset=rows,
        losses=[CustomLoss(loss_that_hurts, "hurts")],
        method=learning_to_reweight(skip_empty=skip_empty),
    )
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    trainer.train()
    unmoved = all(torch.equal(p, before[name]) for name, p in student.named_parameters())
    assert unmoved == skip_empty
    assert trainer.state.log_history[0].get("skipped_steps") == (3.0 if skip_empty else None)


def test_every_step_needs_its_meta_step(tmp_path):
    """Between meta steps there would be no weights: said at construction."""
    rows = toy_rows(8)
    with pytest.raises(ValueError, match="meta_interval is 4"):
        AMALTrainer(
            model=tiny_bert(),
            args=toy_arguments(tmp_path, meta_interval=4),
            train_dataset=rows,
            meta_dataset=rows,
            method=learning_to_reweight(),
        )


# ---- Meta-Weight-Net ----


def test_meta_weight_net_maps_losses_to_weights():
    """It starts at one, stays in (0, 2), and gives less to high losses once these have hurt."""
    policy = begun(MetaWeightNet(learning_rate=1e-2))
    losses = torch.linspace(0, 4, 8)[:, None]
    seen = Observation(torch.arange(8), policy.observe(Signals(losses, losses, (), {}, Task())), 0.5)
    torch.testing.assert_close(policy.weights(seen), torch.ones(8, 1))
    for _ in range(200):
        policy.update(seen, torch.sign(2 - losses))
    weights = policy.weights(seen).detach()
    assert (weights[:-1] >= weights[1:]).all()
    assert weights[0] > 1.5
    assert weights[-1] < 0.5


def test_meta_weight_net_trains(tmp_path):
    """In a trainer, at its default of a meta step at every step, with one loss."""
    args = toy_arguments(tmp_path, max_steps=4, logging_steps=1)
    trainer = AMALTrainer(
        model=tiny_bert(), args=args, train_dataset=toy_rows(16), meta_dataset=toy_rows(8, 1), method=meta_weight_net()
    )
    trainer.train()
    assert all("meta_loss" in entry for entry in trainer.state.log_history[:-1])


# ---- controls ----


def test_random_rectified_weights_are_one_on_average_and_half_of_them_zero():
    """The same for the same example at the same step, new at another step."""
    policy = begun(RandomRectified())
    many = Observation(torch.arange(4000), torch.empty(4000, 0), 0.25)
    weights = policy.weights(many)
    assert weights.mean() == pytest.approx(1, abs=0.06)
    assert (weights == 0).float().mean() == pytest.approx(0.5, abs=0.04)
    assert torch.equal(policy.weights(many), weights)
    assert not torch.equal(policy.weights(many._replace(progress=0.5)), weights)


@pytest.mark.parametrize(("power", "ratio"), [(1.0, 9.0), (0.5, 3.0), (0.0, 1.0)])
def test_class_proportional_weights_even_the_classes_out(power, ratio):
    """With 36 rows of one class and 4 of the other both have the same sum of weights, a power of a half goes half the
    way; what has no label counts once.
    """
    policy = begun(ClassProportional([36, 4], power))
    labels = torch.tensor([0] * 36 + [1] * 4 + [IGNORED])
    features = policy.observe(Signals(torch.zeros(41, 1), torch.zeros(41, 2), (), {"labels": labels}, Task()))
    weights = policy.weights(Observation(torch.arange(41), features, 0.0))
    assert weights[:40].mean() == pytest.approx(1)
    assert (weights[36] / weights[0]).item() == pytest.approx(ratio)
    assert weights[40].item() == 1


@pytest.mark.parametrize("labels", [torch.ones(4, 2), torch.zeros(4), torch.zeros(4, 5, dtype=torch.long)])
def test_examples_without_one_class_have_no_share_of_it(labels):
    """Several yes/no labels, numbers and tokens are refused in words, before anything is looked up by them."""
    policy = begun(ClassProportional([3, 1]))
    with pytest.raises(ValueError, match="ClassProportional is for examples of one class each"):
        policy.observe(Signals(torch.zeros(4, 1), torch.zeros(4, 2), (), {"labels": labels}, Task()))


def test_hard_mining_keeps_the_largest_losses():
    """A quarter of eight examples: the two hardest, with weight four each."""
    weights = begun(HardMining(0.25)).weights(observation(8))
    assert weights[:, 0].tolist() == [0, 0, 0, 0, 0, 0, 4, 4]


@pytest.mark.parametrize(("progress", "kept"), [(0.0, 8), (0.15, 6), (0.3, 4), (1.0, 4)])
def test_small_loss_selection_gives_examples_up_one_by_one(progress, kept):
    """Half of eight examples are left out from 30 % of the run on; those with the smallest losses stay."""
    weights = begun(SmallLoss(0.5, ramp=0.3)).weights(observation(8)._replace(progress=progress))
    assert weights[:, 0].tolist() == pytest.approx([8 / kept] * kept + [0] * (8 - kept))


def test_a_selection_among_the_latest_examples_leaves_out_as_many_as_are_bad():
    """Batches without a large loss keep all, others give up more than the share; the bar is that of the latest
    examples of whole steps, whatever the micro-batch, and older ones are forgotten.
    """
    policy = begun(SmallLoss(0.25, ramp=0.5, among=8))
    costs = lambda *values: observation(len(values))._replace(features=torch.tensor(values)[:, None], progress=1.0)  # noqa: E731
    assert policy.weights(costs(1.0, 9.0))[:, 0].tolist() == pytest.approx([4 / 3] * 2)  # nothing seen before
    policy.note_step(torch.tensor([[5.0], [7.0]]))
    policy.note_step(torch.arange(8.0)[:, None])  # the bar is 5.25
    assert policy.weights(costs(1.0, 5.0, 5.2))[:, 0].tolist() == pytest.approx([4 / 3] * 3)
    assert policy.weights(costs(6.0, 7.0, 5.3, 0.0))[:, 0].tolist() == pytest.approx([0, 0, 0, 4 / 3])
    half_way = costs(6.0, 6.2)._replace(progress=0.25)  # an eighth is left out: above 6.125
    assert policy.weights(half_way)[:, 0].tolist() == pytest.approx([8 / 7, 0])
    assert policy.weights(costs(99.0)._replace(progress=0.0))[:, 0].tolist() == [1.0]
    policy.note_step(torch.full((8, 1), 2.0))
    assert policy.weights(costs(1.0, 3.0))[:, 0].tolist() == pytest.approx([4 / 3, 0])


def test_a_step_is_noted_once_and_whole(tmp_path):
    """All micro-batches of an optimizer step at once, examples without a loss as NaN; another step's come after."""
    noted = []

    class Noting(SmallLoss):
        def note_step(self, features):
            noted.append(features.isfinite()[:, 0].tolist())
            super().note_step(features)

    rows = list(toy_rows(16))
    for row in rows[:4]:
        row["labels"] = -100
    args = toy_arguments(tmp_path, max_steps=2, gradient_accumulation_steps=2, train_sampling_strategy="sequential")
    method = Method("control", Noting(0.5, among=5))
    AMALTrainer(model=tiny_bert(), args=args, train_dataset=Dataset.from_list(rows), method=method).train()
    assert noted == [[False] * 4 + [True] * 4, [True] * 8]


def test_small_loss_selection_adds_losses_up_as_they_are_weighed():
    """A loss that the mixture leaves out does not count."""
    policy = SmallLoss()
    policy.reset(Sizes(2, (), 8), torch.tensor([0.25, 0.0]))
    losses = torch.tensor([[4.0, 100.0], [8.0, 0.0]])
    assert policy.observe(Signals(losses, torch.zeros(2, 2), (), {}, Task())).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_an_annealed_mixture_goes_from_one_end_to_the_other(progress, share):
    """From the second loss to the first in equal steps."""
    policy = AnnealedWeights([1, 0])
    policy.reset(Sizes(2, (1,), 8), torch.tensor([0.0, 1.0]))
    weights = policy.weights(observation(3, 2)._replace(progress=progress))
    torch.testing.assert_close(weights, torch.tensor([[share, 1 - share]] * 3))


def test_controls_refuse_what_makes_no_sense():
    """Said when they are made."""
    for wrong in (
        lambda: ClassProportional([3]),
        lambda: ClassProportional([3, 0]),
        lambda: ClassProportional([3, 1], power=1.5),
        lambda: HardMining(0.0),
        lambda: SmallLoss(1.0),
        lambda: SmallLoss(ramp=0.0),
        lambda: SmallLoss(among=0),
        lambda: begun(AnnealedWeights([1, 0])),
    ):
        with pytest.raises(ValueError, match="got"):
            wrong()


@pytest.mark.parametrize(
    "policy",
    [
        RandomRectified(),
        ClassProportional([5, 6, 5]),
        HardMining(0.5),
        SmallLoss(0.5),
        SmallLoss(0.5, among=9),
        AnnealedWeights([2]),
    ],
)
def test_controls_train_without_a_meta_set(tmp_path, policy):
    """In a trainer, as a method of their own."""
    args = toy_arguments(tmp_path, max_steps=3)
    trainer = AMALTrainer(model=tiny_bert(), args=args, train_dataset=toy_rows(16), method=Method("control", policy))
    trainer.train()
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
