"""The benchmark of how many labels are wrong: by hand."""

import sys
from pathlib import Path

import numpy as np


sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import wrong_labels  # noqa: E402
from test_tables import columns  # noqa: E402


def test_a_verdict_counts_what_stays_and_what_is_lost():
    """Of four labels that are kept one is wrong, of four right ones one is not kept."""
    kept, right = np.array([1, 1, 1, 1, 0, 0]) > 0, np.array([1, 1, 1, 0, 1, 0]) > 0
    verdict = wrong_labels.verdict(0.3, kept, right)
    assert verdict == {"wrong": 0.3, "wrong of what is kept": 0.25, "right ones kept": 0.75}


def test_a_seed_is_averaged_over_data_sets_before_it_is_one_of_three():
    """Told 10, 20 and 30 % of one and 30, 20, 10 % of another: 20 in each seed, and no interval is left."""
    said = {"wrong of what is kept": 0.1, "right ones kept": 0.9}
    records = [
        {
            "data": data,
            "errors": "20 % evenly",
            "seed": seed,
            "wrong": 0.2,
            **{judge: {"wrong": told, **said} for judge in wrong_labels.JUDGES},
        }
        for data, several in (("a", (0.1, 0.2, 0.3)), ("b", (0.3, 0.2, 0.1)))
        for seed, told in enumerate(several)
    ]
    both = columns(wrong_labels.short_table(records), "20 % evenly")
    assert both["wrong"] == "20.0" and both["`label_weights()`: wrong"] == "20.0 ± 0.0"
    one = columns(wrong_labels.results_table(records), "a")
    assert one["`label_weights()`: wrong"] == "20.0 ± 24.8"
    assert one["confident learning: right ones kept"] == "90.0 ± 0.0"
