"""What a trainer knows of its run, gathered for a model card."""

import platform
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from numpy.typing import NDArray
from torch import nn

from amal_hf.card_check import is_repository
from amal_hf.card_facts import CardDetails, RunFacts
from amal_hf.cards import EXAMPLES
from amal_hf.generators import is_encoder_decoder, without_adapters
from amal_hf.last_scores import best_step, last_scores
from amal_hf.latency import hardware_name
from amal_hf.losses import Loss
from amal_hf.method import Method
from amal_hf.model_labels import are_generic, class_count, label_column, label_names
from amal_hf.policies.shared_weights import SharedWeights
from amal_hf.run_record import present_weights, texts_of
from amal_hf.shapes import IGNORED


TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForImageClassification": "image-classification",
    "ForMaskedLM": "fill-mask",
    "ForTokenClassification": "token-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}
"""Pipeline tags by the end of a model class. What an encoder-decoder of texts is for, its class does not tell."""

HYPERPARAMETERS = (
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "seed",
    "bf16",
    "fp16",
    "loss_weights",
    "meta_interval",
    "meta_batch_size",
    "meta_warmup_steps",
    "meta_learning_rate",
    "meta_seed",
)
"""Arguments that a run is repeated with; those at `None`, `False` or -1 are left out."""

LIBRARIES = ("amal_hf", "torch", "transformers", "datasets", "accelerate", "tokenizers")

FIGURES = "figures"
"""Folder in `output_dir` of the pictures that a card shows."""

_TEXT_SHOWN = 200  # characters


def gather(trainer: Any, details: CardDetails) -> RunFacts:
    """The facts of an `AMALTrainer`'s run, whether or not it mixed losses."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    plain_model = without_adapters(model)
    folder = Path(trainer.args.output_dir)
    architecture, task = type(plain_model).__name__, details.tasks or _task(plain_model)
    details = replace(
        details,
        tags=(*details.tags, *(getattr(model, "model_tags", None) or ())),
        finetuned_from=_no_path(details.finetuned_from),
        teachers=tuple(filter(None, map(_no_path, details.teachers))),
        example=details.example or _example(trainer.processing_class, task),
    )
    common: dict[str, Any] = {
        "repo_id": trainer.hub_model_id or trainer.args.hub_model_id or folder.absolute().name,
        "details": details,
        "architecture": architecture,
        "loads_with": _loads_with(plain_model),
        "configured": {} if plain_model is model else _configured(plain_model, task),
        "vocabulary": 0 if plain_model is model else _own_vocabulary(plain_model.config),
        "task": task,
        "library": "transformers" if plain_model is model else "peft",
        "base_model": details.finetuned_from or _hub_name(getattr(plain_model.config, "_name_or_path", "")),
        "parameters": _parameter_count(plain_model),
        "labels": _labels(plain_model),
        "rows": _rows(trainer),
        "hyperparameters": _hyperparameters(trainer),
        "steps": trainer.state.global_step,
        "best_step": _earlier_step(trainer),
        "evaluation": last_scores(trainer),
        "evaluation_sets": list(trainer.eval_dataset) if isinstance(trainer.eval_dataset, dict) else [],
        "figures": [f"{FIGURES}/{file.name}" for file in sorted((folder / FIGURES).glob("*.[ps][nv]g"))],
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": hardware_name(trainer.args.device),
    }
    return RunFacts(**common, **(_mixing(trainer, details) if trainer.mixes else {}))


def _earlier_step(trainer: Any) -> int:
    """The step of the student, if that is not the last."""
    step = best_step(trainer)
    return 0 if step is None or step == trainer.state.global_step else step


def _parameter_count(model: nn.Module) -> int:
    """Of those that a student reads: PEFT keeps the old ones of modules that it trains whole (`modules_to_save`)."""
    whole = [
        name
        for name, part in model.named_modules()
        if isinstance(getattr(part, "modules_to_save", None), nn.ModuleDict)
    ]
    unread = tuple(f"{name}.original_module." for name in whole)
    # Under all names that it has: an output layer may be tied to an old table of words.
    named = model.named_parameters(remove_duplicate=False)
    return sum(parameter.numel() for parameter in {one for name, one in named if not name.startswith(unread)})


def _task(model: Any) -> str:
    task = next((tag for end, tag in TASKS.items() if type(model).__name__.endswith(end)), "")
    hears = getattr(model, "main_input_name", "input_ids") in ("input_values", "input_features")
    if hears and is_encoder_decoder(model):
        return "automatic-speech-recognition"
    return task.replace("text-", "audio-") if hears else task


def _loads_with(model: Any) -> str:
    """The class of `transformers` that the student is or is derived from."""
    kinds = (kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("transformers.models."))
    made = (kind for kind in kinds if hasattr(transformers, kind) and not kind.endswith("PreTrainedModel"))
    return next(made, "AutoModel")


def _example(tokenizer: Any, task: str) -> str:
    """An input for the snippet, where what to write depends on the tokenizer."""
    mask = getattr(tokenizer, "mask_token", None)
    return EXAMPLES[task].replace("[MASK]", mask) if mask and task == "fill-mask" else ""


def _mixing(trainer: Any, details: CardDetails) -> dict[str, Any]:
    """What is only known where losses were mixed."""
    mixture, method, changes = trainer.mixture, trainer.method, trainer.method.batch_policy
    teachers = [_hub_name(source) for source in map(_name_of, mixture.distillations) if _hub_name(source)]
    shown = trainer.hub_model_id and trainer.args.hub_include_weights
    weights = {name: column for name, column in present_weights(trainer).items() if np.isfinite(column).any()}
    sources = [method, method.policy, *mixture.losses]
    lowest, highest = _extremes(trainer, next(iter(weights.values()), None), details.shown_examples)
    return {
        "teachers": list(details.teachers) or teachers,
        "distilled": bool(mixture.distillations),
        "losses": [{"name": loss.name, "what": loss.describe()} for loss in mixture.losses],
        "method": _parts(method),
        "learned": method.policy.learns,
        "shared": isinstance(method.policy, SharedWeights),
        "weighed": not method.policy.keeps_mixture,
        "changes": "" if changes is None else type(changes).__name__,
        "changes_learned": changes is not None and changes.learns,
        "weights": [_summary(name, column) for name, column in weights.items()],
        "lowest": lowest,
        "highest": highest,
        "weights_dataset": weights_name(trainer.hub_model_id) if shown else "",
        "citations": list(dict.fromkeys(source.citation for source in sources if source.citation)),
    }


def weights_name(repo_id: str) -> str:
    """The repository of the weights of every example, beside that of the student."""
    return f"{repo_id}-weights"


def _name_of(distillation: Any) -> Any:
    source = distillation.source
    return source if isinstance(source, str) else getattr(getattr(source, "config", None), "_name_or_path", "")


def _hub_name(name: Any) -> str:
    """A repository's name, or nothing."""
    return _no_path(name) if isinstance(name, str) and is_repository(name) else ""


def _no_path(name: str) -> str:
    """The name, unless it is a path of this machine, which is nobody's business."""
    return "" if name.startswith((".", "/", "~")) or Path(name).exists() else name


def _labels(model: Any) -> list[str]:
    """The names of the classes, where there are several and they are no words."""
    names = label_names(model.config)
    return names if class_count(model) == len(names) > 1 else []


def _configured(model: Any, task: str) -> dict[str, Any]:
    """What of a classifier's configuration is its own; with adapters a pipeline reads that of the model below."""
    if not task.endswith("classification"):
        return {}
    names, kind = label_names(model.config), getattr(model.config, "problem_type", None)
    told = {"num_labels": model.config.num_labels} if are_generic(names) else {"id2label": names}
    return told if kind in (None, "single_label_classification") else {**told, "problem_type": kind}


def _own_vocabulary(config: Any) -> int:
    """How many words a student with adapters has, if the model below has others; 0 if not, or if that is unknown."""
    try:
        below = type(config).from_pretrained(config._name_or_path, local_files_only=True)
    except (OSError, ValueError):  # not read from any file, or the files are gone
        return 0
    theirs, ours = (getattr(one.get_text_config(), "vocab_size", None) for one in (below, config))
    return ours if ours is not None and ours != theirs else 0


def _rows(trainer: Any) -> dict[str, int]:
    sets = {"training": trainer.train_dataset, "meta": getattr(trainer, "meta_dataset", None)}
    if not isinstance(trainer.eval_dataset, dict):
        sets["evaluation"] = trainer.eval_dataset
    return {name: len(rows) for name, rows in sets.items() if hasattr(rows, "__len__")}


def _hyperparameters(trainer: Any) -> dict[str, Any]:
    args = trainer.args
    own = {name: getattr(args, name, None) for name in HYPERPARAMETERS}
    if not trainer.mixes:
        own = {name: value for name, value in own.items() if not name.startswith(("meta_", "loss_weights"))}
    elif not trainer.method.learns:
        own = {name: value for name, value in own.items() if not name.startswith("meta_")}
    given = {name: value for name, value in own.items() if value is not None and value is not False and value != -1}
    given.pop("num_train_epochs" if "max_steps" in given else "max_steps", None)
    if args.auto_find_batch_size:
        given["per_device_train_batch_size"] = trainer._train_batch_size // max(args.n_gpu, 1)
    named = {"optimizer": args.optim.value, "lr_scheduler_type": args.lr_scheduler_type.value}
    return _as_moved(trainer, {**given, **named})


def _as_moved(trainer: Any, named: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters with those of an optimizer and a schedule that the trainer was given, if it was."""
    optimizer, schedule = trainer.given
    if trainer.optimizer_cls_and_kwargs is not None:
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    if optimizer is not None:
        named |= {"optimizer": type(optimizer).__name__}
        for name, keys in (("learning_rate", ("initial_lr", "lr")), ("weight_decay", ("weight_decay",))):
            found = [next((group[key] for key in keys if key in group), 0.0) for group in optimizer.param_groups]
            values = sorted(set(map(float, found)))
            named[name] = values[0] if len(values) == 1 else values
    if schedule is not None:
        named |= {"lr_scheduler_type": type(schedule).__name__}
        named.pop("warmup_steps", None)
    return named


def _parts(method: Method) -> dict[str, Any]:
    """A method's choices in words, as far as they were made."""
    parts: dict[str, Any] = {"name": method.name, "weights": method.policy.describe()}
    if not method.learns:
        return parts if method.batch_policy is None else {**parts, "batch_policy": type(method.batch_policy).__name__}
    unused = {"direction", "tangent"} if method.trajectory is not None else set()
    for entry in fields(method):
        value = getattr(method, entry.name)
        if entry.name in {"name", "policy", "citation", *unused} or value == entry.default or value is None:
            continue
        if isinstance(value, Loss):
            value = value.describe()
        parts[entry.name] = value if isinstance(value, bool | int | float | str) else type(value).__name__
    return parts


def _summary(name: str, weights: NDArray[np.float32]) -> dict[str, Any]:
    """Of the examples that have the loss."""
    known = weights[np.isfinite(weights)].astype(np.float64)
    low, high = np.quantile(known, [0.05, 0.95])
    return {"loss": name, "mean": float(known.mean()), "p05": float(low), "p95": float(high)}


def _extremes(
    trainer: Any, weights: NDArray[np.float32] | None, count: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The examples with the lowest and the highest of one loss's weights, with their text."""
    rows = trainer.train_dataset
    if not count or weights is None or not isinstance(rows, datasets.Dataset):
        return [], []
    order = np.argsort(weights)[: np.isfinite(weights).sum()]
    picked = [int(number) for number in (*order[:count], *order[::-1][:count])]
    texts, plain = texts_of(rows.select(picked), trainer.processing_class), rows.with_format(None)
    ids = range(len(rows)) if trainer._given_ids is None else trainer._given_ids

    def shown(place: int, number: int) -> dict[str, Any]:
        text = " / ".join(column[place] for column in texts.values())
        known = _class(plain, number)
        weight = float(weights[number])
        return {"id": str(ids[number]), "weight": weight, "label": known, "text": text[:_TEXT_SHOWN]}

    entries = [shown(place, number) for place, number in enumerate(picked)]
    return entries[: len(order[:count])], entries[len(order[:count]) :]


def _class(rows: datasets.Dataset, number: int) -> str:
    """The label of a row, by name where it has one; empty for none."""
    column = label_column(rows)
    label = None if column is None else rows[number][column]
    if column is None or label is None or label == IGNORED:
        return ""
    feature = rows.features[column]
    if not isinstance(feature, datasets.ClassLabel):
        return str(label)
    return feature.int2str(label) if label >= 0 else ""


def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES if _is_installed(name)}


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:  # a source tree on the path
        return False
    return True
