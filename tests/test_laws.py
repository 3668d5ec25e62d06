"""Laws of cost are fitted to what was measured."""

from pathlib import Path

import pytest


@pytest.fixture
def laws(monkeypatch):
    """The script."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import laws

    return laws


@pytest.mark.parametrize(
    ("factor", "points"),
    [("interval", [(1, 2.0), (2, 1.5), (4, 1.25)]), ("layers", [(1, 2.0), (2, 3.0), (8, 9.0)])],
)
def test_a_law_that_holds_is_found(laws, factor, points):
    """One over the interval, and a straight line for anything else: both parameters one, nothing missed."""
    assert laws.fit(factor, points) == pytest.approx((1, 1, 0))
    assert f"| {factor} |" in laws.table({factor: points})


def test_a_picture_has_a_panel_a_factor(laws, tmp_path):
    """Points and laws are drawn."""
    laws.draw({"layers": [(1, 1.0), (2, 1.1)], "interval": [(1, 2.0), (4, 1.25)]}, tmp_path / "laws.png")
    assert (tmp_path / "laws.png").stat().st_size > 5_000
