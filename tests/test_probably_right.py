"""Which labels are probably right."""

import pytest
import torch

from amal_hf import LabelWeights


def found_out(weights, wrong):
    """By how much the share may be off is no matter here."""
    return LabelWeights(weights, wrong, 0.02)


HEAPS = torch.cat([torch.linspace(0.18, 0.25, 100), torch.linspace(0.7, 1.3, 400)])
"""Two heaps: a fifth of the labels weigh little."""


@pytest.mark.parametrize("wrong", [0.17, 0.2, 0.24])
@pytest.mark.parametrize("scale", [0.01, 1, 100])
def test_the_gap_is_found_where_it_is(wrong, scale):
    """Whatever weights are measured in, and though it is known only about how many are wrong."""
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    found = found_out(scale * HEAPS[order], wrong).probably_right()
    assert torch.equal(found, order >= 100)


@pytest.mark.parametrize(
    ("wrong", "fewest", "most"), [(0.001, 1, 1), (0.1, 40, 60), (0.16, 64, 96), (0.5, 200, 300), (1.0, 400, 499)]
)
def test_as_many_are_left_out_as_are_wrong(wrong, fewest, most):
    """From 0.8 to 1.2 times as many, the lowest, though there is a wider gap elsewhere."""
    right = found_out(HEAPS, wrong).probably_right()
    left_out = int((~right).sum())
    assert fewest <= left_out <= most and not right[:left_out].any()


def test_the_scale_does_not_matter_where_there_is_no_gap():
    """The same labels are left out, whatever weights are measured in."""
    weights = torch.rand(500, generator=torch.Generator().manual_seed(0)) ** 6
    first, *others = (found_out(scale * weights, 0.4).probably_right() for scale in (0.001, 1, 1000))
    assert all(torch.equal(first, other) for other in others) and 160 <= (~first).sum() <= 240


@pytest.mark.parametrize("wrong", [0.0, float("nan")])
def test_all_are_right_where_none_is_wrong_or_it_cannot_be_told(wrong):
    """However little some weigh."""
    assert found_out(HEAPS, wrong).probably_right().all()


def test_what_is_known_goes_before_what_was_found():
    """Zero is known, too."""
    found = found_out(HEAPS, 0.5)
    assert torch.equal(found.probably_right(wrong=0.2), found_out(HEAPS, 0.2).probably_right())
    assert found.probably_right(wrong=0).all()


def test_rows_without_a_label_are_neither_right_nor_counted():
    """The others are judged as if there were none."""
    found = found_out(torch.cat([torch.zeros(300), HEAPS]), 0.2).probably_right()
    assert torch.equal(found, torch.arange(800) >= 400)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("wrong", [0.01, 0.5, 1.0])
def test_a_handful_of_labels(count, wrong):
    """The greatest weight is right in any case."""
    assert found_out(torch.arange(1.0, count + 1), wrong).probably_right()[-1]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(wrong):
    """In words."""
    with pytest.raises(ValueError, match="from 0 to 1"):
        found_out(HEAPS, 0.2).probably_right(wrong=wrong)
