"""What a variant of the cost benchmark is called."""

from pathlib import Path

import amal_hf


def test_a_variant_is_called_as_it_is_made(monkeypatch):
    """Every method beside every way to measure slopes: the name, taken for Python, gives the same method."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import overhead

    names = [overhead.with_tangent(method, tangent) for method in overhead.SLOPED for tangent in overhead.TANGENTS]
    assert len(set(names)) == 12
    for name in names:
        made, meant = overhead.VARIANTS[name].make(), eval(name, vars(amal_hf).copy())
        parts = [(one.name, type(one.policy), type(one.tangent), one.usual_interval) for one in (made, meant)]
        assert parts[0] == parts[1]
