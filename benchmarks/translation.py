"""Do weights help a translator trained on pairs of which 30 % are wrong? Real sentences, 10,000 pairs, from scratch.

    python benchmarks/translation.py --data PATH/multi30k_de_en --seeds 6 7 8
    python benchmarks/translation.py --table

Runs `recipes/translate_deep_interactions.py` once a seed, keeps its numbers as JSON: German to English, a T5 of one
layer of width 96, 24 epochs, `--method long_runs` with 250 of 500 meta pairs in a meta gradient, 500 pairs each of
meta, dev and test set taken out of the given training set. Half an hour a seed on one core.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from spread import spread


RESULTS = Path(__file__).parent / "results" / "translation"
RECIPE = Path(__file__).parents[1] / "recipes" / "translate_deep_interactions.py"
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
    "--method",
    "long_runs",
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
    """Run the seeds that were asked for, or print the table of those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of train*.jsonl with columns de and en")
    parser.add_argument("--seeds", type=int, nargs="+", default=[6, 7, 8])
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print_table()
        return
    for seed in options.seeds:
        file = RESULTS / f"{options.data.name}-{seed}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(run_recipe(options.data, seed), indent=1) + "\n")


def run_recipe(data: Path, seed: int) -> list[dict[str, object]]:
    """The rows of the recipe's table."""
    with tempfile.TemporaryDirectory() as folder:
        given = ["--dataset", str(data), "--seed", str(seed), "--output_dir", folder]
        subprocess.run([sys.executable, str(RECIPE), *given, *OPTIONS], check=True)
        rows: list[dict[str, object]] = json.loads((Path(folder) / "results.json").read_text())
        return rows


def print_table() -> None:
    """Means over seeds with t-intervals."""
    runs = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    print("| run | seeds | BLEU | test loss | AUC |\n| --- | --- | --- | --- | --- |")
    for rows in zip(*runs, strict=True):
        columns = {name: [row[name] for row in rows] for name in ("bleu", "loss", "auc_right_pairs")}
        cells = [spread(values, 1 if name == "bleu" else 3) for name, values in columns.items()]
        print(f"| {rows[0]['name']} | {len(rows)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
