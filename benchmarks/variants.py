"""Is the default of `amal()` the best among its neighbours, and how many clean rows does it take? On dev alone.

    python benchmarks/variants.py --data PATH/trec PATH/banking77 PATH/sst2 --seeds 100 101 102
    python benchmarks/variants.py --data PATH/trec --student 2 --settings flipped40 --seeds 100 101 102
    python benchmarks/tables.py

40 % of the labels are wrong in three ways. A head over frozen MiniLM learns them smoothed, with the clean rows among
them and last; a student with layers learns them beside a teacher of the clean rows. Each has `amal()` with one thing
changed at a time; the head also has other numbers of clean rows, beside controls. A finished run is a line of JSON in
`results/variants.jsonl` and is not made again. The test set is never looked at.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import markdown_tables
import numpy as np
import torch
from bodies import FrozenBody
from cell import bench_of, run_phases
from gains import code, signed
from groups import STUDENTS, mean_by_seed
from json_lines import Record, append, read
from phases import ALL, CLEAN, Phase, Phases, always, then_clean, with_clean_teacher
from quality import quiet
from settings import CLEAN_ROWS, Place

from amal_hf import AdamDirection, Delayed, LossNetwork, Method, SGDDirection, amal
from amal_hf.directions import HessianProduct
from amal_hf.policies.policy import Observation, Sizes
from amal_hf.shapes import LossTable, Params


RESULTS = Path(__file__).parent / "results" / "variants.jsonl"
SETTINGS = ("flipped40", "background40", "instance40")
SIZES = (100, CLEAN_ROWS, 1000)
DEFAULT = "amal()"

FEATURES = FrozenBody.kind

Key = tuple[str, str, str, int, str, int]


class MeanOfGradients(AdamDirection):
    """An ensemble of meta gradients: a running mean of the last ones, bias corrected.

    Args:
        keep: of the mean at every meta gradient.
    """

    def __init__(self, keep: float) -> None:
        self.keep, self.seen = keep, 0
        self.mean: dict[str, torch.Tensor] = {}

    def __call__(
        self, gradient: Params, params: Params, optimizer: torch.optim.Optimizer, product: HessianProduct
    ) -> Params:
        """The direction of the mean."""
        self.seen += 1
        for name, new in gradient.items():
            self.mean[name] = self.keep * self.mean.get(name, torch.zeros_like(new)) + (1 - self.keep) * new
        corrected = {name: mean / (1 - self.keep**self.seen) for name, mean in self.mean.items()}
        return super().__call__(corrected, params, optimizer, product)


class MeanOfSlopes(LossNetwork):
    """An ensemble over time: the slopes of an example averaged with those it has had, at most the last five."""

    def reset(self, sizes: Sizes, initial: torch.Tensor) -> None:
        """Nothing is known."""
        super().reset(sizes, initial)
        self.known: dict[int, tuple[torch.Tensor, int]] = {}

    def update(self, observation: Observation, slopes: LossTable) -> None:
        """From the means."""
        means = [self._mean(number, new) for number, new in zip(observation.ids.tolist(), slopes, strict=True)]
        super().update(observation, torch.stack(means))

    def _mean(self, number: int, new: torch.Tensor) -> torch.Tensor:
        old, count = self.known.get(number, (torch.zeros_like(new), 0))
        mean = (old * count + new) / (count + 1)
        self.known[number] = mean, min(count + 1, 4)
        return mean


@dataclass(frozen=True)
class Variant:
    """The default, or one thing changed.

    Attributes:
        method: how weights are learned.
        arguments: of the trainer.
    """

    method: Callable[[], Method] = amal
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def phases(self, student: str) -> Phases:
        """What the README has for such a student, where many labels are wrong."""
        method = always(self.method)
        if student == FEATURES:
            return then_clean(Phase(method=method, rows=ALL, smoothing=0.1, arguments=self.arguments), 0.25)
        return (Phase(with_clean_teacher, method=method, rows=ALL, arguments=self.arguments),)


def each_step(policy: LossNetwork | None = None) -> Method:
    """A meta step at every training step."""
    return replace(amal(policy), window=1, interval=1)


def ahead(repeats: int) -> Method:
    """Meta gradients one student step ahead, as in AMAL, and several from one meta batch."""
    return replace(amal(), window=1, interval=4, lookahead=True, repeats=repeats)


VARIANTS = {
    DEFAULT: Variant(),
    "direction: the gradient as it is, not as AdamW would go": Variant(lambda: amal(direction=SGDDirection())),
    "warm-up: a tenth of the steps": Variant(arguments={"meta_warmup_steps": 0.1}),
    "warm-up: three tenths": Variant(arguments={"meta_warmup_steps": 0.3}),
    "weights learned in the first half, used in the second": Variant(lambda: amal(Delayed(LossNetwork(), 0.5))),
    "meta batch of 64 rows, not 16": Variant(arguments={"meta_batch_size": 64}),
    "one student step ahead": Variant(lambda: ahead(1)),
    "one student step ahead, every meta batch five times": Variant(lambda: ahead(5)),
    "ensemble: running mean of meta gradients, 0.5": Variant(lambda: amal(direction=MeanOfGradients(0.5))),
    "ensemble: running mean of meta gradients, 0.9": Variant(lambda: amal(direction=MeanOfGradients(0.9))),
    "a meta step at every step": Variant(each_step),
    "ensemble: mean of an example's slopes, at every step": Variant(lambda: each_step(MeanOfSlopes())),
    "learning rate of the network: 3e-3, not 1e-2": Variant(lambda: amal(LossNetwork(learning_rate=3e-3))),
    "learning rate of the network: 3e-2": Variant(lambda: amal(LossNetwork(learning_rate=3e-2))),
    "width of the network: 8, not 32": Variant(lambda: amal(LossNetwork(hidden=8))),
    "width of the network: 128": Variant(lambda: amal(LossNetwork(hidden=128))),
}
BESIDE = {
    DEFAULT: Variant().phases(FEATURES),
    "all rows alike, clean rows last": then_clean(Phase(rows=ALL, smoothing=0.1), 0.25),
    "clean rows only": (Phase(rows=CLEAN),),
}
"""What is compared over features for other numbers of clean rows."""


def main() -> None:
    """Make the runs that are not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of data sets")
    parser.add_argument("--student", choices=STUDENTS, default=FEATURES)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    quiet(workers=2)  # one thread each: two calls with other data share a machine
    done = {key_of(record) for record in read(options.results)}
    places = [
        Place(data, options.student, setting, seed)
        for seed in options.seeds
        for setting in options.settings
        for data in options.data
    ]
    for place in places:
        for sized, name, phases in runs_at(place, options.variants, options.sizes):
            key = (place.data.name, place.student, place.setting, place.seed, name, sized.clean_rows)
            if key not in done:
                record = run(sized, name, phases)
                append(options.results, record)
                print(*record.values(), flush=True)
                done.add(key)


def runs_at(place: Place, variants: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[Place, str, Phases]]:
    """The variants with the usual number of clean rows, and over features what is compared for all."""
    yield from ((place, name, VARIANTS[name].phases(place.student)) for name in variants)
    for size in sizes if place.student == FEATURES else ():
        yield from ((replace(place, clean_rows=size), name, phases) for name, phases in BESIDE.items())


def run(place: Place, name: str, phases: Phases) -> Record:
    """Train, and look at dev."""
    _, looks, _ = run_phases(bench_of(place), phases)
    found = {"data": place.data.name, "student": place.student, "setting": place.setting, "seed": place.seed}
    return {**found, "variant": name, "clean_rows": place.clean_rows, "dev": looks.best, "torch": torch.__version__}


def key_of(record: Record) -> Key:
    """What makes it another run."""
    place = record["data"], record["student"], record["setting"], record["seed"]
    return *place, record["variant"], record["clean_rows"]


def scores(records: list[Record], variant: str, clean_rows: int = CLEAN_ROWS) -> dict[str, dict[int, float]]:
    """Dev accuracy in %, averaged over settings: by data set and seed."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in records:
        if (one["variant"], one["clean_rows"]) == (variant, clean_rows):
            found[one["data"]][one["seed"]].append(100 * one["dev"])
    return {data: {seed: float(np.mean(dev)) for seed, dev in seeds.items()} for data, seeds in found.items()}


def over(ours: dict[str, dict[int, float]], theirs: dict[str, dict[int, float]]) -> dict[int, float]:
    """By seed: the difference, averaged over data sets."""
    return mean_by_seed([{seed: ours[data][seed] - theirs[data][seed] for seed in ours[data]} for data in theirs])


def results_of(student: str) -> list[Record]:
    """What is known of one student."""
    return [record for record in read(RESULTS) if record["student"] == student]


def variants_table(records: list[Record]) -> str:
    """Dev accuracy by data set, and over the default, of the variants that were run on all of them."""
    default = scores(records, DEFAULT)
    rows = []
    for name in VARIANTS:
        found = scores(records, name)
        if found.keys() != default.keys():
            continue
        means = [f"{np.mean(list(found[data].values())):.1f}" for data in default]
        rows.append([code(name), *means, "" if name == DEFAULT else signed(over(found, default))])
    return markdown_tables.table(["one thing changed", *default, "over the default"], rows)


def clean_rows_table(records: list[Record]) -> str:
    """Dev accuracy by data set and number of clean rows, and what `amal()` gains over the same without weights."""
    rows = []
    for data in scores(records, DEFAULT):
        for size in SIZES:
            ours, *others = ({data: scores(records, name, size)[data]} for name in BESIDE)
            means = [f"{np.mean(list(found[data].values())):.1f}" for found in (ours, *others)]
            rows.append([data, f"{size:,}", *means, signed(over(ours, others[0]))])
    return markdown_tables.table(["data", "clean rows", *map(code, BESIDE), "gain over all rows alike"], rows)


if __name__ == "__main__":
    main()
