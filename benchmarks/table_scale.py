"""What a table of weights costs for a thousand to a hundred million examples: memory, an update, a checkpoint.

    python benchmarks/table_scale.py           # up to 10^8 rows; a few GB of disk and minutes for the last line
    python benchmarks/table_scale.py --rows 1000 10000 100000

`amal(ExampleTable())` with three losses, the table kept in a file. Each size is a process of its own, which updates
the weights of batches of 64 examples drawn at random, then saves: once after 100,000 examples, ten times after 6,400
more each (the median counts), and once after every example has been written. Resident memory is that of the process
beyond its libraries; the part that is mapped from the file is the system's to take back.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from amal_hf import ExampleTable
from amal_hf.policies.policy import Observation, Sizes
from amal_hf.policies.row_file import BLOCK


RESULTS = Path(__file__).parent / "results" / "table_scale.json"
LOSSES, BATCH = 3, 64


def main() -> None:
    """One process for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**power for power in range(3, 9)])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the files go")
    parser.add_argument("--one", action="store_true", help="measure in this process, and print JSON")
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(json.dumps(measured(options.rows[0], Path(folder))))
        return
    cells: dict[str, Any] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    for rows in options.rows:
        command = [sys.executable, __file__, "--one", "--rows", str(rows), "--folder", str(options.folder)]
        cells[str(rows)] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(rows, cells[str(rows)], flush=True)
        machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
        ordered = dict(sorted(cells.items(), key=lambda cell: int(cell[0])))
        RESULTS.write_text(json.dumps({"machine": machine, "rows": ordered}, indent=1) + "\n")


def measured(rows: int, folder: Path) -> dict[str, Any]:
    """All figures for one size."""
    before = memory()
    table = ExampleTable()
    table.reset(Sizes(LOSSES, (1,), rows, folder=str(folder)), torch.full((LOSSES,), 1 / LOSSES))
    generator = torch.Generator().manual_seed(0)
    cell: dict[str, Any] = {"file_bytes_if_full": rows * LOSSES * 4}
    seconds = [update(table, rows, generator) for _ in range(100_000 // BATCH)]
    cell["update_ms"] = 1000 * statistics.median(seconds)
    checkpoints = (folder / f"checkpoint-{number}" for number in range(99))
    cell["first_checkpoint"] = saved(table, next(checkpoints))
    cell["memory_mb"] = {kind: memory()[kind] - before[kind] for kind in before}
    later = []
    for _ in range(10):
        for _ in range(100):
            update(table, rows, generator)
        later.append(saved(table, next(checkpoints)))
    cell["later_checkpoint"] = sorted(later, key=lambda one: one["seconds"])[5]
    with timed(cell, "write_every_row_seconds"):
        for start in range(0, rows, BLOCK):
            ids = torch.arange(start, min(start + BLOCK, rows))
            table.store.write(ids, torch.rand(len(ids), LOSSES, generator=generator))
    cell["whole_checkpoint"] = saved(table, last := next(checkpoints))
    cell["memory_mb_in_the_end"] = {kind: memory()[kind] - before[kind] for kind in before}
    fresh = ExampleTable()
    fresh.reset(Sizes(LOSSES, (1,), rows, folder=str(folder)), torch.full((LOSSES,), 1 / LOSSES))
    with timed(cell, "resume_seconds"):
        fresh.load_state_dict(table.state_dict())
        fresh.store.load_files(last)
    ids = torch.randint(rows, (1000,), generator=generator)
    cell["same_bits"] = torch.equal(fresh.store.read(ids), table.store.read(ids))
    return cell


def update(table: ExampleTable, rows: int, generator: torch.Generator) -> float:
    """One meta step's update of a batch; seconds."""
    ids = torch.randint(rows, (BATCH,), generator=generator)
    slopes = torch.randn(BATCH, LOSSES, generator=generator)
    started = time.perf_counter()
    table.update(Observation(ids, torch.zeros(BATCH, 0), 0.0), slopes)
    return time.perf_counter() - started


def saved(table: ExampleTable, folder: Path) -> dict[str, float]:
    """A checkpoint: seconds until it is on the disk, its size, and what of it is new."""
    folder.mkdir()
    started = time.perf_counter()
    table.store.save_files(folder)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    files = [path.stat() for path in folder.iterdir()]
    return {
        "seconds": seconds,
        "files": len(files),
        "bytes": sum(file.st_size for file in files),
        "new_bytes": sum(file.st_size for file in files if file.st_nlink == 1),
    }


def memory() -> dict[str, float]:
    """Resident memory of this process in MB: its own, and what is mapped from files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {kind: int(lines[name].split()[0]) / 1024 for kind, name in (("own", "RssAnon"), ("mapped", "RssFile"))}


@contextmanager
def timed(cell: dict[str, Any], name: str) -> Iterator[None]:
    """Keep the seconds that the block took."""
    started = time.perf_counter()
    yield
    cell[name] = time.perf_counter() - started


if __name__ == "__main__":
    main()
