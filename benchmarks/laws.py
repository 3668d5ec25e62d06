"""How what `amal()` costs grows: with student, losses, meta batch, interval, processes, and the rows of a table.

    python benchmarks/laws.py            # half a minute a point for small loads, on two cores
    python benchmarks/laws.py --table    # prints the fitted laws; tables.py writes them into docs/scaling.md
    python benchmarks/laws.py --draw laws.svg

One factor at a time is moved away from what `overhead.py` measures (3 layers, 32 tokens, batch 32, two losses, meta
batch 16). What is fitted is a meta step in units of a training step with a fixed mixture; for the interval the time of
a whole run in units of one with a fixed mixture. Several processes share the machine, one thread each. The figures of
a table of weights are those of `table_scale.py`. Nothing else may run meanwhile.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import markdown_tables
import numpy as np
from overhead import Load, kinds_of_steps, spawn, turns_of
from table_scale import RESULTS as TABLES

from amal_hf import amal


RESULTS = Path(__file__).parent / "results" / "laws.json"
Point = tuple[float, float]


@dataclass(frozen=True)
class Factor:
    """What is varied, and the law that is fitted: `a + b · shape(x)`.

    Attributes:
        values: of the field of `Load`, or numbers of processes.
        fitted: what the law is of.
        law: for people.
        shape: of the law.
    """

    values: tuple[int, ...]
    fitted: str = "a meta step / a training step"
    law: str = "a + b·x"
    shape: Callable[[float], float] = float


FACTORS = {
    "layers": Factor((1, 2, 4, 8)),
    "length": Factor((16, 32, 64, 128)),
    "losses": Factor((2, 3, 5, 9)),
    "meta_batch": Factor((8, 16, 32, 64)),
    "interval": Factor((1, 2, 4, 8), "a run / one with a fixed mixture", "a + b/x", lambda x: 1 / x),
    "processes": Factor((1, 2, 4), law="a + b/x", shape=lambda x: 1 / x),
}
LAWS = {**FACTORS, "rows": Factor((), "an update of a table, ms")}


def main() -> None:
    """Measure what is not there yet, or show what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factors", nargs="+", choices=list(FACTORS), default=list(FACTORS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--draw", type=Path, help="file for a picture of points and laws")
    parser.add_argument("--one", type=json.loads, help="measure this load in this process")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(Load(**options.one))))
    elif options.table:
        print(table(points()))
    elif options.draw:
        draw(points(), options.draw)
    else:
        for name in options.factors:
            measure_factor(name)


def measure_factor(name: str) -> None:
    """All values of a factor, each in a process of its own."""
    cells = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for value in FACTORS[name].values:
        load = {"interval": 4} if name == "processes" else {"interval": 4, name: value}
        command = [__file__, "--one", json.dumps(load)]
        processes = value if name == "processes" else 1
        if processes > 1:
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *command]
        cells.setdefault(name, {})[str(value)] = spawn(*command)
        print(name, value, cells[name][str(value)], flush=True)
        RESULTS.write_text(json.dumps(cells, indent=1) + "\n")


def measure(load: Load) -> dict[str, float]:
    """Seconds of a training step with the fixed mixture, of a meta step, and the ratio of a whole run."""
    trainer, ticks = turns_of(replace(amal(), window=1), load)
    if int(os.environ.get("RANK", "0")):
        sys.exit()  # the first process speaks for all
    every = load.interval or 1
    plain, without, _, within = kinds_of_steps(ticks, every)
    return {"plain": plain, "meta": within - without, "time": (without + (within - without) / every) / plain}


def points() -> dict[str, list[Point]]:
    """What was measured, by factor: the value and what is fitted."""
    cells = json.loads(RESULTS.read_text())
    found = {
        name: [
            (float(value), cell["time"] if name == "interval" else cell["meta"] / cell["plain"])
            for value, cell in cells[name].items()
        ]
        for name in FACTORS
        if name in cells
    }
    tables = json.loads(TABLES.read_text())["rows"]
    return {**found, "rows": [(float(rows), cell["update_ms"]) for rows, cell in tables.items()]}


def fit(name: str, found: list[Point]) -> tuple[float, float, float]:
    """`a` and `b` of the law by least squares, and the largest miss as a share of what was measured."""
    x, y = np.array([(LAWS[name].shape(value), seen) for value, seen in found]).T
    b, a = np.polyfit(x, y, 1)
    return float(a), float(b), float(np.abs((a + b * x - y) / y).max())


def table(found: dict[str, list[Point]]) -> str:
    """Points and laws as a Markdown table."""
    rows = []
    for name, seen in found.items():
        a, b, miss = fit(name, seen)
        measured = ", ".join(f"{value:g}: {cost:.2f}" for value, cost in seen)
        law = LAWS[name]
        rows.append([name.replace("_", " "), law.fitted, measured, law.law, f"{a:.2f}", f"{b:.2g}", f"{miss:.0%}"])
    return markdown_tables.table(["x", "what", "measured at x", "law", "a", "b", "largest miss"], rows)


def draw(found: dict[str, list[Point]], file: Path) -> None:
    """Points and laws, a panel a factor."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 4, figsize=(13, 6), layout="constrained")
    panels.flat[-1].axis("off")
    for panel, (name, seen) in zip(panels.flat, found.items(), strict=False):
        a, b, _ = fit(name, seen)
        line = np.geomspace(seen[0][0], seen[-1][0], 100)
        panel.plot(line, [a + b * LAWS[name].shape(x) for x in line])
        panel.plot(*zip(*seen, strict=True), "o")
        panel.set(xlabel=name.replace("_", " "), ylabel=LAWS[name].fitted, xscale="log")
        panel.minorticks_off()
        panel.set_xticks(
            [x for x, _ in seen], [f"{x:g}" if x < 1000 else f"{x:.0e}".replace("+0", "") for x, _ in seen]
        )
        panel.set_ylim(0, 1.1 * max(cost for _, cost in seen))
    figure.savefig(file, dpi=80)


if __name__ == "__main__":
    main()
