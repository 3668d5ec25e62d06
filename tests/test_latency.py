"""Milliseconds a sentence."""

import pytest
from conftest import tiny_bert
from test_teachers import tokenizer

from amal_hf import latency
from amal_hf.latency import measure_latency


def test_the_first_batches_only_warm_up(monkeypatch):
    """A first pass allocates and compiles; and a batch is as many sentences as were asked for, in turn."""
    seen = []

    def timed(model, tokenizer, texts):
        seen.append(texts)
        return 1000.0 if len(seen) <= 3 else 8.0 + (len(seen) > 32)

    monkeypatch.setattr(latency, "_time", timed)
    found = measure_latency(tiny_bert(), tokenizer(), ["a", "b", "c"], batch_size=4)
    assert len(seen) == 33 and seen[0] == ["a", "b", "c", "a"] and seen[1] == ["b", "c", "a", "b"]
    assert found[0] == 2.0 and found[1] < 3.0


def test_a_student_is_timed():
    """On its own device, in evaluation mode."""
    student = tiny_bert().train()
    median, high = measure_latency(student, tokenizer(), ["some question"], batch_size=2, batches=3)
    assert 0 < median <= high and not student.training
    with pytest.raises(ValueError, match="there are no texts"):
        measure_latency(student, tokenizer(), [], batch_size=2)
