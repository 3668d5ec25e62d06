"""The probe of the clean rows is ridge regression, does not know what it judges, and claims no more than it knows."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import VOCABULARY, tiny_bert, toy_arguments, toy_rows
from peft import PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    BertForMultipleChoice,
    BertForTokenClassification,
    FunnelConfig,
    FunnelForSequenceClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from amal_hf import AMALTrainer, CrossEntropy, LossNetwork, amal
from amal_hf.clean_probe import FEWEST_ROWS, MOST_ROWS, STRENGTHS, CleanProbe, CleanRows, _ridges, fitted, unit
from amal_hf.policies.delayed import Delayed
from amal_hf.policies.policy import Observation, Signals, Sizes
from amal_hf.task import Task


CLASSES, WIDTH = 3, 8


def clean_rows(count, seed=0, spread=0.3, first=0):
    """States around one point a class, every class in turn."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    classes = torch.arange(count) % CLASSES
    states = centres[classes] + spread * torch.randn(count, WIDTH, generator=generator)
    return CleanRows(torch.arange(first, first + count), states, classes)


def told(*batches):
    probe = CleanProbe(CLASSES)
    for batch in batches:
        probe.note(batch)
    return probe


def ridge(states, targets, strength):
    """Its weights by the normal equations, in as many unknowns as a state is wide."""
    return torch.linalg.solve(states.T @ states + strength * torch.eye(WIDTH).double(), states.T @ targets)


def planted():
    rows = clean_rows(20)
    states = unit(rows.states.double())
    targets = F.one_hot(rows.classes, CLASSES).double()
    return states - states.mean(0), targets - targets.mean(0)


def test_the_dual_form_is_ridge_regression():
    """`Zᵀ (Z Zᵀ + λ)⁻¹ Y` are the weights of the normal equations."""
    states, targets = planted()
    _, coefficients, _ = _ridges(states @ states.T, targets)
    for strength, found in zip(STRENGTHS, coefficients, strict=True):
        torch.testing.assert_close(states.T @ found, ridge(states, targets, strength))


def test_errors_are_those_of_a_fit_without_the_row():
    """Leave-one-out in closed form equals fitting as often as there are rows, each time without one."""
    states, targets = planted()
    *_, errors = _ridges(states @ states.T, targets)
    for row in range(len(states)):
        others = torch.arange(len(states)) != row
        for strength, found in zip(STRENGTHS, errors, strict=True):
            weights = ridge(states[others], targets[others], strength)
            torch.testing.assert_close(found[row], targets[row] - states[row] @ weights)


def test_it_reads_classes_from_states():
    """Of states that lie in one heap a class new ones are read right, and rather surely."""
    probe, new = told(clean_rows(60), clean_rows(3, first=100)), clean_rows(30, seed=1)
    probabilities = probe.logits(new.states).softmax(-1)
    assert (probabilities.argmax(-1) == new.classes).float().mean() > 0.9
    assert probabilities.amax(-1).mean() > 0.6


def test_states_that_say_nothing_give_probabilities_that_say_nothing():
    """Nothing is claimed of classes drawn at random, however well 8 numbers could fit them."""
    rows = clean_rows(60)
    shuffled = rows._replace(classes=rows.classes[torch.randperm(60, generator=torch.Generator().manual_seed(0))])
    reading = fitted(shuffled, CLASSES)
    logits = (unit(rows.states) - reading.centre) @ reading.weight + reading.bias
    assert logits.softmax(-1).amax() < 0.5


def test_a_handful_of_rows_is_not_enough_to_be_sure():
    """Six rows that predict each other perfectly are believed less than sixty: `DOUBT` others are counted in."""
    few, many = (fitted(clean_rows(n, spread=0.01), CLASSES) for n in (6, 60))
    states = clean_rows(9).states
    sure = [((unit(states) - r.centre) @ r.weight + r.bias).softmax(-1).amax(-1).mean() for r in (few, many)]
    assert sure[0] < 0.6 < sure[1]
    assert not told(clean_rows(FEWEST_ROWS - 1), clean_rows(9, first=500)).knows
    assert told(clean_rows(FEWEST_ROWS), clean_rows(9, first=500)).knows


def test_a_belief_is_that_of_a_probe_without_one_row_of_the_class():
    """In closed form, of states new and known: as ridge regression on the other rows has it, a different row left out
    for each example; of a class without rows it is what the probe says.
    """
    rows = clean_rows(40)
    rows = rows._replace(classes=rows.classes.clamp(max=1))
    probe = told(rows, clean_rows(1, first=100))
    states, classes = torch.cat([rows.states[:6], clean_rows(6, seed=1).states]), torch.tensor([0, 1, 2] * 4)
    beliefs, reading = probe.beliefs(probe.logits(states), states, classes), probe.reading()
    known, targets = unit(rows.states) - reading.centre, F.one_hot(rows.classes, CLASSES).float()
    size, seen = known.square().sum(1).mean(), unit(states) - reading.centre
    shares, scale = targets.mean(0), reading.bias.sum()

    def of_ridge(kept, strength):
        weights = ridge(known[kept].double(), (targets - shares)[kept].double(), strength * size.double())
        return (scale * (seen @ weights.float() + shares)).softmax(1)

    whole = torch.ones(40, dtype=torch.bool)
    everything = probe.logits(states).softmax(1)
    (strength,) = (s for s in STRENGTHS if torch.allclose(of_ridge(whole, s), everything, atol=1e-4))
    for place, (number, belief) in enumerate(zip(classes.tolist(), beliefs, strict=True)):
        own = (rows.classes == number).nonzero()[:, 0]
        without = [of_ridge(whole.index_fill(0, own[[n]], False), strength)[place, number] for n in range(len(own))]
        expected = torch.stack(without) if without else everything[place, number][None]
        assert (expected - belief).abs().min() < 1e-4
    for known_row in (0, 1):
        same, number = states[[known_row] * 40], classes[[known_row] * 40]
        assert probe.beliefs(probe.logits(same), same, number).min() < everything[known_row, number[0]]


def test_it_does_not_know_the_present_meta_batch():
    """What is to judge a meta batch must not have been fitted to it, now or at an earlier visit; the next batch finds
    it in the memory again.
    """
    first, second = clean_rows(60), clean_rows(12, seed=3, first=60)
    again = clean_rows(12, seed=4, first=10)._replace(classes=torch.zeros(12, dtype=torch.long))
    without = first.where((first.numbers < 10) | (first.numbers >= 22)).and_then(second)
    probe, states = told(first, second, again), clean_rows(9, seed=5).states
    torch.testing.assert_close(probe.logits(states), told(without, again).logits(states))
    probe.note(clean_rows(1, first=99))
    assert sorted(probe.memory.numbers.tolist()) == list(range(72))
    assert (probe.memory.classes[torch.isin(probe.memory.numbers, again.numbers)] == 0).all()


def test_the_newest_rows_stay():
    """The memory has an end, and rows without a class are never in it."""
    batches = [clean_rows(100, first=100 * n) for n in range(8)]
    batches[7].classes[:50] = -100
    probe = told(*batches, clean_rows(1, first=1000))
    assert len(probe.memory.numbers) == MOST_ROWS
    assert probe.memory.numbers.min() == 800 - MOST_ROWS - 50 and probe.memory.numbers.max() == 799


def test_a_row_that_comes_twice_is_one():
    """A meta batch may run on across the end of a pass; a copy would be predicted from itself."""
    probe = CleanProbe(2)
    states = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    probe.note(CleanRows(torch.tensor([1, 2, 1]), states, torch.tensor([0, 1, 0])))
    assert sorted(probe.present.numbers.tolist()) == [1, 2]


def test_an_overflow_is_not_remembered():
    """One state that is not finite would make all weights NaN, and end the run."""
    rows = clean_rows(40)
    rows.states[3, 0] = float("inf")
    probe = told(rows, clean_rows(2, first=50))
    assert len(probe.memory.numbers) == 39
    assert probe.logits(clean_rows(5).states).isfinite().all()


def test_it_is_saved_with_its_rows():
    """A resumed run reads the same to the last bit; what was read before is forgotten."""
    probe, other, states = told(clean_rows(40), clean_rows(2, first=50)), told(clean_rows(9)), clean_rows(5).states
    other.load_state_dict(copy.deepcopy(probe.state_dict()))
    assert torch.equal(other.logits(states), probe.logits(states))
    other.load_state_dict(CleanProbe(CLASSES).state_dict())
    assert not other.knows
    with pytest.raises(RuntimeError, match="ask `knows` first"):
        other.logits(states)


# ---- in a run ----


def run(folder, model=None, method=None, rows=None, **options):
    rows = toy_rows(64) if rows is None else rows
    trainer = AMALTrainer(
        model=tiny_bert() if model is None else model,
        args=toy_arguments(folder, **options),
        losses=[CrossEntropy()],
        method=amal() if method is None else method,
        train_dataset=rows,
        meta_dataset=rows.select(range(48)),
    )
    trainer.train()
    return trainer


def test_all_clean_rows_are_known_from_the_first_meta_step_on(tmp_path):
    """A probe of one meta batch would say little for most of a short run; each of 48 rows is there once."""
    probe = run(tmp_path, max_steps=1).method.policy.probe
    assert len(probe.memory.numbers) == 40 and len(probe.present.numbers) == 8
    assert sorted([*probe.memory.numbers.tolist(), *probe.present.numbers.tolist()]) == list(range(48))


def test_what_it_reads_are_the_states_of_the_student(tmp_path):
    """Averaged over tokens, without dropout."""
    trainer = run(tmp_path, max_steps=1, learning_rate=0.0)
    probe, rows = trainer.method.policy.probe, toy_rows(64)[:48]
    with torch.no_grad():
        trainer.model.eval()
        seen = trainer.model(torch.tensor(rows["input_ids"]), output_hidden_states=True).hidden_states[-1].mean(1)
    torch.testing.assert_close(probe.memory.states, seen[probe.memory.numbers])
    assert probe.memory.classes.tolist() == [rows["labels"][n] for n in probe.memory.numbers.tolist()]


class WithoutStates(nn.Module):
    """A classifier that has none to show."""

    def __init__(self):
        super().__init__()
        self.bert = tiny_bert()
        self.config = self.bert.config

    def forward(self, input_ids, attention_mask=None, labels=None):
        outputs = self.bert(input_ids, attention_mask=attention_mask, labels=labels)
        return SequenceClassifierOutput(loss=outputs.loss, logits=outputs.logits)


def token_rows():
    return toy_rows(64).map(lambda row: {"labels": [token % 3 for token in row["input_ids"]]})


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        (WithoutStates, toy_rows),
        (lambda: tiny_bert(head=BertForTokenClassification), lambda count: token_rows()),
        (lambda: tiny_bert(num_labels=1), lambda count: toy_rows(count).map(lambda r: {"labels": float(r["labels"])})),
    ],
)
def test_students_that_it_cannot_read_are_trained_without(tmp_path, model, rows):
    """No hidden states, a class for each token, a number: the network does without, and asks for nothing."""
    trainer = run(tmp_path, model=model(), rows=rows(64))
    assert not trainer.method.policy.probe.knows
    assert not trainer._inputs.hidden_states


def prompted():
    return get_peft_model(tiny_bert(), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4))


def merging():
    sizes = {"d_model": 16, "d_head": 8, "n_head": 2, "d_inner": 32, "block_sizes": [1, 1]}
    return FunnelForSequenceClassification(FunnelConfig(vocab_size=VOCABULARY, num_labels=3, **sizes))


@pytest.mark.parametrize("model", [prompted, merging])
def test_states_of_more_or_fewer_tokens_than_the_text_has_are_read(tmp_path, model):
    """Prompt tuning puts tokens before a text, Funnel merges them: the mask is not as long as the states."""
    assert run(tmp_path, model=model()).method.policy.probe.knows


def test_a_student_that_reads_every_choice_on_its_own_is_left_alone(tmp_path):
    """Multiple choice has a state for each choice and a label for all of them, so that no row belongs to a class."""
    model = BertForMultipleChoice(tiny_bert(num_labels=2).config)
    rows = toy_rows(64, labels=2).map(lambda row: {k: [row[k]] * 2 for k in ("input_ids", "attention_mask")})
    assert not run(tmp_path, model=model, rows=rows).method.policy.probe.knows


def test_without_it_no_states_are_asked_for(tmp_path):
    """`LossNetwork(probe=False)` costs what it did."""
    trainer = run(tmp_path, method=amal(LossNetwork(probe=False)))
    assert not trainer._inputs.hidden_states
    assert "probe" not in trainer.method.policy.describe()


def test_a_delayed_network_is_told_too(tmp_path):
    """What is learned before it is used reads clean rows all the same."""
    assert run(tmp_path, method=amal(Delayed(LossNetwork(), 0.5))).method.policy.policy.probe.knows


def test_a_network_reads_all_that_the_probe_knows_and_notes_what_it_would_say_of_a_clean_row():
    """Two numbers for one label: the network is to judge it as well as can be, the share of wrong labels is found by
    comparison with clean rows.
    """
    policy, rows = LossNetwork(), clean_rows(9, seed=1)
    policy.reset(Sizes(1, (), None, classes=CLASSES), torch.ones(1))
    for batch in (clean_rows(40), clean_rows(1, first=100)):
        policy.note_clean(batch)
    signals = Signals(torch.ones(9, 1), torch.zeros(9, CLASSES), (), {"labels": rows.classes}, Task(), (rows.states,))
    fit, _, belief, classes = policy.observe(signals)[:, -4:].unbind(1)
    probabilities = policy.probe.logits(rows.states).softmax(1)
    torch.testing.assert_close(fit, probabilities.gather(1, rows.classes[:, None])[:, 0])
    torch.testing.assert_close(
        belief, policy.probe.beliefs(policy.probe.logits(rows.states), rows.states, rows.classes)
    )
    assert classes.tolist() == rows.classes.tolist() and not torch.allclose(belief, fit, atol=1e-3)


def test_a_network_comes_to_trust_what_clean_rows_say():
    """Where only the probe tells helpful labels from others, weights follow it."""
    policy = LossNetwork()
    policy.reset(Sizes(1, (), None, classes=2), torch.ones(1))
    features = torch.ones(8, 7)
    features[:, 3], features[:, -1] = torch.tensor([0.9, 0.1]).repeat(4), -1
    rows = Observation(torch.arange(8), features, 0.5)
    for _ in range(40):
        policy.update(rows, torch.tensor([1.0, -1.0]).repeat(4)[:, None])
    believed, doubted = policy.weights(rows)[:2, 0]
    assert believed > 5 * doubted
