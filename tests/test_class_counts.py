"""Classes are counted while training, so that it does not matter how rows come."""

import pytest
import torch

from amal_hf.class_counts import MOST_CLASSES, ClassCounts, class_of
from amal_hf.shapes import IGNORED


def test_commonness_is_the_log_of_a_count_over_the_mean():
    """Each class begins with one; examples without a class are not counted, and neither common nor rare."""
    counts = ClassCounts(3)
    assert not counts.commonness(torch.tensor([0.0, 2.0, -1.0])).any()
    counts.note(torch.tensor([0.0, 0.0, 0.0, -1.0]))
    counts.note(torch.tensor([0.0, 1.0, -1.0]))
    expected = torch.tensor([5 / 8 * 3, 2 / 8 * 3, 1 / 8 * 3, 1.0]).log()
    torch.testing.assert_close(counts.commonness(torch.tensor([0.0, 1.0, 2.0, -1.0])), expected)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_balance_is_a_power_of_the_count_with_a_mean_of_one(power):
    """Over all that was seen, as the loop has it; with a power of 1 all classes weigh the same in total, with 0 all
    examples do. What has no class counts once.
    """
    counts = ClassCounts(3)
    counts.note(torch.tensor([0.0] * 19 + [1.0] * 4 + [-1.0] * 6))
    rows = torch.tensor([0.0] * 20 + [1.0] * 5 + [2.0])
    raw = [{0.0: 20, 1.0: 5, 2.0: 1}[row] ** -power for row in rows.tolist()]
    expected = torch.tensor([one / (sum(raw) / len(raw)) for one in raw])
    torch.testing.assert_close(counts.balance(rows, power), expected)
    assert counts.balance(torch.tensor([[-1.0]]), power).item() == 1


def test_parts_of_a_batch_are_counted_as_the_whole():
    """Gradient accumulation, several steps judged at once, or a batch of none change nothing."""
    classes = torch.arange(20.0) % 7 - 1
    whole, parts = ClassCounts(6), ClassCounts(6)
    whole.note(classes)
    for part in (classes[:3], classes[3:3], classes[3:]):
        parts.note(part)
    assert whole.seen.equal(parts.seen)


@pytest.mark.parametrize("outputs", [0, 1, MOST_CLASSES + 1], ids=["none", "a number", "a vocabulary"])
def test_what_is_no_set_of_classes_is_not_counted(outputs):
    """A number may be whole; words of a vocabulary belong to a sequence, and their counts would fill checkpoints."""
    counts = ClassCounts(outputs)
    counts.note(torch.tensor([5.0, -1.0]))
    assert not counts.state_dict()["seen"].numel()
    assert not counts.commonness(torch.tensor([5.0, -1.0])).any()
    assert (counts.balance(torch.tensor([5.0, -1.0]), 0.5) == 1).all()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([3, IGNORED, 0]), [3.0, -1.0, 0.0]),
        (torch.tensor([0.5, 1.0, 2.0]), [-1.0] * 3),
        (torch.ones(3, 4, dtype=torch.long), [-1.0] * 3),
        (torch.ones(3, 1), [-1.0] * 3),
        (None, [-1.0] * 3),
    ],
    ids=["classes", "numbers", "words", "several at once", "none"],
)
def test_class_of(labels, expected):
    """Only a label that is one class of the whole example is one."""
    batch = {} if labels is None else {"labels": labels}
    assert class_of(batch, 3, torch.device("cpu")).tolist() == expected
