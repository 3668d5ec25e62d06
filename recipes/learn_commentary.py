"""Learn a commentary on a dataset with one student, then reuse it for a student of another architecture.

    python recipes/learn_commentary.py                                            # 40 % of the labels are wrong
    python recipes/learn_commentary.py --reuse out/learn_commentary/commentary    # what it is worth to another student
    python recipes/learn_commentary.py --kind blend                               # or: mask
    python recipes/learn_commentary.py --dataset stanfordnlp/sst2 --student distilbert/distilbert-base-uncased

Learning writes the commentary (two files) and a picture of it. Reusing trains a DistilBERT whose layers know nothing
yet, for longer, with no commentary, with this one, with a random one, and with this one on permuted rows, labels or
words; and prints after how many steps each reaches a fixed accuracy.
"""

import copy
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from amal_hf import (
    AMALArguments,
    AMALTrainer,
    Commentary,
    CommentaryNetwork,
    LabelBlend,
    Method,
    TokenMask,
    commentaries,
    embed_texts,
    student_from_teacher,
)
from amal_hf.columns import dataset_fingerprint, find_text_columns
from amal_hf.command_line import parse_arguments, refuse_resuming
from amal_hf.data import read_dataset
from amal_hf.demo import FEW_ROWS, TEACHER_ID, demo_teacher_path, docstring_corpus
from amal_hf.metrics import auc, classification_metrics
from amal_hf.noise import flip_labels
from amal_hf.plots import plot_blends, plot_clean_against_flipped, plot_masks
from amal_hf.precision import has_fast_bf16
from amal_hf.shapes import TRUE_LABEL
from amal_hf.splits import complete_splits


KINDS = ("weights", "blend", "mask")
ROWS_FROM = ("dataset", "label_noise", "meta_rows", "max_length", "smoke", "encoder", "student")
"""Options that decide which rows there are, and who reads them."""

FAST_BF16 = has_fast_bf16()


@dataclass
class RecipeArguments:
    """What to learn about which dataset, or what to reuse."""

    kind: str = field(default="weights", metadata={"help": "What is learned.", "choices": list(KINDS)})
    budget: float = field(default=0.25, metadata={"help": "Masks: the share of a text that is kept."})
    reuse: str | None = field(default=None, metadata={"help": "A commentary's folder or Hub dataset: do not learn."})
    target: float = field(default=0.65, metadata={"help": "Reusing: the dev accuracy that is waited for."})
    student: str | None = field(default=None, metadata={"help": "Folder or Hub id; layers of MiniLM-L6 by default."})
    encoder: str | None = field(default=None, metadata={"help": "What embeds texts or tokens; MiniLM-L6 by default."})
    dataset: str | None = field(
        default=None, metadata={"help": "Hub id, WRENCH folder, JSON lines or CSV; docstrings by default."}
    )
    label_noise: float = field(default=0.4, metadata={"help": "Share of training labels made wrong."})
    meta_rows: int = field(default=300, metadata={"help": "Clean rows taken out of the training set."})
    max_length: int = field(default=48, metadata={"help": "Tokens at which a text is cut."})
    push_to: str | None = field(default=None, metadata={"help": "Dataset repository to store the commentary in."})
    smoke: bool = field(
        default=False, metadata={"help": "A short run that shows that everything works; its scores say nothing."}
    )


@dataclass
class CommentaryArguments(AMALArguments):
    """Training arguments, with defaults that suit a small student on a small set."""

    output_dir: str = "out/learn_commentary"
    num_train_epochs: float = 3.0
    learning_rate: float = 2e-4
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 128
    warmup_steps: float = 0.1
    meta_interval: int | None = 2
    eval_strategy: str = "steps"
    eval_steps: float = 20
    logging_steps: float = 20
    save_strategy: str = "no"
    dataloader_pin_memory: bool = False
    bf16: bool = FAST_BF16
    use_cpu: bool = FAST_BF16 and not torch.cuda.is_available()  # `Trainer` wants to be told for bf16 on a CPU


@dataclass
class Bench:
    """What all runs share."""

    recipe: RecipeArguments
    args: CommentaryArguments
    data: DatasetDict
    tokenizer: PreTrainedTokenizerBase  # the student's
    encoder: PreTrainedModel
    encoder_tokenizer: PreTrainedTokenizerBase

    @property
    def names(self) -> list[str]:
        """The classes."""
        names: list[str] = self.data["train"].features["label"].names
        return names


def main() -> None:
    """Run the recipe."""
    recipe, args = parse(sys.argv[1:])
    source = recipe.encoder or demo_teacher_path()
    words = AutoTokenizer.from_pretrained(source)
    # By default students have the words of the encoder.
    tokenizer = words if recipe.student is None else AutoTokenizer.from_pretrained(recipe.student)
    commentary = Commentary.from_pretrained(recipe.reuse) if recipe.reuse else None
    kind = recipe.kind if commentary is None else kind_of(commentary)
    if kind == "mask" and tokenizer.get_vocab() != words.get_vocab():
        raise ValueError(f"A mask reads the vectors of {source}, and {recipe.student} has other tokens.")
    data = load_data(recipe, args.seed, tokenizer)
    bench = Bench(recipe, args, data, tokenizer, AutoModel.from_pretrained(source), words)
    if commentary is None:
        learn(bench)
    else:
        reuse(bench, commentary)


def kind_of(commentary: Commentary) -> str:
    """Among `KINDS`."""
    return {"LabelBlend": "blend", "CommentaryNetwork": "weights"}.get(commentary.schema.kind, "mask")


def parse(command_line: list[str]) -> tuple[RecipeArguments, CommentaryArguments]:
    """Arguments from flags, or from one YAML or JSON file."""
    recipe, args = parse_arguments([RecipeArguments, CommentaryArguments], command_line)
    refuse_resuming(args)
    if recipe.smoke:
        args.num_train_epochs, args.eval_steps, args.logging_steps = 1.0, 4, 4
    return recipe, args


def load_data(recipe: RecipeArguments, seed: int, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Splits train (spoilt), meta, validation and test, with token ids."""
    if recipe.dataset is None:
        data = docstring_corpus(4, FEW_ROWS, seed) if recipe.smoke else docstring_corpus(seed=seed)
    else:
        data = complete_splits(read_dataset(recipe.dataset), recipe.meta_rows, seed)
    if recipe.label_noise:
        data["train"] = flip_labels(data["train"], recipe.label_noise, seed)
    columns = find_text_columns(data["train"].column_names)
    sizes = ", ".join(f"{name} {len(split)}" for name, split in data.items())
    print(f"Data: {sizes} rows; fingerprint {dataset_fingerprint(data, [*columns, 'label'])}")
    return data.map(
        lambda batch: tokenizer(*(batch[name] for name in columns), truncation=True, max_length=recipe.max_length),
        batched=True,
        desc="tokenising",
    )


# ---- learning ----


def learn(bench: Bench) -> None:
    """Learn a commentary, store it, and draw it."""
    kind, folder = bench.recipe.kind, Path(bench.args.output_dir)
    method = commentaries(new_commentary(bench, what_it_reads(bench, kind)))
    trainer = train(bench, first_student(bench), bench.args, method)
    commentary = Commentary.learned_by(trainer, encoder=bench.recipe.encoder or TEACHER_ID)
    commentary.save_pretrained(folder / "commentary")
    picture = draw(bench, trainer, folder / f"{kind}.png")
    scores = trainer.evaluate(bench.data["test"], metric_key_prefix="test")
    print(f"\nThe first student reaches {scores['test_accuracy']:.1%} on the test set.")
    print(f"Saved in {folder}: " + ", ".join(["commentary/", *picture]))
    print(f"What it is worth: {reuse_command(bench.recipe, bench.args)}")
    if bench.recipe.push_to:
        print(f"Stored: {commentary.push_to_hub(bench.recipe.push_to)}")


def reuse_command(recipe: RecipeArguments, args: CommentaryArguments) -> str:
    """What to type to reuse the commentary on the rows that it was learned on, as wrong as they were."""
    options = {
        name: getattr(recipe, name) for name in ROWS_FROM if getattr(recipe, name) != getattr(type(recipe), name)
    }
    if args.seed != type(args).seed:
        options["seed"] = args.seed
    reused = {"reuse": Path(args.output_dir, "commentary"), **options}
    flags = "".join(f" --{name} {shlex.quote(str(value))}" for name, value in reused.items())
    return f"python recipes/learn_commentary.py{flags}"


def what_it_reads(bench: Bench, kind: str) -> Tensor | None:
    """Embeddings of the training rows for weights, token vectors for masks, nothing for blends."""
    if kind == "blend":
        return None
    if kind == "mask":
        return word_vectors(bench)
    columns = find_text_columns(bench.data["train"].column_names)
    texts = [" ".join(row[name] for name in columns) for row in bench.data["train"].select_columns(list(columns))]
    print("Embedding the training rows, once")
    return embed_texts(texts, bench.encoder, bench.encoder_tokenizer)


def new_commentary(bench: Bench, data: Tensor | None) -> CommentaryNetwork | LabelBlend | TokenMask:
    """One that knows nothing yet."""
    if data is None:
        return LabelBlend(len(bench.names), seed=bench.args.seed)
    if bench.recipe.kind == "mask":
        return TokenMask(data, bench.tokenizer.all_special_ids, bench.recipe.budget, seed=bench.args.seed)
    return CommentaryNetwork(data, len(bench.names), seed=bench.args.seed)


def draw(bench: Bench, trainer: AMALTrainer, file: Path) -> list[str]:
    """A picture of what was learned; of weights there is none where all labels are right, as far as is known."""
    changes = trainer.method.batch_policy
    rows = bench.data["train"]
    if isinstance(changes, LabelBlend):
        plot_blends(changes.shares().detach().cpu().numpy(), bench.names, file)
    elif isinstance(changes, TokenMask):
        draw_masks(bench, changes.cpu(), file)
    else:
        weights = np.array(trainer.example_weights()["labels"])
        seen = np.isfinite(weights)
        truth = rows[TRUE_LABEL if TRUE_LABEL in rows.column_names else "label"]
        right = (np.array(rows["label"]) == np.array(truth))[seen]
        if len(set(right)) < 2:
            return []
        print(f"The weights tell right labels from wrong ones with AUC {auc(weights[seen], right):.2f}")
        plot_clean_against_flipped({"labels": weights[seen]}, right, file)
    return [file.name]


def draw_masks(bench: Bench, changes: TokenMask, file: Path) -> None:
    """The first texts of the training set coloured by the mask; how sparse it is, over 500 of them."""
    few = bench.data["train"].select(range(min(500, len(bench.data["train"]))))
    ids = {name: few[name][:] for name in ("input_ids", "attention_mask")}
    batch = bench.tokenizer.pad(ids, return_tensors="pt")
    keep = changes.keep(batch["input_ids"], batch["attention_mask"]).detach()
    ordinary = batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], changes.special)
    kept = keep[ordinary]
    low, high = (kept < 0.1).float().mean(), (kept > 0.5).float().mean()
    print(f"Of the words, {low:.0%} are kept below 0.1 and {high:.0%} above 0.5; the mean is {kept.mean():.2f}.")
    words = [bench.tokenizer.convert_ids_to_tokens(row) for row in few["input_ids"][:8]]
    plot_masks(words, [mask[: len(text)].tolist() for mask, text in zip(keep[:8], words, strict=True)], file)


# ---- reuse ----


def reuse(bench: Bench, commentary: Commentary) -> None:
    """Train another student with the commentary and without; print how soon each gets there."""
    data = what_it_reads(bench, kind_of(commentary))
    args = copy.copy(bench.args)
    args.num_train_epochs = 2 * args.num_train_epochs  # a run of another length, too
    variants = {
        "no commentary": None,
        "this commentary": (commentary, data),
        "a random one": (scrambled(commentary, args.seed), data),
        "on permuted data": permuted(commentary, data, args.seed),
    }
    runs, rows = [], []
    for name, variant in variants.items():  # all of them before any is trained: a commentary may not fit
        student = other_student(bench)
        method = None if variant is None else variant[0].method_for(student, bench.data["train"], variant[1])
        runs.append((name, student, method))
    for name, student, method in runs:
        print(f"\n{name}")
        trainer = train(bench, student, args, method)
        curve = [(e["step"], e["eval_accuracy"]) for e in trainer.state.log_history if "eval_accuracy" in e]
        test = trainer.evaluate(bench.data["test"], metric_key_prefix="test")["test_accuracy"]
        rows.append({"name": name, "steps": steps_to(curve, bench.recipe.target), "test": test, "curve": curve})
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reuse.json").write_text(json.dumps(rows, indent=1) + "\n")
    show(rows, bench.recipe.target)


def scrambled(commentary: Commentary, seed: int) -> Commentary:
    """One of the same make whose parameters are drawn at random, as large as the learned ones."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator) * value.square().mean().sqrt()

    tensors = {name: drawn(value) if value.ndim else value for name, value in commentary.tensors.items()}
    return Commentary(commentary.schema, tensors)


def permuted(commentary: Commentary, data: Tensor | None, seed: int) -> tuple[Commentary, Tensor | None]:
    """The same commentary, said of other rows, labels or words than those it was learned on."""
    generator = torch.Generator().manual_seed(seed)
    if data is not None:
        return commentary, data[torch.randperm(len(data), generator=generator)]
    matrix = commentary.tensors["matrix"]
    order = torch.randperm(len(matrix), generator=generator)
    tensors: Mapping[str, Tensor] = {"matrix": matrix[order][:, order]}
    return Commentary(commentary.schema, tensors), None


def steps_to(curve: list[tuple[float, float]], target: float) -> float | None:
    """The first step at which a curve is at the target; None if it never is."""
    return next((step for step, value in curve if value >= target), None)


def show(rows: list[dict[str, Any]], target: float) -> None:
    """Print the table."""
    print(f"\n{'':20}{f'steps to {target:.0%} on dev':>24}{'test':>10}")
    for row in rows:
        steps = "never" if row["steps"] is None else row["steps"]
        print(f"{row['name']:20}{steps:>24}{row['test']:>10.1%}")


# ---- students ----


def first_student(bench: Bench) -> PreTrainedModel:
    """Two layers of the pretrained encoder, or the student that was asked for."""
    set_seed(bench.args.seed)
    student = with_head(bench, bench.recipe.student or demo_teacher_path())
    return student if bench.recipe.student else student_from_teacher(student, 2)


def other_student(bench: Bench) -> PreTrainedModel:
    """A DistilBERT that knows words (those of the encoder) and nothing else yet; or the student that was asked for."""
    set_seed(bench.args.seed)
    if bench.recipe.student:
        return with_head(bench, bench.recipe.student)
    words = word_vectors(bench)
    size, width = words.shape
    heads = next(count for count in (6, 4, 2, 1) if width % count == 0)
    config = DistilBertConfig(
        vocab_size=size, dim=width, hidden_dim=2 * width, n_layers=2, n_heads=heads, **labels_of(bench)
    )
    student = DistilBertForSequenceClassification(config)
    student.distilbert.embeddings.word_embeddings.weight.data.copy_(words)
    return student


def with_head(bench: Bench, checkpoint: str | Path) -> PreTrainedModel:
    """A checkpoint with a head for these classes, whether it had one for others or not."""
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, ignore_mismatched_sizes=True, **labels_of(bench)
    )
    return model


def word_vectors(bench: Bench) -> Tensor:
    """The encoder's table of tokens."""
    table: Any = bench.encoder.get_input_embeddings()
    vectors: Tensor = table.weight.detach()
    return vectors


def labels_of(bench: Bench) -> dict[str, Any]:
    """The label map of a student's configuration."""
    return {"id2label": dict(enumerate(bench.names)), "label2id": {name: i for i, name in enumerate(bench.names)}}


def train(bench: Bench, student: PreTrainedModel, args: CommentaryArguments, method: Method | None) -> AMALTrainer:
    """One run on the spoilt rows."""
    rows: Dataset = bench.data["train"]
    trainer = AMALTrainer(
        model=student,
        args=args,
        train_dataset=rows,
        eval_dataset=bench.data["validation"],
        meta_dataset=bench.data["meta"] if method is not None and method.learns else None,
        processing_class=bench.tokenizer,
        compute_metrics=classification_metrics,
        method=method,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
