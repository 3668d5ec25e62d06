"""How many labels are wrong is told by clean rows, and weights are used as far as there are such labels."""

import copy

import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows

from amal_hf import (
    AMALTrainer,
    CorrectedCrossEntropy,
    CrossEntropy,
    Distillation,
    GatedConvex,
    GeneralizedCrossEntropy,
    LossNetwork,
    MeanOne,
    amal,
)
from amal_hf.clean_probe import CleanProbe, CleanRows
from amal_hf.mixture import Mixture
from amal_hf.policies.delayed import Delayed
from amal_hf.policies.policy import Observation, Sizes
from amal_hf.task import Task
from amal_hf.wrong_labels import ENOUGH, WrongLabels, class_shift


CLASSES, WIDTH = 4, 8
LABELS = Sizes(1, (), None, classes=CLASSES, labels_alone=True)


def heaps(count, spread, seed):
    """States around one point a class, and their classes."""
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (count,), generator=generator)
    return centres[classes] + spread * torch.randn(count, WIDTH, generator=generator), classes


def a_probe(spread=0.8):
    probe = CleanProbe(CLASSES)
    states, classes = heaps(300, spread, seed=0)
    probe.note(CleanRows(torch.arange(300), states, classes))
    probe.note(CleanRows(torch.tensor([1000]), states[:1], classes[:1]))
    return probe


def believed(probe, states, labels):
    return probe.beliefs(probe.logits(states), states, labels)


def noted(share, probe, rows=3000):
    """What is found of labels of which a share is wrong, drawn evenly."""
    states, classes = heaps(rows, 0.8, seed=1)
    wrong = torch.arange(rows) < round(share * rows)
    labels = torch.where(wrong, (classes + torch.arange(rows) % (CLASSES - 1) + 1) % CLASSES, classes)
    found = WrongLabels()
    found.note(probe, believed(probe, states, labels), labels.float(), labels.bincount())
    return found


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6])
def test_the_share_of_wrong_labels_is_found(share):
    """To about what 300 clean rows of overlapping classes can tell, at any share that was planted."""
    assert float(noted(share, a_probe()).share) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4])
def test_few_clean_rows_a_class_are_enough(share):
    """Six of each of 40 classes: one row more or less of its class is much for what the probe makes of a row, and a
    clean row is judged without itself. Judged by all six, 0.00 and 0.22 were found of 0.2 and 0.4.
    """
    classes, width, draws = 40, 64, []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        centres, drawn = torch.randn(classes, width, generator=generator), torch.arange(1240) % classes
        states = centres[drawn] + 1.5 * torch.randn(1240, width, generator=generator)
        probe, found = CleanProbe(classes), WrongLabels()
        probe.note(CleanRows(torch.arange(240), states[:240], drawn[:240]))
        probe.note(CleanRows(torch.tensor([5000]), states[:1], drawn[:1]))
        flipped = (drawn + 1 + torch.arange(1240) % (classes - 1)) % classes
        labels = torch.where(torch.rand(1240, generator=generator) < share, flipped, drawn)[240:]
        found.note(probe, believed(probe, states[240:], labels), labels.float(), labels.bincount(minlength=classes))
        draws.append(found.share)
    assert float(torch.stack(draws).mean()) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_error_is_what_other_clean_rows_would_have_found(share):
    """Of 60 draws of 100 clean rows, for the same labels: as far from one another as each says that it may be off."""
    states, classes = heaps(2000, 0.8, seed=1)
    wrong = torch.arange(2000) < round(share * 2000)
    labels = torch.where(wrong, (classes + torch.arange(2000) % (CLASSES - 1) + 1) % CLASSES, classes)
    draws = []
    for seed in range(60):
        probe, found = CleanProbe(CLASSES), WrongLabels()
        probe.note(CleanRows(torch.arange(100), *heaps(100, 0.8, seed=100 + seed)))
        probe.note(CleanRows(torch.tensor([1000]), states[:1], classes[:1]))
        found.note(probe, believed(probe, states, labels), labels.float(), labels.bincount())
        draws.append(torch.stack([found.share, found.error]))
    shares, errors = torch.stack(draws).unbind(1)
    assert 0.75 < float(shares.std() / errors.mean()) < 1.33


def test_what_was_true_of_early_examples_fades():
    """A student's states change, and what the probe makes of labels with them."""
    probe, found = a_probe(), WrongLabels()
    classes, counts = torch.zeros(8), torch.ones(CLASSES)
    for belief in (0.9, 0.1):
        for _ in range(40):
            found.note(probe, torch.full((8,), belief), classes, counts)
    assert float(found.beliefs[0]) == pytest.approx(0.1, abs=0.03)


def test_common_classes_may_be_easy_or_hard():
    """A training set in which one class is far more common than in the clean set: what is expected goes by class."""
    probe = a_probe()
    states, classes = heaps(4000, 0.8, seed=2)
    for common in range(CLASSES):
        kept = (classes == common) | (torch.arange(4000) % 20 == 0)
        labels = classes[kept]
        found = WrongLabels()
        found.note(probe, believed(probe, states[kept], labels), labels.float(), labels.bincount())
        assert found.share < 0.06


def test_classes_may_be_others_than_those_of_clean_rows():
    """One row in 21 of a class of which every other clean row is: 0.45 of all are too many. Drawn from the same
    classes, many or few, clean rows are no reason to reweigh anything.
    """
    assert float(class_shift(torch.tensor([2000.0, 100.0]), torch.tensor([150, 150]))) == pytest.approx(0.43, abs=0.01)
    shares = torch.rand(50, generator=torch.Generator().manual_seed(0))
    drawn = torch.multinomial(shares, 300, replacement=True, generator=torch.Generator().manual_seed(1))
    assert class_shift(1e4 * shares, drawn.bincount(minlength=50)) < 0.03
    assert (shares / shares.sum() - drawn.bincount(minlength=50) / 300).abs().sum() / 2 > 0.1


def test_rows_without_a_label_do_not_count():
    """Half of the rows have none, and their fit is 1 by convention."""
    probe = a_probe()
    found, beliefs, classes = WrongLabels(), torch.full((40,), 0.5), torch.zeros(40)
    beliefs[20:], classes[20:] = 1.0, -1.0
    found.note(probe, beliefs, classes, torch.ones(CLASSES))
    assert float(found.beliefs[0]) == pytest.approx(0.5)
    found.note(probe, beliefs[20:], classes[20:], torch.ones(CLASSES))
    assert found.updates == 1 and float(found.beliefs[0]) == pytest.approx(0.5)


def test_a_probe_that_says_nothing_says_nothing_of_labels():
    """With too few rows, or states that do not tell classes apart, weights are what was learned."""
    silent, found = CleanProbe(CLASSES), WrongLabels()
    found.note(silent, torch.full((8,), 0.9), torch.zeros(8), torch.ones(CLASSES))
    assert found.updates == 0 and found.strength == 1
    blind = noted(0.0, a_probe(spread=50.0))
    assert blind.share.isnan() and blind.strength == 1


def test_it_is_saved():
    """A resumed run goes on with the same mean."""
    found, other = noted(0.1, a_probe()), WrongLabels()
    other.load_state_dict(copy.deepcopy(found.state_dict()))
    assert torch.equal(other.strength, found.strength) and other.strength < 1
    assert other.updates == 1 and torch.equal(other.beliefs, found.beliefs)


# ---- what a network makes of it ----


def found(share):
    """Beliefs that tell of so many wrong labels."""
    return torch.tensor([0.9 - 0.8 * share, 0.9, 0.1])


def features_of(policy, sizes, rows=8):
    """Rows that differ in what student and probe make of their label."""
    features = torch.rand(rows, policy.width(sizes), generator=torch.Generator().manual_seed(0))
    features[:, -1] = torch.arange(rows) % CLASSES
    return Observation(torch.arange(rows), features, 0.5)


def learned(normalisation=None, share=0.0, sizes=LABELS):
    """A network that has learned something, of labels of which a share is wrong."""
    policy = LossNetwork(normalisation=normalisation)
    policy.reset(sizes, torch.ones(sizes.losses) / sizes.losses)
    rows = features_of(policy, sizes)
    for _ in range(20):
        policy.update(rows, torch.tensor([1.0, -1.0]).repeat(4)[:, None].expand(-1, sizes.losses))
    policy.wrong_labels.beliefs = found(share)
    return policy, rows


@pytest.mark.parametrize("normalisation", [MeanOne, GatedConvex])
def test_weights_are_used_as_far_as_labels_are_wrong(normalisation):
    """With none wrong only the balance of classes is left; from `ENOUGH` on they are what was learned, to the bit;
    in between, in between.
    """
    policy, rows = learned(normalisation())
    alike, balance = policy.weights(rows), policy.counts_for(rows)
    torch.testing.assert_close(alike, balance)
    policy.wrong_labels.beliefs = found(ENOUGH + 0.01)
    full = policy.weights(rows)
    assert torch.equal(full, policy.normalisation(policy.scores(rows), None, balance))
    assert full.std() > 2 * alike.std()
    policy.wrong_labels.beliefs = found(ENOUGH / 4)
    torch.testing.assert_close(policy.weights(rows), 0.75 * alike + 0.25 * full)


def test_a_loss_that_an_example_lacks_gets_nothing():
    """Whatever is right or wrong about the others."""
    policy, rows = learned()
    present = torch.arange(8)[:, None] < 6
    weights = policy.weights(rows._replace(present=present))
    assert (weights[6:] == 0).all() and (weights[:6] > 0).all()


def labels(outputs, batch):
    """A loss of one's own, under the name of another."""
    return outputs.logits.square().mean(1)


LOSSES = {
    "labels": ([CrossEntropy()], True),
    "under another name": ([CrossEntropy("ce")], True),
    "robust": ([GeneralizedCrossEntropy()], True),
    "corrected": ([CorrectedCrossEntropy(torch.eye(CLASSES), trusted="checked")], True),
    "another column": ([CrossEntropy("labels", column="weak")], False),
    "a function": ([labels], False),
    "two": ([CrossEntropy(), CrossEntropy("weak", column="weak")], False),
}


@pytest.mark.parametrize(("losses", "alone"), LOSSES.values(), ids=LOSSES.keys())
def test_it_is_known_whether_labels_are_alone(losses, alone):
    """By what the losses read, whatever they are called."""
    policy = LossNetwork()
    Mixture(losses, policy, Task()).reset(None, torch.ones(len(losses)), CLASSES)
    assert policy.labels_alone == alone


def test_other_losses_are_weighed_as_learned():
    """Beside a teacher, or another loss, weights are a mixture; and where the only loss is of another column, it is
    not the labels that may be wrong.
    """
    policy, rows = learned(sizes=Sizes(2, (1,), None, classes=CLASSES))
    mixture = policy.normalisation(policy.scores(rows), None, policy.counts_for(rows))
    assert torch.equal(policy.weights(rows), mixture)


# ---- in a run ----


def run(folder, losses=None, method=None, **options):
    rows = toy_rows(64)
    trainer = AMALTrainer(
        model=tiny_bert(),
        args=toy_arguments(folder, logging_strategy="steps", logging_steps=2, **options),
        losses=[CrossEntropy()] if losses is None else losses,
        method=amal() if method is None else method,
        train_dataset=rows,
        meta_dataset=rows.select(range(48)),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("method", [amal, lambda: amal(Delayed(LossNetwork(), 0.5))])
def test_the_share_is_logged(tmp_path, monkeypatch, method):
    """Where clean rows can tell; a user wants to know it."""
    monkeypatch.setattr("amal_hf.wrong_labels.LEAST_DIFFERENCE", -1.0)
    logs = [log for log in run(tmp_path, method=method()).state.log_history if "loss" in log]
    assert all(0 <= log["wrong_labels"] <= 1 for log in logs[1:])


def test_nothing_is_logged_where_it_cannot_be_told(tmp_path):
    """Without the probe there is no estimate."""
    logs = run(tmp_path, method=amal(LossNetwork(probe=False))).state.log_history
    assert not any("wrong_labels" in log for log in logs)


def test_it_is_estimated_beside_a_teacher_as_well(tmp_path, monkeypatch):
    """Only the strength of weights is a matter of labels alone, and it is not changed here."""
    monkeypatch.setattr("amal_hf.wrong_labels.LEAST_DIFFERENCE", -1.0)
    teacher = tiny_bert(seed=1)
    trainer = run(tmp_path, losses=[CrossEntropy(), Distillation(teacher)])
    assert 0 <= trainer.method.policy.wrong_labels.share <= 1 and not trainer.method.policy.labels_alone
