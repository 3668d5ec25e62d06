"""The temperature at which a model's probabilities are right."""

import math

import pytest
import torch

from amal_hf import calibrated_temperature
from amal_hf.calibration import WIDEST


def planted(softness, rows=20_000):
    """Logits that are so much too large, and labels drawn from what they should be."""
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return softness * logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("softness", [0.01, 0.5, 1.0, 3.0, 100.0])
def test_what_was_planted_is_found(softness):
    """A model that is too sure, or not sure enough, by a factor of up to 100."""
    assert calibrated_temperature(*planted(softness)) == pytest.approx(softness, rel=0.03)


def test_no_other_temperature_makes_labels_more_probable():
    """Against a fine grid in float64, the row labelled by chance counted in."""
    logits, labels = planted(2.0, rows=50)

    def log_likelihood(temperature):
        log_p = (logits / temperature).log_softmax(1)
        return float(log_p.gather(1, labels[:, None]).sum() + log_p.mean(1).mean())

    found = calibrated_temperature(logits, labels)
    assert log_likelihood(found) > max(log_likelihood(found * step) for step in (0.5, 0.99, 0.999, 1.001, 1.01, 2))


def test_a_model_that_never_errs_is_not_for_ever_sure():
    """The fewer rows say so, the less sure; and whatever the size of its logits."""
    few, many = (calibrated_temperature(3 * torch.eye(3).repeat(n, 1), list(range(3)) * n) for n in (2, 200))
    assert 0 < many < few < math.inf
    large = calibrated_temperature(3e4 * torch.eye(3).repeat(2, 1), list(range(3)) * 2)
    assert large == pytest.approx(1e4 * few, rel=1e-3)


def test_rows_without_a_label_say_nothing():
    """Whatever their logits are."""
    logits, labels = planted(2.0, rows=100)
    more = calibrated_temperature(torch.cat([logits, 1e3 * logits[:5]]), torch.cat([labels, torch.full((5,), -100)]))
    assert more == pytest.approx(calibrated_temperature(logits, labels), rel=1e-9)


def test_arrays_and_lists_are_the_same():
    """As `Trainer.predict` gives them, in fp32."""
    logits, labels = planted(2.0, rows=100)
    found = calibrated_temperature(logits.float().numpy(), labels.numpy())
    assert found == pytest.approx(calibrated_temperature(logits.tolist(), labels.tolist()), rel=1e-4)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.zeros(3, 2), [0, 1, 0]),
        (-torch.eye(3), [0, 1, 2]),
        (torch.eye(2).repeat(2, 1), [0, 1, 1, 0]),
    ],
    ids=["all alike", "another order", "learned nothing"],
)
def test_logits_that_say_nothing_of_labels_are_refused(logits, labels):
    """No temperature makes them probable."""
    with pytest.raises(ValueError, match="calibrated_temperature: on average logits must be higher.*another order"):
        calibrated_temperature(logits, labels)


def test_it_is_searched_widely_enough():
    """A teacher that is hardly right at all is found within the bounds of the search."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1000, 4, generator=generator, dtype=torch.float64)
    labels = torch.where(torch.rand(1000, generator=generator) < 0.1, logits.argmax(1), torch.arange(1000) % 4)
    spread = float((logits - logits.mean(1, keepdim=True)).abs().max())
    assert 3 < calibrated_temperature(logits, labels) < spread * WIDEST / 10
