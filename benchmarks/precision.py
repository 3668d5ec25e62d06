"""How close slopes in half precision come to those in float64, on a fine-tuned MiniLM.

    python benchmarks/precision.py                                 # two layers; a few minutes on two cores
    python benchmarks/precision.py --layers 6 --radii 0.02 0.05 0.1 0.2

In each mode the student is fine-tuned as a run would (AdamW; 30 % of the labels wrong, fp16 with a gradient scaler).
Where it then stands, meta gradient, Adam direction and slopes of two losses are measured in that mode, and once more
in float64 from the same parameters and moments. Radii are lengths of the finite-difference step.
"""

import argparse
import copy
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, set_seed

from amal_hf import AdamDirection, FiniteDifference, student_from_teacher
from amal_hf.demo import demo_teacher_path, docstring_corpus
from amal_hf.meta import meta_gradient
from amal_hf.shapes import Evaluation, LossTable
from amal_hf.tangents import movable_parameters


RESULTS = Path(__file__).parent / "results" / "precision.json"
BATCH, META = 32, 16


class Mode(NamedTuple):
    """Precision of the parameters and of the forward pass."""

    parameters: torch.dtype
    forward: torch.dtype

    def __call__(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        """Logits, in at least fp32."""
        autocast = self.forward != self.parameters
        with torch.autocast("cpu", dtype=self.forward if autocast else torch.bfloat16, enabled=autocast):
            logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


MODES = {
    "fp32": Mode(torch.float32, torch.float32),
    "bf16 autocast": Mode(torch.float32, torch.bfloat16),
    "fp16 autocast": Mode(torch.float32, torch.float16),
    "pure bf16": Mode(torch.bfloat16, torch.bfloat16),
}
EXACT = Mode(torch.float64, torch.float64)


def main() -> None:
    """Measure the modes that were asked for; print and keep the cosines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--radii", type=float, nargs="+", default=[])
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.modes:
        cell = measured(MODES[name], options.layers, options.steps, options.seed, options.radii)
        results[f"{name}, {options.layers} layers, seed {options.seed}"] = cell
        print(f"{name:14s}  {'  '.join(f'{key} {value:.6f}' for key, value in cell['cosines'].items())}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def measured(mode: Mode, layers: int, steps: int, seed: int, radii: list[float]) -> dict[str, Any]:
    """Cosine with the slopes of float64: with the default radius, and with each of `radii`."""
    data = docstring_corpus()
    labels = data["train"].features["label"].num_classes
    set_seed(seed)
    base = AutoModelForSequenceClassification.from_pretrained(demo_teacher_path(), num_labels=labels)
    model: Any = student_from_teacher(base, layers)
    model.to(mode.parameters)
    train = batches(data["train"].shuffle(seed=seed), BATCH, labels, 0.3)
    optimizer = fine_tuned(mode, model, train, steps)
    batch, meta = train[0], batches(data["validation"].shuffle(seed=seed), META, labels, 0.0)[0]
    exact = slopes(EXACT, model, optimizer, batch, meta, FiniteDifference())
    tangents = {"default": FiniteDifference(), **{f"{radius:g}": FiniteDifference(radius) for radius in radii}}
    found = {key: slopes(mode, model, optimizer, batch, meta, tangent) for key, tangent in tangents.items()}
    return {
        "cosines": {
            key: cosine_similarity(each.flatten(), exact.flatten(), dim=0).item() for key, each in found.items()
        },
        "relative_errors": {key: ((each - exact).norm() / exact.norm()).item() for key, each in found.items()},
        "steps": steps,
        "machine": f"{platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}",
    }


def batches(data: Dataset, size: int, labels: int, wrong: float) -> list[dict[str, Tensor]]:
    """Whole batches of a dataset, a share of their labels wrong."""
    tokenizer = AutoTokenizer.from_pretrained(demo_teacher_path())
    generator = torch.Generator().manual_seed(0)
    made = []
    for start in range(0, len(data) - size + 1, size):
        rows = data[start : start + size]
        inputs = tokenizer(rows["text"], truncation=True, max_length=32, padding=True, return_tensors="pt")
        flipped = torch.rand(size, generator=generator) < wrong
        right = torch.tensor(rows["label"])
        made.append({**inputs, "labels": torch.where(flipped, (right + 1) % labels, right)})
    return made


def fine_tuned(
    mode: Mode, model: PreTrainedModel, train: list[dict[str, Tensor]], steps: int
) -> torch.optim.Optimizer:
    """Train the model in a mode; gives its optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    scaler = torch.amp.GradScaler("cpu", enabled=mode.forward == torch.float16)
    for step in range(steps):
        batch = train[step % len(train)]
        scaler.scale(cross_entropy(mode(model, batch), batch["labels"])).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    model.eval()
    return optimizer


def slopes(
    mode: Mode,
    model: Any,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    meta: dict[str, Tensor],
    tangent: FiniteDifference,
) -> LossTable:
    """Slopes of the batch along the direction of the meta batch, all in one mode, `(B, 2)` in float64."""
    model = copy.deepcopy(model).to(mode.parameters)
    own = torch.optim.AdamW(model.parameters())
    own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    params = movable_parameters(model)
    _, gradient = meta_gradient(params, lambda: cross_entropy(mode(model, meta), meta["labels"]))
    direction = AdamDirection()(gradient, params, own, no_product)
    evaluate: Callable[[], Evaluation] = lambda: Evaluation(losses(mode(model, batch), batch), torch.zeros(BATCH, 0))  # noqa: E731, E501
    return tangent(model, direction, evaluate, mode.forward).slopes.double()


def losses(logits: Tensor, batch: dict[str, Tensor]) -> LossTable:
    """Cross-entropy, and the divergence from a teacher that is drawn at random, `(B, 2)`."""
    teacher = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits).mul(2).softmax(1)
    divergence = kl_div(logits.log_softmax(1), teacher, reduction="none").sum(1)
    return torch.stack([cross_entropy(logits, batch["labels"], reduction="none"), divergence], 1)


def no_product(vector: object) -> Any:
    """Adam's direction asks for none."""
    raise RuntimeError(f"no Hessian is at hand for {vector}")


if __name__ == "__main__":
    main()
