"""Do weights help a translator trained on pairs of which 30 % are wrong? Real sentences, 10,000 pairs, from scratch.

    python benchmarks/translation.py --data PATH/multi30k_de_en --seeds 6 7 8
    python benchmarks/translation.py --table

Runs of `recipes/translate_deep_interactions.py`, a seed at a time: German to English, a T5 of one layer of width 96,
24 epochs, 250 of 500 meta pairs in a meta gradient, 500 pairs each of meta, dev and test set taken out of the given
training set. Ten minutes a run on one core, twice that where weights are learned. Every finished cell is one JSON file
and is not run again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from spread import spread


RESULTS = Path(__file__).parent / "results" / "translation"
RECIPE = Path(__file__).parents[1] / "recipes" / "translate_deep_interactions.py"
RUNS = ["all pairs alike", "small-loss selection", "long_runs"]
OPTIONS = [
    "--source",
    "de",
    "--target",
    "en",
    "--rows",
    "11500",
    "--held_out",
    "500",
    "--generation_max_length",
    "40",
    "--meta_batch_size",
    "250",
    "--meta_warmup_steps",
    "1250",
    "--student",
    "t5",
    "--layers",
    "1",
    "--vocabulary",
    "2000",
    "--per_device_train_batch_size",
    "16",
    "--learning_rate",
    "3e-3",
    "--num_train_epochs",
    "24",
]


def main() -> None:
    """Run the cells that were asked for, or print the table of those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of train*.jsonl with columns de and en")
    parser.add_argument("--seeds", type=int, nargs="+", default=[6, 7, 8])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print_table()
        return
    for seed in options.seeds:
        for run in options.runs:
            file = RESULTS / f"{options.data.name}-{''.join(filter(str.isalnum, run))}-{seed}.json"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(run_recipe(options.data, run, seed), indent=1) + "\n")


def run_recipe(data: Path, run: str, seed: int) -> dict[str, Any]:
    """The row of the recipe's table."""
    with tempfile.TemporaryDirectory() as folder:
        given = ["--dataset", str(data), "--runs", run, "--seed", str(seed), "--output_dir", folder]
        subprocess.run([sys.executable, str(RECIPE), *given, *OPTIONS], check=True)
        (row,) = json.loads((Path(folder) / "results.json").read_text())
        return {"seed": seed, **row}


def print_table() -> None:
    """Means over seeds with t-intervals."""
    cells = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    print("| run | seeds | BLEU | test loss | AUC |\n| --- | --- | --- | --- | --- |")
    for run in RUNS:
        chosen = [cell for cell in cells if cell["name"] == run]
        if chosen:
            columns = {name: [cell[name] for cell in chosen] for name in ("bleu", "loss", "auc_right_pairs")}
            shown = [spread(values, 1 if name == "bleu" else 3) for name, values in columns.items()]
            print(f"| {run} | {len(chosen)} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
