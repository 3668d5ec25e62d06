"""What is noted of every example is what a reader would compute, and costs the training nothing."""

import numpy as np
import torch

from amal_hf.example_notes import ExampleNotes, group_means, judgements


NAN = float("nan")


def test_means_are_over_the_losses_that_an_example_has():
    """Of a loss of many columns, such as one for each rule, an example mostly has few; one without any has no mean."""
    table = torch.tensor([[1.0, 2.0, 4.0], [3.0, 9.0, 9.0]])
    present = torch.tensor([[True, True, True], [True, False, False]])
    means = group_means(table, present, [1, 2])
    torch.testing.assert_close(means, torch.tensor([[1.0, 3.0], [3.0, NAN]]), equal_nan=True)
    assert group_means(table, None, [1, 2])[1].tolist() == [3.0, 9.0]


def test_judgements_are_probabilities_of_the_label():
    """The student's class, and softmax at the label for student and teacher; nothing of a row without a label."""
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    batch = {"labels": torch.tensor([1, -100]), "teacher_logits": torch.tensor([[0.0, 5.0, 0.0], [1.0, 1.0, 1.0]])}
    judged = judgements(logits, batch, ["teacher_logits", "missing"])
    expected = [[0.0, logits[0].softmax(0)[1].item(), batch["teacher_logits"][0].softmax(0)[1].item(), NAN]]
    expected.append([2.0, NAN, NAN, NAN])
    torch.testing.assert_close(judged, torch.tensor(expected), equal_nan=True)


def test_no_judgement_where_examples_are_not_of_one_class():
    """Regression, several labels at once and tokens have neither a class nor a probability of it."""
    for logits, labels in (
        (torch.zeros(2, 1), torch.tensor([0.5, 1.0])),
        (torch.zeros(2, 3), torch.zeros(2, 3)),
        (torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.long)),
        (torch.zeros(2, 3), None),
    ):
        assert judgements(logits, {"labels": labels}, ["t"]).isnan().all()


def test_notes_are_the_last_seen_and_survive_a_checkpoint():
    """Later visits replace earlier ones, unseen examples are NaN, and a state comes back to the bit."""
    notes = ExampleNotes(4, {"labels": 1, "teacher": 1}, {"teacher": "teacher_logits"})
    for value in (1.0, 2.0):
        batch = {"labels": torch.tensor([0, 1]), "teacher_logits": torch.zeros(2, 2)}
        notes.write(torch.tensor([3, 1]), torch.full((2, 2), value), None, notes.judge(torch.eye(2), batch))
    again = ExampleNotes(4, {"labels": 1, "teacher": 1}, {"teacher": "teacher_logits"})
    again.load_state_dict(notes.state_dict())
    columns = again.of(torch.arange(4))
    assert list(columns) == ["loss/labels", "loss/teacher", "guess", "student", "teacher/teacher"]
    np.testing.assert_array_equal(columns["loss/teacher"], [NAN, 2, NAN, 2])
    np.testing.assert_array_equal(columns["guess"], [NAN, 1, NAN, 0])
    np.testing.assert_allclose(columns["teacher/teacher"], [NAN, 0.5, NAN, 0.5])


def test_of_a_very_large_set_nothing_is_noted():
    """A hundred million examples cost neither memory nor time; all is unknown."""
    notes = ExampleNotes(10**8, {"labels": 1}, {})
    assert not notes.noting and notes.store.size == 0
    assert all(np.isnan(column).all() for column in notes.of(torch.arange(3)).values())
