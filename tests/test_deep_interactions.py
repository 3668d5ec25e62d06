"""A network on the student's states, and learning through several student steps, inside a trainer."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows
from torch import nn
from transformers import TrainerCallback

from amal_hf import (
    AMALTrainer,
    CrossEntropy,
    ExampleTable,
    FixedWeights,
    Frozen,
    Method,
    RectifiedSlopes,
    Reversal,
    StateNetwork,
    Trajectory,
    deep_interactions,
    save_policy,
)
from amal_hf.cage import Cage
from amal_hf.learner import WeightLearner
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.policies.state_network import label_shares, margin
from amal_hf.spear import Spear
from amal_hf.steps import put, raw
from amal_hf.student_states import hidden_states
from amal_hf.task import Task


SIZES = Sizes(losses=1, teachers=(), examples=None, classes=3, states=(16, 16, 16))


def new_trainer(folder, method, model=None, rows=24, **options):
    return AMALTrainer(
        model=tiny_bert() if model is None else model,
        args=toy_arguments(folder, **options),
        train_dataset=toy_rows(rows),
        meta_dataset=toy_rows(10, 4) if method.policy.learns else None,
        losses=[CrossEntropy()],
        method=method,
    )


def signals(examples=8, seed=0):
    """Losses that take turns; random logits, labels and states."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(examples, 3, generator=generator)
    batch = {"labels": torch.arange(examples) % 3, "attention_mask": torch.ones(examples, 5)}
    states = tuple(torch.randn(examples, 16, generator=generator) for _ in range(3))
    losses = torch.tensor([[0.2], [1.5]]).repeat(examples // 2, 1)
    return Signals(losses, logits, (), batch, Task(), states)


# ---- the network ----


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
@pytest.mark.parametrize("layers", [None, (-1,), (0, 2), ()])
def test_it_starts_at_one_and_learns_from_what_it_sees(layers, labels):
    """Every form of the ablation begins with w = 1, and can tell examples apart afterwards."""
    policy = StateNetwork(layers, learning_rate=1e-2, labels=labels)
    policy.reset(SIZES, torch.ones(1))
    seen = Observation(torch.arange(8), policy.observe(signals()), 0.5)
    assert seen.features.shape[1] + 1 == policy.width(SIZES)
    torch.testing.assert_close(policy.weights(seen), torch.ones(8, 1))
    slopes = torch.tensor([[1.0], [-1.0]] * 4)
    for _ in range(200):
        policy.update(seen, slopes)
    weights = policy.weights(seen).detach()[:, 0]
    assert weights[::2].min() > 1.2
    assert weights[1::2].max() < 0.8


def test_labels_may_be_left_out():
    """Then nothing but the margin depends on them, and no embedding is trained."""
    policy = StateNetwork((), labels=False)
    policy.reset(SIZES, torch.ones(1))
    seen = policy.observe(signals())
    assert seen.shape[1] + 1 == policy.width(SIZES) == StateNetwork(()).rest_width(SIZES)
    assert not [name for name, _ in policy.network.named_parameters() if "embedding" in name]


def test_a_state_counts_as_one_observation():
    """However wide and large it is, what the hidden layer reads of a state has length one."""
    policy = StateNetwork()
    policy.reset(SIZES, torch.ones(1))
    read = []
    policy.network[0].hidden.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    given = signals()
    given = given._replace(hidden_states=tuple(100 * state for state in given.hidden_states))
    policy.weights(Observation(torch.arange(8), policy.observe(given), 0.5))
    lengths = torch.stack([state.norm(dim=1) for state in read[0][:, :48].split(16, 1)])
    torch.testing.assert_close(lengths, torch.ones(3, 8), atol=1e-3, rtol=0)


def test_surface_alone_does_not_ask_for_states():
    """The student is not made to keep what nobody reads."""
    assert StateNetwork().needs_hidden_states
    assert not StateNetwork(()).needs_hidden_states


def test_states_are_averaged_over_attended_tokens():
    """Padding must not count; on a decoder's side the labelled tokens do, whatever the mask of the source."""
    states = torch.arange(12.0).reshape(1, 4, 3)
    batch = {"attention_mask": torch.tensor([[1, 1, 0, 0]]), "labels": torch.tensor([[5, 6, 7, -100]])}
    one, four = ({"logits": torch.zeros(rows, 2)} for rows in (1, 4))
    plain = SimpleNamespace(hidden_states=(states,), **one)
    translator = SimpleNamespace(encoder_hidden_states=(states,), decoder_hidden_states=(states,), **one)
    torch.testing.assert_close(hidden_states(plain, batch), (states[:, :2].mean(1),))
    torch.testing.assert_close(hidden_states(translator, batch), (states[:, :2].mean(1), states[:, :3].mean(1)))
    torch.testing.assert_close(hidden_states(plain, {}), (states.mean(1),))
    assert hidden_states(SimpleNamespace(), batch) == ()
    maps = torch.randn(4, 8, 3, 2)
    pictured = SimpleNamespace(hidden_states=(maps, maps[:, :, 0, 0]), **four)
    torch.testing.assert_close(hidden_states(pictured, {}), (maps.mean((2, 3)), maps[:, :, 0, 0]))


def test_states_of_choices_are_averaged():
    """Multiple choice reads every choice of an example on its own: two examples of two choices, of which the last is
    one token shorter.
    """
    states = torch.arange(24.0).reshape(4, 2, 3)
    mask = torch.tensor([[[1, 1], [1, 1]], [[1, 1], [1, 0]]])
    outputs = SimpleNamespace(hidden_states=(states,), logits=torch.zeros(2, 2))
    first, second = states[:2].mean((0, 1)), (states[2].mean(0) + states[3, 0]) / 2
    torch.testing.assert_close(hidden_states(outputs, {"attention_mask": mask}), (torch.stack([first, second]),))


def test_labels_of_every_task_become_shares():
    """A class is a one, tokens share, several labels stand for themselves, -100 and missing labels are nothing."""
    logits = torch.zeros(2, 3)
    cases = [
        (torch.tensor([2, -100]), [[0, 0, 1], [0, 0, 0]]),
        (torch.tensor([[0, 0, 1, -100], [-100] * 4]), [[2 / 3, 1 / 3, 0], [0, 0, 0]]),
        (torch.tensor([[1.0, 0, 1], [0, 1, 0]]), [[1, 0, 1], [0, 1, 0]]),
        (torch.tensor([0.5, 1.5]), [[0, 0, 0], [0, 0, 0]]),
        (torch.tensor([[4], [2]]), [[0, 1, 0], [0, 0, 1]]),  # more labels than are told apart
    ]
    for labels, expected in cases:
        torch.testing.assert_close(label_shares({"labels": labels}, logits, 3), torch.tensor(expected).float())
    assert not label_shares({}, logits, 3).any()


def test_margin_by_hand():
    """Probability of the label less that of the likeliest other class; 0 without a label."""
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log().expand(3, 3)
    given = Signals(torch.zeros(3, 1), logits, (), {"labels": torch.tensor([0, 1, -100])}, Task())
    torch.testing.assert_close(margin(given), torch.tensor([0.3, -0.3, 0.0]))


def test_margin_of_tokens_by_hand():
    """The mean over the labelled tokens, each at the place of the logits that predict it; 0 for other labels."""
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log().expand(2, 3, 3)
    labels = torch.tensor([[2, 0, -100], [-100, -100, -100]])

    def of(labels: torch.Tensor, task: Task) -> torch.Tensor:
        return margin(Signals(torch.zeros(2, 1), logits, (), {"labels": labels}, task))

    torch.testing.assert_close(of(labels, Task()), torch.tensor([-0.1, 0.0]))
    torch.testing.assert_close(of(labels, Task(shifted=True)), torch.tensor([0.3, 0.0]))
    assert not of(labels.float(), Task()).any()


def test_layers_that_are_not_there_are_refused(tmp_path):
    """At construction, with how many there are."""
    with pytest.raises(ValueError, match=r"layers \[5\] are not among the student's 3"):
        new_trainer(tmp_path, deep_interactions(StateNetwork((5,))))


class NoStates(nn.Module):
    """A model of one's own that gives logits and nothing else."""

    def __init__(self):
        super().__init__()
        self.config = tiny_bert().config
        self.head = nn.Linear(10, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        raise NotImplementedError


def test_a_model_without_states_is_refused(tmp_path):
    """Said before training, not by an index error in its midst."""
    with pytest.raises(ValueError, match=r"NoStates.forward takes no `output_hidden_states`"):
        new_trainer(tmp_path, deep_interactions(), model=NoStates())


# ---- the trajectory in a trainer ----


def test_steps_are_replayed_with_their_own_dropout(tmp_path, monkeypatch):
    """Standing where a step began, the student gives the very losses that it had then."""
    compared = []
    inner = WeightLearner.learn_from_trajectory

    def watched(self, recorder, student, meta_batch):
        optimizer, rewind = raw(student.optimizer), recorder.trajectory.rewind
        steps = recorder.replay(
            self.mixture, lambda batch: student.model(**student.inputs.plain(batch)), torch.device("cpu")
        )
        now = type(rewind)(1)
        now.record(optimizer, 0, 1)
        student.model.train()
        for position in rewind.back(optimizer, steps, student.max_grad_norm):
            losses = torch.cat([weighed.losses for weighed in recorder.steps[position].weighed])
            compared.append(torch.equal(steps[position].evaluate().losses, losses))
        put(optimizer, now.kept[0])
        return inner(self, recorder, student, meta_batch)

    monkeypatch.setattr(WeightLearner, "learn_from_trajectory", watched)
    trainer = new_trainer(
        tmp_path,
        deep_interactions(trajectory=Trajectory(4)),
        max_steps=9,
        gradient_accumulation_steps=2,
        max_grad_norm=0.05,
    )
    trainer.train()
    assert len(compared) == 8
    assert all(compared)


def test_training_is_that_of_the_weights_alone(tmp_path, monkeypatch):
    """Recording and walking back leave no trace: with a network that learns nothing the student is the one of the
    fixed mixture, bit for bit, dropout included.
    """
    monkeypatch.setattr(StateNetwork, "update", lambda self, observation, slopes: None)
    students = []
    for method in (deep_interactions(trajectory=Trajectory(3)), Method("fixed", FixedWeights())):
        trainer = new_trainer(tmp_path, method, max_steps=8)
        trainer.train()
        students.append(trainer.model.state_dict())
    for name, value in students[0].items():
        assert torch.equal(value, students[1][name]), name


def test_it_learns_every_b_steps(tmp_path):
    """Twelve steps and B = 5: after the fifth and the tenth."""
    trainer = new_trainer(tmp_path, deep_interactions(), max_steps=12, logging_steps=1)
    trainer.train()
    learned = [entry["step"] for entry in trainer.state.log_history if "meta_loss" in entry]
    assert learned == [6, 11]


def test_a_warm_up_is_not_learned_from(tmp_path):
    """Steps before its end are not recorded: with B = 2 and a warm-up of four the first update is after the sixth."""
    method = deep_interactions(trajectory=Trajectory(2))
    trainer = new_trainer(tmp_path, method, max_steps=9, logging_steps=1, meta_warmup_steps=4)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "meta_loss" in entry] == [7, 9]


def test_sgd_with_momentum_can_be_run_backwards(tmp_path):
    """The paper's own form, in a trainer."""
    method = deep_interactions(trajectory=Trajectory(3, rewind=Reversal()))
    trainer = new_trainer(
        tmp_path, method, max_steps=7, optim="sgd", optim_args="momentum=0.9", learning_rate=0.05, weight_decay=0.01
    )
    trainer.train()
    assert trainer._learner.steps_taken == 2


def test_learning_less_often_than_every_trajectory(tmp_path):
    """With `meta_interval=5` the last 2 of every 5 steps are walked back; interrupted anywhere, it ends the same."""
    options = {"meta_interval": 5, "max_steps": 12, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
    method = lambda: deep_interactions(trajectory=Trajectory(2))  # noqa: E731
    whole = new_trainer(tmp_path / "whole", method(), **options)
    whole.train()
    assert [entry["step"] for entry in whole.state.log_history if "meta_loss" in entry] == [6, 11]
    for step in (4, 5, 9):
        again = new_trainer(tmp_path / "whole", method(), **options)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)


class Unfreeze(TrainerCallback):
    """After step 4 the second layer is trained, in the place of the first or beside it."""

    def __init__(self, model, both):
        self.model, self.both = model, both

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            self.model.bert.encoder.layer[0].requires_grad_(self.both)
            self.model.bert.encoder.layer[1].requires_grad_(True)


@pytest.mark.parametrize("both", [True, False], ids=["one more", "another of the same shape"])
def test_layers_set_free_in_the_run(tmp_path, both):
    """What was trained on before cannot be walked back to: the trajectory that this falls into is not learned from,
    all others are.
    """
    model = tiny_bert()
    model.bert.encoder.layer[1].requires_grad_(False)
    method = deep_interactions(trajectory=Trajectory(3))
    trainer = new_trainer(tmp_path, method, model, max_steps=12, logging_steps=1)
    trainer.optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    trainer.add_callback(Unfreeze(model, both))
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "meta_loss" in entry] == [4, 10]


def test_layers_set_free_between_restarts_are_refused(tmp_path):
    """The student that began without them cannot be put back."""
    model = tiny_bert()
    model.bert.encoder.layer[1].requires_grad_(False)
    method = Method("short runs", StateNetwork(), trajectory=Trajectory(3), restart_every=3)
    trainer = new_trainer(tmp_path, method, model, lr_scheduler_type="constant")
    trainer.optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    trainer.add_callback(Unfreeze(model, both=False))
    with pytest.raises(ValueError, match="put back after every 3 steps"):
        trainer.train()


def test_what_cannot_work_is_said_before_the_first_step(tmp_path):
    """A run shorter than B, an optimizer that cannot be differentiated, a scheduler that restarts would betray."""
    cases = [
        ({"max_steps": 4}, deep_interactions(), "only 4 in all"),
        ({"optim": "adafactor"}, deep_interactions(trajectory=Trajectory(2)), "Adafactor cannot be differentiated"),
    ]
    for options, method, message in cases:
        trainer = new_trainer(tmp_path, method, **options)
        with pytest.raises(ValueError, match=message):
            trainer.train()
        assert trainer.state.global_step == 0
    restarted = Method("short runs", StateNetwork(), trajectory=Trajectory(3), restart_every=3)
    with pytest.raises(ValueError, match='lr_scheduler_type="constant"'):
        new_trainer(tmp_path, restarted)
    with pytest.raises(ValueError, match="learns through 5 steps and cannot do so every 4"):
        new_trainer(tmp_path, deep_interactions(), meta_interval=4)
    with pytest.raises(ValueError, match="neither weights that hold for one step"):
        Method("online", RectifiedSlopes(), trajectory=Trajectory())
    with pytest.raises(ValueError, match="must cover the whole"):
        Method("short runs", StateNetwork(), trajectory=Trajectory(3), restart_every=5)


def test_a_loss_whose_own_model_moves_cannot_be_walked_back(tmp_path):
    """Steps taken again would be others: at SPEAR's start all classes tie, and any step turns its pseudo-labels."""
    rows, losses = toy_rows(24), [CrossEntropy(), Spear(Cage([0, 1, 2], 3))]
    given = {"train_dataset": rows.add_column("weak_labels", [[0, 1, -1]] * 24), "meta_dataset": toy_rows(10, 4)}
    for method in (deep_interactions(), deep_interactions(window=2)):
        with pytest.raises(ValueError, match="loss 'spear' does not stand") if method.trajectory else nullcontext():
            AMALTrainer(tiny_bert(), toy_arguments(tmp_path), losses=losses, method=method, **given)


# ---- reuse ----


def test_a_learned_network_weighs_for_a_new_student(tmp_path):
    """Saved alone and applied frozen: the same examples and states get the same weights; no meta set is needed."""
    teacher = new_trainer(tmp_path, deep_interactions(trajectory=Trajectory(2)), max_steps=7, learning_rate=1e-2)
    teacher.train()
    save_policy(teacher.mixture.policy, tmp_path / "kept" / "network.safetensors")
    reused = new_trainer(
        tmp_path,
        Method("reused", Frozen(StateNetwork(), tmp_path / "kept" / "network.safetensors")),
        tiny_bert(seed=1),
    )
    reused.train()
    given = Observation(torch.arange(8), teacher.mixture.policy.observe(signals()), 0.5)
    torch.testing.assert_close(reused.mixture.policy.weights(given), teacher.mixture.policy.weights(given))
    assert not torch.allclose(reused.mixture.policy.weights(given), torch.ones(8, 1), atol=1e-3)


def test_a_network_for_another_student_is_refused(tmp_path):
    """Other hidden sizes, no file, or a file of something else."""
    policy = StateNetwork()
    policy.reset(SIZES, torch.ones(1))
    save_policy(policy, tmp_path / "network.safetensors")
    stream = ExampleTable()
    stream.reset(Sizes(1, (), None), torch.ones(1))
    with pytest.raises(ValueError, match="go by the ids of a stream"):
        save_policy(stream, tmp_path / "stream.safetensors")
    other = StateNetwork((0,))
    other.reset(SIZES, torch.ones(1))
    save_policy(other, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    cases = [
        (ValueError, "network.safetensors", SIZES._replace(states=(8, 8, 8)), "does not fit this student"),
        (ValueError, "other.safetensors", SIZES, "holds another policy"),
        (ValueError, "broken.safetensors", SIZES, "not a safetensors file"),
        (FileNotFoundError, "none.safetensors", SIZES, "save_policy"),
    ]
    for error, name, sizes, message in cases:
        with pytest.raises(error, match=message):
            Frozen(StateNetwork(), tmp_path / name).reset(sizes, torch.ones(1))
