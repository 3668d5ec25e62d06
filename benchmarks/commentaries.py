"""Is a commentary worth anything to another student? Steps to a fixed accuracy with it, and with controls.

    python benchmarks/commentaries.py --data PATH/trec --seeds 3 4 5
    python benchmarks/commentaries.py --table

Runs `recipes/learn_commentary.py` twice a seed, with 60 % of the training labels wrong: a 2-layer MiniLM learns in 4
epochs, with a meta step of 64 clean rows at every step; a DistilBERT that knows no more than words reuses in 3, and is
looked at every 10 steps. Keeps the numbers as JSON. The lengths were chosen on seeds 0 to 2.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from spread import spread


RESULTS = Path(__file__).parent / "results" / "commentaries"
RECIPE = Path(__file__).parents[1] / "recipes" / "learn_commentary.py"
TARGET = 0.7


def main() -> None:
    """Run the seeds that were asked for, or print the table of those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder in WRENCH format")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print_table()
        return
    for seed in options.seeds:
        file = RESULTS / f"{options.data.name}-{seed}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(learn_and_reuse(options.data, seed), indent=1) + "\n")


def learn_and_reuse(data: Path, seed: int) -> list[dict[str, Any]]:
    """The rows of the recipe's second table."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(RECIPE), "--dataset", str(data), "--seed", str(seed), "--output_dir", folder]
        command += ["--label_noise", "0.6"]
        learn = ["--num_train_epochs", "4", "--meta_batch_size", "64", "--meta_interval", "1"]
        subprocess.run([*command, *learn], check=True)
        # The recipe trains twice as long for reuse as it is told to.
        reuse = ["--reuse", f"{folder}/commentary", "--num_train_epochs", "1.5", "--eval_steps", "10"]
        subprocess.run([*command, *reuse, "--target", str(TARGET)], check=True)
        rows: list[dict[str, Any]] = json.loads((Path(folder) / "reuse.json").read_text())
        return rows


def print_table() -> None:
    """Steps of every seed, and the test accuracy with its t-interval."""
    runs = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    print(f"| run | steps to {TARGET:.0%} on dev | mean dev accuracy over the run | test |\n| --- | --- | --- | --- |")
    for rows in zip(*runs, strict=True):
        steps = ", ".join("never" if row["steps"] is None else str(row["steps"]) for row in rows)
        along = spread([100 * float(np.mean([value for _, value in row["curve"]])) for row in rows])
        print(f"| {rows[0]['name']} | {steps} | {along} | {spread([100 * row['test'] for row in rows])} |")


if __name__ == "__main__":
    main()
