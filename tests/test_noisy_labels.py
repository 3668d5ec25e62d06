"""Noisy labels and a teacher that has not seen them, read together by Bayes' rule."""

import math
import re

import pytest
import torch

from amal_hf import calibrated_temperature, label_posterior, noisy_labels
from amal_hf.noisy_labels import PRIOR_ROWS, label_share


EVEN = torch.full((4, 4), 0.1, dtype=torch.float64) + 0.6 * torch.eye(4, dtype=torch.float64)
SWALLOWED = torch.eye(4, dtype=torch.float64) * 0.6 + torch.tensor([0.4, 0, 0, 0], dtype=torch.float64)
RIGHT = torch.eye(4, dtype=torch.float64)
READERS = pytest.mark.parametrize("reader", [label_posterior, calibrated_temperature])


def planted(confusions, rows=20_000, softness=2.0, spread=1.5):
    """Texts of which a teacher knows the classes' probabilities, but says them too surely; and drawn labels."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(rows, len(confusions), generator=generator, dtype=torch.float64)
    truth = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    labels = torch.multinomial(confusions[truth], 1, generator=generator)[:, 0]
    return softness * logits, labels, truth


@pytest.mark.parametrize("confusions", [EVEN, SWALLOWED, RIGHT], ids=["even", "swallowed", "right"])
def test_what_was_planted_is_found(confusions):
    """Confusions, temperature and share of wrong labels, without a single true class; and the classes are told better
    than by teacher or label.
    """
    logits, labels, truth = planted(confusions)
    found = label_posterior(logits, labels)
    assert found.temperature == 2.0
    assert float((found.confusions - confusions).abs().max()) < 0.03
    assert abs(found.wrong - float((labels != truth).double().mean())) < 0.02
    right = float((found.classes.argmax(1) == truth).double().mean())
    others = [float((guess == truth).double().mean()) for guess in (logits.argmax(1), labels)]
    assert right > max(others) - 1e-3 and right > min(others) + 0.05


def test_probabilities_are_what_they_claim():
    """Of rows whose class is given a probability of about p, about that share is of the class."""
    logits, labels, truth = planted(EVEN)
    top, guess = label_posterior(logits, labels).classes.max(1)
    for low in (0.4, 0.6, 0.8):
        bin_ = (top >= low) & (top < low + 0.2)
        assert abs(float((guess == truth)[bin_].double().mean() - top[bin_].mean())) < 0.03


def test_a_teacher_s_graph_is_left_alone():
    """Logits that were made without `no_grad` leave none behind in what is found, which a student is trained with."""
    logits, labels, _ = planted(EVEN, rows=100)
    found = label_posterior(logits.requires_grad_() * 1, labels)
    assert not found.confusions.requires_grad and not found.classes.requires_grad


def test_the_temperature_is_what_labels_say_that_were_not_counted():
    """With 60 classes a table of confusions learns 1,500 labels by heart, and best by the sharpest reading: 0.35."""
    confusions = torch.full((60, 60), 0.4 / 60, dtype=torch.float64) + 0.6 * torch.eye(60, dtype=torch.float64)
    logits, labels, _ = planted(confusions, rows=1500, softness=1.0, spread=4.0)
    assert label_posterior(logits, labels).temperature == 1.0


def by_hand(beliefs, labels, iterations, is_calibrated):
    """Expectation maximisation with loops over rows and classes."""
    classes, rows = len(beliefs[0]), range(len(labels))
    usual = [labels.count(c) / len(labels) for c in range(classes)]
    posterior = beliefs
    for _ in range(iterations):
        table = []
        wrong = 1 - sum(posterior[row][labels[row]] for row in rows) / len(labels) if is_calibrated else 1.0
        for c in range(classes):
            prior = [wrong * share + (1 - wrong) * (c == k) for k, share in enumerate(usual)]
            counts = [PRIOR_ROWS * share for share in prior]
            for row in rows:
                counts[labels[row]] += posterior[row][c]
            table.append([count / sum(counts) for count in counts])
        joint = [[beliefs[row][c] * table[c][labels[row]] for c in range(classes)] for row in rows]
        posterior = [[part / sum(line) for part in line] for line in joint]
    return table, posterior


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_steps_are_those_of_the_definition(monkeypatch, temperature):
    """Three rounds by plain loops give the same table and the same classes, in float64; of a teacher whose temperature
    is known, labels are taken for right where few rows speak.
    """
    monkeypatch.setattr(noisy_labels, "ITERATIONS", 3)
    monkeypatch.setattr(noisy_labels, "TEMPERATURES", (1.0,))
    logits, labels, _ = planted(SWALLOWED, rows=30)
    table, classes = by_hand(logits.softmax(1).tolist(), labels.tolist(), 3, temperature is not None)
    found = label_posterior(logits, labels, temperature)
    torch.testing.assert_close(found.confusions, torch.tensor(table, dtype=torch.float64), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.classes, torch.tensor(classes, dtype=torch.float64), rtol=1e-10, atol=0)


@pytest.mark.parametrize("confusions", [EVEN, SWALLOWED], ids=["even", "swallowed"])
def test_the_mixture_gives_the_label_its_probability(confusions):
    """`share · label + (1 − share) · teacher` has the posterior's probability of the label; where labels go wrong
    evenly it is the posterior.
    """
    logits, labels, _ = planted(confusions, rows=50)
    beliefs = logits.softmax(1)
    joint = beliefs * confusions[:, labels].T
    posterior = joint / joint.sum(1, keepdim=True)
    share = label_share(beliefs, confusions, labels)[:, None]
    mixture = share * torch.eye(4, dtype=torch.float64)[labels] + (1 - share) * beliefs
    torch.testing.assert_close(mixture.gather(1, labels[:, None]), posterior.gather(1, labels[:, None]))
    if confusions is EVEN:
        torch.testing.assert_close(mixture, posterior)


def test_a_teacher_that_is_certain_divides_nothing_by_zero():
    """In fp32 and with probabilities of exactly 0 and 1, all shares are numbers between 0 and 1."""
    beliefs = torch.eye(4)[torch.tensor([0, 0, 1])]
    share = label_share(beliefs, EVEN.float(), torch.tensor([0, 1, 1]))
    assert bool(((share >= 0) & (share <= 1)).all()) and share[1] == 0


def test_rows_without_a_label():
    """They keep what the teacher says, and change nothing for the others."""
    logits, labels, _ = planted(EVEN, rows=2000)
    alone = label_posterior(logits, labels)
    both = label_posterior(torch.cat([logits, -logits[:5]]), torch.cat([labels, torch.full((5,), -100)]))
    torch.testing.assert_close(both.classes[:2000], alone.classes)
    torch.testing.assert_close(both.classes[2000:], (-logits[:5] / both.temperature).softmax(1))
    assert both.wrong == alone.wrong


def test_names_of_classes_mean_nothing():
    """Classes in another order give the same, in that order."""
    logits, labels, _ = planted(SWALLOWED, rows=2000)
    order = torch.tensor([2, 0, 3, 1])
    found, renamed = label_posterior(logits, labels), label_posterior(logits[:, order], order.argsort()[labels])
    torch.testing.assert_close(renamed.classes, found.classes[:, order])
    torch.testing.assert_close(renamed.confusions, found.confusions[order][:, order])


def test_one_row_is_enough_to_say_something():
    """There is no half to compare with: the teacher is read as it is."""
    found = label_posterior([[1.0, 0.0]], [0])
    assert found.temperature == 1.0 and math.isclose(float(found.classes.sum()), 1)


def test_a_temperature_that_is_known_is_taken():
    """Labels choose none then."""
    logits, labels, _ = planted(EVEN, rows=2000)
    found = label_posterior(logits, labels, temperature=3.3)
    assert found.temperature == 3.3
    torch.testing.assert_close(found.classes, label_posterior(logits / 3.3, labels, temperature=1.0).classes)
    assert label_posterior(logits, labels).temperature == 2.0


def test_rows_it_was_not_trained_on_tell_a_teachers_errors_from_those_of_labels():
    """A teacher that now and then says of a text what it should of another: by labels alone, all of which are right,
    they are wrong nearly as often; by a teacher that other rows have calibrated, about half as often.
    """
    logits, labels, _ = planted(RIGHT, rows=4000, softness=1.0)
    mistaken = torch.arange(4000) % 10 == 3
    logits[mistaken] = logits[mistaken].roll(1, 0)
    calibrated = calibrated_temperature(logits[:400], labels[:400])
    by_labels, by_rows = (label_posterior(logits[400:], labels[400:], at) for at in (None, calibrated))
    assert by_labels.wrong > 0.08 > 0.045 > by_rows.wrong


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_means_nothing_is_refused(temperature):
    """Before anything is estimated."""
    with pytest.raises(ValueError, match=f"temperature must be positive and finite, got {temperature}"):
        label_posterior([[1.0, 0.0]], [0], temperature)


@READERS
@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        ([1.0, 2.0], [0, 1], "logits must be (N, C)"),
        ([[1.0, 2.0]], [0, 1], "labels N whole numbers"),
        ([[1.0, 2.0]], [0.0], "labels N whole numbers"),
        ([[1.0, math.nan], [1.0, 2.0]], [0, 1], "those of 1 rows are not, the first is 0"),
        ([[1.0, 2.0]], [2], "class numbers below 2"),
        ([[1.0, 2.0]], [-100], "some must be there"),
    ],
)
def test_what_cannot_be_read(logits, labels, words, reader):
    """Refused in words, before anything is estimated."""
    with pytest.raises(ValueError, match=f"{reader.__name__}: .*{re.escape(words)}"):
        reader(logits, labels)


@READERS
@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        ((torch.zeros(2, 2), torch.zeros(2, 3, 4)), [0, 1], "logits must be an array"),
        (torch.zeros(2, 2), None, "labels must be an array, a tensor or a list of numbers, got NoneType"),
    ],
)
def test_what_is_no_array(logits, labels, words, reader):
    """A model's several outputs, and predictions of rows without labels."""
    with pytest.raises(TypeError, match=f"{reader.__name__}: {words}"):
        reader(logits, labels)
