"""Warnings are said once, by however many processes train together."""

import logging

import pytest

from amal_hf import loggers
from amal_hf.rules import logger as of_rules


SAY = {"information": logging.INFO, "a warning": logging.WARNING, "an error": logging.ERROR}


@pytest.mark.parametrize(
    ("launched_as", "rank", "said"),
    [
        (None, 0, ["information", "a warning", "an error"]),
        ("0", 0, ["information", "a warning", "an error"]),
        ("3", 0, ["an error"]),
        (None, 1, ["an error"]),
    ],
)
def test_all_processes_say_errors_and_the_first_the_rest(monkeypatch, caplog, launched_as, rank, said):
    """Eight times the same warning hides the others; before processes are connected it is known who is the first."""
    monkeypatch.delenv("RANK", raising=False)
    if launched_as is not None:
        monkeypatch.setenv("RANK", launched_as)
    monkeypatch.setattr(loggers, "process_rank", lambda: rank)
    with caplog.at_level(logging.INFO):
        for text, level in SAY.items():
            of_rules.log(level, text)
    assert caplog.messages == said
