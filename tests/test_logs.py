"""Logged statistics are those of all examples since the last log, as plain numbers."""

import re

import numpy as np
import torch

from amal_hf.logs import MixtureStatistics, log_keys
from amal_hf.mixture import Weighed
from amal_hf.policies.policy import Observation


def batches(sizes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        losses, weights = torch.randn(size, 2, generator=generator), torch.rand(size, 2, generator=generator)
        # Some weights at zero, or so near that they have no effect.
        weights = torch.where(weights < 0.2, weights * 1e-3, weights)
        seen = Observation(torch.arange(size), torch.empty(size, 0), 0.0)
        yield Weighed(losses.sum(), losses.to(dtype), weights.to(dtype), seen)


def numpy_statistics(seen):
    losses, weights = (np.concatenate([b[field].float().numpy() for b in seen]) for field in (1, 2))
    expected = {}
    for k, name in enumerate(["labels", "teacher"]):
        marks = np.quantile(weights[:, k], [0.1, 0.25, 0.5, 0.75, 0.9], method="nearest")
        expected |= {
            f"loss_{name}": losses[:, k].mean(),
            f"weight_{name}_mean": weights[:, k].mean(),
            **{f"weight_{name}_p{p}": mark for p, mark in zip((10, 25, 50, 75, 90), marks, strict=True)},
            f"weight_{name}_zero": (weights[:, k] < 1e-3).mean(),
        }
    return expected


def test_a_flush_is_numpy_on_all_examples_since_the_last():
    """Batches of different sizes count by their examples, in half precision too; what was logged once is not logged
    again.
    """
    statistics = MixtureStatistics({"labels": 1, "teacher": 1})
    for sizes, dtype in (((4, 1, 7), torch.float32), ((5,), torch.bfloat16)):
        seen = list(batches(sizes, dtype))
        for weighed in seen:
            statistics.add(weighed)
        logs, expected = statistics.flush(), numpy_statistics(seen)
        assert logs.keys() == expected.keys()
        np.testing.assert_allclose(list(logs.values()), [expected[key] for key in logs], rtol=1e-5)
    assert 0 < expected["weight_labels_zero"] < 1


def test_meta_steps_are_averaged_and_skipped_examples_counted():
    """The meta loss between two logs is a mean, the number of examples with bad slopes a sum; neither appears without
    a meta step.
    """
    statistics = MixtureStatistics({"labels": 1})
    statistics.add_meta(torch.tensor(1.0), torch.tensor(2))
    statistics.add_meta(torch.tensor(4.0, dtype=torch.bfloat16), torch.tensor(1))
    assert statistics.flush() == {"meta_loss": 2.5, "meta_skipped": 3.0}
    assert statistics.flush() == {}


def test_a_small_weight_is_not_none():
    """Zero is below a thousandth, and nothing else."""
    statistics = MixtureStatistics({"labels": 1})
    seen = next(batches([4]))
    weights = torch.tensor([[0.1], [0.01], [0.0], [1e-4]])
    statistics.add(seen._replace(losses=torch.ones(4, 1), weights=weights))
    assert statistics.flush()["weight_labels_zero"] == 0.5


def test_logs_are_plain_floats():
    """`Trainer` writes them to JSON and to trackers, which take neither tensors nor NumPy numbers."""
    statistics = MixtureStatistics({"labels": 1, "teacher": 1})
    statistics.add(next(batches([3])))
    statistics.add_meta(torch.tensor(1.0), torch.tensor(2))
    assert {type(value) for value in statistics.flush().values()} == {float}


def test_skipped_examples_are_warned_of_with_their_number(caplog):
    """Weights that silently stop learning would pass for weights that have nothing left to learn."""
    statistics = MixtureStatistics({"labels": 1})
    statistics.add_meta(torch.tensor(0.5), torch.tensor(0))
    statistics.flush()
    assert not caplog.records
    statistics.add_meta(torch.tensor(0.5), torch.tensor(2))
    statistics.add_meta(torch.tensor(0.5), torch.tensor(1))
    assert statistics.flush()["meta_skipped"] == 3.0
    assert "3 examples of meta steps" in caplog.text


def test_names_are_fit_for_every_tracker():
    """MLflow refuses a key with other characters and stops the run; a lambda's name, for one, has such."""
    statistics = MixtureStatistics({"<lambda>": 1, "rules/a b-c.d": 1})
    statistics.add(next(batches([3])))
    logs = statistics.flush()
    assert all(re.fullmatch(r"[A-Za-z0-9_\-./ ]+", key) for key in logs)
    assert {"loss__lambda_", "weight_rules/a b-c.d_p50"} <= set(logs)


def test_weights_of_the_last_flush_are_there_for_histograms():
    """All weights since the log before, by loss, of the examples that have it; then those of the next."""
    statistics = MixtureStatistics({"labels": 1, "teacher": 1})
    for count in (4, 3):
        seen = list(batches([count, 2]))
        for weighed in seen:
            statistics.add(weighed)
        statistics.flush()
        expected = torch.cat([weighed.weights for weighed in seen])
        assert statistics.weights["teacher"].equal(expected[:, 1])
        assert len(statistics.weights["labels"]) == count + 2


def test_names_that_come_out_the_same_are_told_apart():
    """Of two losses with names in another alphabet neither vanishes from the log."""
    names = ["метки", "слова", "a:b", "a|b", "a_b"]
    keys = log_keys(names)
    assert list(keys) == names and len(set(keys.values())) == len(names)
    assert keys["a:b"] == "a_b" and keys["a|b"] == "a_b_2"
