"""Which labels have weight over frozen features."""

import random

import numpy as np
import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows

from amal_hf import AMALTrainer, CrossEntropy, label_weights
from amal_hf.metrics import auc


ROWS, CLEAN, CLASSES, WIDTH = 600, 60, 4, 12


def planted(rate, seed=0):
    """Features that tell the class, labels of which a share is wrong, whether each is right; and clean rows."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(CLASSES, (ROWS + CLEAN,), generator=generator)
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    features = centres[true] + 0.3 * torch.randn(len(true), WIDTH, generator=generator)
    off = torch.randint(1, CLASSES, (ROWS,), generator=generator)
    right = torch.rand(ROWS, generator=generator) >= rate
    labels = torch.where(right, true[:ROWS], (true[:ROWS] + off) % CLASSES)
    return (features[:ROWS], labels, features[ROWS:], true[ROWS:]), right.numpy()


@pytest.fixture(scope="module")
def spoilt():
    """What is found where 40 % are wrong, and what was there."""
    given, right = planted(0.4)
    return given, right, label_weights(*given)


def test_wrong_labels_have_little_of_a_right_one_s_weight(spoilt):
    """And right ones more, nearly all of them; one on average."""
    _, right, found = spoilt
    assert auc(found.weights.numpy(), right) > 0.99
    assert found.weights.shape == (ROWS,) and found.weights.mean() == pytest.approx(1)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.4, 0.6])
def test_as_many_are_called_wrong_as_are(rate):
    """And nearly all of them are the ones; where most are wrong, too."""
    given, right = planted(rate)
    found = label_weights(*given)
    kept = found.probably_right().numpy()
    assert found.wrong == pytest.approx(1 - right.mean(), abs=0.04) and 0 < found.wrong_error < 0.03
    assert right[kept].mean() > 0.96 and kept[right].mean() > 0.96


def test_weights_do_not_fade_where_few_labels_are_wrong():
    """As those of a training would, which leave a wrong label a third or more where one in ten is."""
    given, right = planted(0.1)
    weights = label_weights(*given).weights
    assert weights[~right].mean() < 0.1 * weights[right].mean()


def test_where_all_labels_are_right_all_are_kept():
    """However little some of them weigh: what is learned from right labels is about something else."""
    given, right = planted(0.0)
    found = label_weights(*given)
    assert right.all() and found.wrong < 0.01 and found.probably_right().float().mean() > 0.99


def test_rare_classes_do_not_cost_the_others_their_place():
    """Right labels of common classes are kept, however much more those of rare ones weigh."""
    (features, labels, clean, true), _ = planted(0.0)
    rows = torch.cat([(labels == number).nonzero()[: 8 if number > 1 else ROWS, 0] for number in range(CLASSES)])
    found = label_weights(features[rows], labels[rows], clean, true)
    assert found.weights[labels[rows] > 1].mean() > 10 and found.probably_right().float().mean() > 0.99


def test_few_clean_rows_cannot_tell_how_many_are_wrong(spoilt):
    """Then none is called so."""
    (features, labels, clean, true), *_ = spoilt
    found = label_weights(features, labels, clean[:6], true[:6], steps=20)
    assert np.isnan(found.wrong) and np.isnan(found.wrong_error) and found.probably_right().all()


@pytest.mark.parametrize("count", [32, 33, 35])
def test_clean_rows_are_asked_as_soon_as_they_can_tell(spoilt, caplog, count):
    """Above 32 of them few enough judge at a time for the others to say how many labels are wrong; and nothing is
    advised that the caller cannot do.
    """
    (features, labels, clean, true), *_ = spoilt
    found = label_weights(features, labels, clean[:count], true[:count], steps=40)
    assert np.isnan(found.wrong) == (count == 32) and "meta_batch_size" not in caplog.text


@pytest.fixture(scope="module")
def brief():
    """A run of few steps."""
    given, _ = planted(0.4)
    return given, label_weights(*given, steps=20).weights


def test_the_seed_decides_and_nothing_else(brief):
    """The same numbers whatever was drawn before; and the caller's random numbers go on as if nothing was."""
    given, first = brief
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    again = label_weights(*given, steps=20).weights
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    torch.testing.assert_close(again, first, atol=1e-4, rtol=0)
    assert (label_weights(*given, steps=20, seed=1).weights - first).abs().max() > 1e-2


def test_arrays_and_lists_are_the_same(brief):
    """Labels are a column of a dataset."""
    (features, labels, clean, right), first = brief
    found = label_weights(features.numpy(), labels.tolist(), clean.numpy(), right.numpy(), steps=20).weights
    torch.testing.assert_close(found, first, atol=1e-4, rtol=0)


def test_rows_without_a_label_have_no_weight(brief):
    """And change nothing for the others."""
    (features, labels, clean, right), first = brief
    more = torch.cat([1e6 * features[:5], features]), torch.cat([torch.full((5,), -100), labels])
    found = label_weights(*more, clean, right, steps=20).weights
    assert not found[:5].any()
    torch.testing.assert_close(found[5:], first, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [1, 6, 8])
def test_weights_are_whole_after_few_steps(steps):
    """Of one pass, which may not be whole, they are those of that pass."""
    given, _ = planted(0.4)
    found = label_weights(*given, steps=steps).weights
    assert found.isfinite().all() and found.mean() == pytest.approx(1)


def test_a_run_that_was_prepared_before_stays_as_it_was(spoilt, tmp_path):
    """The precision of `AMALArguments(bf16=True)` is not lost to the run over features."""
    args = toy_arguments(tmp_path, bf16=True)
    label_weights(*spoilt[0], steps=8)
    seen = []
    student = tiny_bert()
    student.bert.encoder.layer[0].attention.self.query.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    AMALTrainer(model=student, args=args, train_dataset=toy_rows(8), losses=[CrossEntropy()]).train()
    assert set(seen) == {torch.bfloat16}


GOOD = {
    "features": torch.ones(6, 3),
    "labels": [0, 1, 0, 1, 0, -100],
    "clean_features": torch.ones(2, 3),
    "clean_labels": [0, 1],
}


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"features": ["a"] * 6}, TypeError, "features must be an array"),
        ({"features": torch.rand(6)}, ValueError, r"must be \(N, d\)"),
        ({"labels": [0, 1]}, ValueError, "same rows"),
        ({"labels": [0.5] * 6}, ValueError, "labels of features must be whole numbers"),
        ({"clean_labels": ["a", "b"]}, TypeError, "labels of clean_features must be whole numbers.*names of classes"),
        ({"clean_labels": [0, None]}, TypeError, "labels of clean_features must .*-100 for no label"),
        ({"features": torch.full((6, 3), torch.nan)}, ValueError, "6 rows are not, the first is 0"),
        ({"clean_features": torch.rand(2, 4)}, ValueError, "one encoder"),
        ({"labels": [-100] * 6}, ValueError, "got 0 labels"),
        ({"clean_labels": [0, -100]}, ValueError, "1 of them without"),
        ({"clean_features": torch.rand(0, 3), "clean_labels": torch.zeros(0, dtype=int)}, ValueError, "0 clean rows"),
        ({"steps": 0}, ValueError, "1 or more"),
    ],
)
def test_what_could_not_be_weighed_is_refused(wrong, error, words):
    """In words, before anything is trained."""
    with pytest.raises(error, match=words):
        label_weights(**{**GOOD, **wrong})
