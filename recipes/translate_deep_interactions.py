"""Train a small translator on pairs of which some are wrong, with one learned weight a sentence pair.

    python recipes/translate_deep_interactions.py             # numbers, dates, times and prices in words, en -> de
    python recipes/translate_deep_interactions.py --dataset multi30k/ --source de --target en --rows 10000
    python recipes/translate_deep_interactions.py --runs "small-loss selection" deep_interactions
    python recipes/translate_deep_interactions.py recipes/multi30k.yaml --dataset multi30k/

1. Read the pairs; take a clean meta set, a dev and a test set out of them.
2. Exchange the targets of some of the training pairs among each other.
3. Train an encoder-decoder from scratch in each run on the same budget: all pairs alike, and with learned weights.
4. Print BLEU (with sacrebleu installed), exact matches, and how well the weights tell wrong pairs from right ones.
5. Save the last student with its card; with --push_to_hub also publish it.
"""

import copy
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from amal_hf import (
    AboveAverage,
    AMALSeq2SeqArguments,
    AMALSeq2SeqTrainer,
    CardDetails,
    Comparison,
    Contender,
    CrossEntropy,
    Delayed,
    GeneralizedCrossEntropy,
    LossNetwork,
    MeanOne,
    Method,
    SmallLoss,
    SourceGain,
    StateNetwork,
    amal,
    deep_interactions,
    translation_metrics,
)
from amal_hf.card_check import is_language
from amal_hf.command_line import parse_arguments, refuse_resuming
from amal_hf.demo_translation import translation_corpus
from amal_hf.metrics import auc
from amal_hf.publishing import reach_hub
from amal_hf.translation import exact_match


def of_long_runs(draw: bool = True) -> Method:
    """For real sentences: one gradient over many clean pairs judges the pairs of 10 steps, a network that reads no
    states learns from it what a target's gain from its source is worth, and its weights are used after a quarter of
    training: pairs are drawn by them, for which it is asked anew in each pass, or weighed, which was behind.
    """
    options = {"likelihoods": True, "labels": False, "source_gain": True}
    network = StateNetwork((), learning_rate=5e-4, normalisation=AboveAverage(), **options)
    return deep_interactions(Delayed(network, until=0.25, draw=draw), window=10)


RUNS: dict[str, Callable[[float], Method | None]] = {
    "all pairs alike": lambda wrong: None,
    "small-loss selection": lambda wrong: Method("small_loss", SmallLoss(wrong)),
    "source-gain selection": lambda wrong: Method("source_gain", SourceGain(wrong)),
    "deep_interactions": lambda wrong: deep_interactions(StateNetwork(normalisation=MeanOne())),
    "long_runs": lambda wrong: of_long_runs(draw=False),
    "long_runs_drawn": lambda wrong: of_long_runs(),
    "loss_network": lambda wrong: amal(LossNetwork(normalisation=MeanOne())),
}
"""By the share of wrong pairs, which the two selections are told and no other run is."""


@dataclass
class RecipeArguments:
    """What to translate, and with what."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "JSON lines with one column a language, or a folder of train/valid/test files: either such JSON "
            "lines, or parallel text files ending in the languages (train.en, train.de). Built in by default."
        },
    )
    source: str = field(default="en", metadata={"help": "Language to translate from."})
    target: str = field(default="de", metadata={"help": "Language to translate into."})
    rows: int = field(default=6000, metadata={"help": "Pairs to use, held-out ones included."})
    held_out: int = field(default=300, metadata={"help": "Pairs each of meta, dev and test set."})
    shuffled: float = field(default=0.3, metadata={"help": "Share of the training pairs that get a wrong target."})
    runs: list[str] = field(
        default_factory=lambda: ["all pairs alike", "deep_interactions"],
        metadata={"help": f"Among {list(RUNS)}; the last one's student is saved."},
    )
    loss_q: float | None = field(
        default=None,
        metadata={
            "help": "Exponent of generalised cross-entropy, in (0, 1], for all runs: 0.3 follows pairs less that the "
            "student does not believe. Plain cross-entropy by default."
        },
    )
    student: str = field(default="bart", metadata={"help": "Kind of model.", "choices": ["bart", "t5"]})
    width: int = field(default=96, metadata={"help": "Width of the model."})
    layers: int = field(default=2, metadata={"help": "Layers of encoder and of decoder."})
    vocabulary: int = field(default=3000, metadata={"help": "Commonest words of both languages that are known."})
    max_length: int = field(default=40, metadata={"help": "Words at which a sentence is cut."})
    smoke: bool = field(
        default=False, metadata={"help": "A short run that shows that everything works; its scores say nothing."}
    )


@dataclass
class TranslateArguments(AMALSeq2SeqArguments):
    """Training arguments that suit a small model from scratch."""

    output_dir: str = "out/translate_deep_interactions"
    num_train_epochs: float = 8.0
    learning_rate: float = 2e-3
    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 100
    warmup_steps: float = 0.1
    logging_steps: float = 20
    save_strategy: str = "no"
    meta_batch_size: int = 32
    predict_with_generate: bool = True
    generation_max_length: int | None = 24
    dataloader_pin_memory: bool = False


def main() -> None:
    """Run the recipe."""
    recipe, args = parse(sys.argv[1:])
    reach_hub(args)
    pairs, wrong = load_data(recipe, args.seed)
    tokenizer = word_tokenizer(pairs["train"], recipe)
    data = tokenised(pairs, tokenizer, recipe)
    rows = []
    for name in recipe.runs:
        trainer, seconds = train(name, recipe, args, data, tokenizer)
        rows.append(scores(name, trainer, seconds, data, wrong))
    show(rows)
    save(trainer, rows, recipe, args)


def parse(command_line: list[str]) -> tuple[RecipeArguments, TranslateArguments]:
    """Arguments from flags, or from one YAML or JSON file."""
    recipe, args = parse_arguments([RecipeArguments, TranslateArguments], command_line)
    refuse_resuming(args)
    if not recipe.runs or not set(recipe.runs) <= set(RUNS):
        raise ValueError(f"--runs: expected some of {list(RUNS)}, got {recipe.runs}.")
    if len(set(recipe.runs)) < len(recipe.runs):
        raise ValueError(f"--runs: each once, got {recipe.runs}.")
    if not 0 <= recipe.shuffled < 1:
        raise ValueError(f"--shuffled: expected a share of the pairs in [0, 1), got {recipe.shuffled}.")
    if recipe.smoke:
        recipe.rows, recipe.held_out, recipe.width = min(recipe.rows, 800), 60, 32
        args.num_train_epochs, args.logging_steps = 2.0, 2  # the second pass can be drawn
    return recipe, args


def load_data(recipe: RecipeArguments, seed: int) -> tuple[DatasetDict, np.ndarray]:
    """Splits train, meta, validation and test with a column a language; and which training pairs are wrong."""
    given = read_pairs(recipe, seed)
    n = recipe.held_out
    rows = given.shuffle(seed=seed).select(range(min(recipe.rows, len(given))))
    if len(rows) < 4 * n:
        raise ValueError(f"{len(rows)} pairs are too few for three held-out sets of {n}; lower --held_out.")
    parts = {name: rows.select(range(i * n, (i + 1) * n)) for i, name in enumerate(("meta", "validation", "test"))}
    train, wrong = shuffle_targets(rows.select(range(3 * n, len(rows))), recipe.target, recipe.shuffled, seed)
    data = DatasetDict({"train": train, **parts})
    print("Data: " + ", ".join(f"{name} {len(split)}" for name, split in data.items()) + f"; wrong {wrong.sum()}")
    return data, wrong


def read_pairs(recipe: RecipeArguments, seed: int) -> Dataset:
    """All pairs, from wherever they come; sentences without a single word on one side are left out."""
    if recipe.dataset is None:
        return translation_corpus(recipe.rows, seed)
    languages = (recipe.source, recipe.target)
    place = Path(recipe.dataset)
    files = [place] if place.is_file() else sorted(place.glob("train*.jsonl"))
    if files:
        lines = [json.loads(line) for file in files for line in lines_of(file) if line]
        columns = {name: [row[name] for row in lines] for name in languages}
    else:
        texts = [place / f"train.{name}" for name in languages]
        missing = [str(file) for file in texts if not file.is_file()]
        if missing:
            raise FileNotFoundError(f"No pairs in {place}: neither train*.jsonl nor {' and '.join(missing)}.")
        columns = {name: lines_of(file) for name, file in zip(languages, texts, strict=True)}
    return Dataset.from_dict(columns).filter(lambda row: all(row[name].strip() for name in languages))


def lines_of(file: Path) -> list[str]:
    """`str.splitlines` would end a line at what stands within sentences, too, as U+2028."""
    with file.open(encoding="utf-8") as lines:
        return [line.rstrip("\n") for line in lines]


def shuffle_targets(rows: Dataset, target: str, share: float, seed: int) -> tuple[Dataset, np.ndarray]:
    """Hand the targets of a share of the pairs round among these, so that each has another's."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(rows))[: round(share * len(rows))]
    targets = np.array(rows[target][:], dtype=object)
    before = targets.copy()
    targets[chosen] = targets[np.roll(chosen, 1)]
    return rows.remove_columns(target).add_column(target, targets.tolist()), before != targets


def word_tokenizer(rows: Dataset, recipe: RecipeArguments) -> PreTrainedTokenizerBase:
    """One token a word, for both languages together."""
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    both = [*rows[recipe.source][:], *rows[recipe.target][:]]
    words.train_from_iterator(both, trainers.WordLevelTrainer(vocab_size=recipe.vocabulary, special_tokens=special))
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", special.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )


def tokenised(data: DatasetDict, tokenizer: PreTrainedTokenizerBase, recipe: RecipeArguments) -> DatasetDict:
    """Token ids of sources and targets."""

    def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
        limits = {"truncation": True, "max_length": recipe.max_length, "return_token_type_ids": False}
        labels = tokenizer(rows[recipe.target], **limits)["input_ids"]
        return {**tokenizer(rows[recipe.source], **limits), "labels": labels}

    return data.map(encode, batched=True, desc="tokenising")


def new_bart(tokenizer: PreTrainedTokenizerBase, recipe: RecipeArguments) -> PreTrainedModel:
    """A random encoder-decoder that counts positions from the beginning: best for the short forms of the default."""
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer),
            d_model=recipe.width,
            encoder_layers=recipe.layers,
            decoder_layers=recipe.layers,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=2 * recipe.width,
            decoder_ffn_dim=2 * recipe.width,
            max_position_embeddings=128,
            scale_embedding=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.bos_token_id,
            forced_eos_token_id=None,
        )
    )


def new_t5(tokenizer: PreTrainedTokenizerBase, recipe: RecipeArguments) -> PreTrainedModel:
    """One that sees how far words are apart: it reads the source of free sentences epochs before the other does."""
    return T5ForConditionalGeneration(
        T5Config(  # type: ignore[call-arg]  # the first token is not in its signature
            vocab_size=len(tokenizer),
            d_model=recipe.width,
            d_kv=recipe.width // 4,
            d_ff=4 * recipe.width,
            num_layers=recipe.layers,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )


STUDENTS = {"bart": new_bart, "t5": new_t5}


def train(
    name: str,
    recipe: RecipeArguments,
    args: TranslateArguments,
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[AMALSeq2SeqTrainer, float]:
    """Train one student; all start from the same weights and see the same batches."""
    print(f"\n{name}: {args.num_train_epochs:g} epochs")
    set_seed(args.seed)
    own = copy.copy(args)
    own.push_to_hub = args.push_to_hub and name == recipe.runs[-1]
    loss = CrossEntropy() if recipe.loss_q is None else GeneralizedCrossEntropy(recipe.loss_q)
    student, method = STUDENTS[recipe.student](tokenizer, recipe), RUNS[name](recipe.shuffled)
    trainer = new_trainer(student, method, own, data, tokenizer, loss)
    return trainer, trainer.train().metrics["train_runtime"]


def new_trainer(
    student: PreTrainedModel,
    method: Method | None,
    args: TranslateArguments,
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    loss: CrossEntropy,
) -> AMALSeq2SeqTrainer:
    """Everything but the training."""
    return AMALSeq2SeqTrainer(
        model=student,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        meta_dataset=data["meta"] if method is not None and method.learns else None,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        # BLEU where sacrebleu is installed, the share of exact matches in any case.
        compute_metrics=translation_metrics(tokenizer)
        if importlib.util.find_spec("sacrebleu")
        else exact_match(tokenizer),
        losses=[loss],
        method=method,
    )


def scores(
    name: str, trainer: AMALSeq2SeqTrainer, seconds: float, data: DatasetDict, wrong: np.ndarray
) -> dict[str, Any]:
    """A row of the table, as plain numbers."""
    found = trainer.predict(data["test"]).metrics or {}
    weights = np.array(trainer.example_weights()["labels"][:])
    seen = np.isfinite(weights)
    told = auc(weights[seen], ~wrong[seen]) if wrong[seen].any() and not wrong[seen].all() else None
    return {
        "name": name,
        "bleu": found.get("test_bleu"),
        "exact_match": found["test_exact_match"],
        "loss": found["test_loss"],
        "auc_right_pairs": told,
        "train_seconds": seconds,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    columns = ("BLEU", "exact", "test loss", "AUC", "seconds")
    print(f"\n{'':20}" + "".join(f"{column:>12}" for column in columns))
    for row in rows:
        numbers = (row["bleu"], row["exact_match"], row["loss"], row["auc_right_pairs"], row["train_seconds"])
        forms = ("{:.1f}", "{:.1%}", "{:.3f}", "{:.3f}", "{:.0f}")
        cells = ["-" if number is None else form.format(number) for form, number in zip(forms, numbers, strict=True)]
        print(f"{row['name']:20}" + "".join(f"{cell:>12}" for cell in cells))


def card_details(recipe: RecipeArguments, rows: list[dict[str, Any]]) -> CardDetails:
    """What the student's card cannot know by itself."""
    contenders = tuple(Contender(row["name"], row["exact_match"], train_seconds=row["train_seconds"]) for row in rows)
    own = recipe.dataset is None
    data = "numbers, dates, times and prices in words, made by amal_hf" if own else Path(recipe.dataset or "").name
    return CardDetails(
        language=tuple(filter(is_language, (recipe.source, recipe.target))),  # a column may have any name
        tasks="translation",
        license="apache-2.0" if own else "",
        dataset=f"{data}; {recipe.shuffled:.0%} of the training pairs were given a wrong target",
        data_license="Apache-2.0" if own else "",
        comparison=Comparison(contenders, rows[-1]["name"], metric="exact_match", dataset=data),
    )


def save(
    trainer: AMALSeq2SeqTrainer, rows: list[dict[str, Any]], recipe: RecipeArguments, args: TranslateArguments
) -> None:
    """The last student, its card, the weight of every pair, and the table's numbers."""
    folder = Path(args.output_dir)
    trainer.example_weights().to_csv(folder / "example_weights.csv")
    (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    trainer.create_model_card(card_details(recipe, rows))
    trainer.save_model(str(folder / "student"))  # with --push_to_hub this also publishes it
    print(f"\nSaved in {folder}: student/, README.md, example_weights.csv, results.json")


if __name__ == "__main__":
    main()
