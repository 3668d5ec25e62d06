"""What is checked before any training, so that no work is lost to a bad input."""

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from amal_hf.arguments import AMALArguments
from amal_hf.collator import is_stream, is_transformed
from amal_hf.generators import answers_by_token, is_causal, is_encoder_decoder, without_adapters
from amal_hf.last_layer import LastLayer
from amal_hf.losses import IGNORED, CrossEntropy, Loss
from amal_hf.meta import Method
from amal_hf.shapes import EXAMPLE_ID, Batch
from amal_hf.tangents import FiniteDifference


logger = logging.getLogger(__name__)

OVERLAP_LIMIT = 1_000_000
"""Rows of a training set that are compared with the meta set; more would take longer than it is worth."""


def check_arguments(losses: Any, method: Any) -> None:
    """Refuse losses and a method of the wrong kind.

    Raises:
        TypeError: says what to write instead.
    """
    if isinstance(losses, Loss) or (losses is not None and not isinstance(losses, Sequence)):
        raise TypeError(f"AMALTrainer: losses must be a list, got {losses!r}. Write losses=[CrossEntropy(), ...].")
    if method is not None and not isinstance(method, Method):
        raise TypeError(
            f"AMALTrainer: method must be a Method, got {method!r}. Call what makes one: method=amal(), or "
            f"amal(LossNetwork()) for a policy of your own."
        )


def use_one_gpu(args: Any) -> None:
    """Never `torch.nn.DataParallel`, which `Trainer` turns to where several GPUs are visible to one process."""
    if args.n_gpu > 1:
        logger.warning(
            "%d GPUs are visible; torch.nn.DataParallel would lose the example weights, so one is used. "
            "`accelerate launch script.py` uses all.",
            args.n_gpu,
        )
        args._n_gpu = 1


def check_trainer(trainer: Any, learns: bool) -> None:
    """Refuse what a mixture of losses cannot work with.

    Raises:
        TypeError: arguments of the wrong class.
        ValueError: a combination that is not supported, with what to do instead.
    """
    args = trainer.args
    if not isinstance(args, AMALArguments):
        raise TypeError(
            f"AMALTrainer: with losses or a method, `args` must be AMALArguments, got {type(args).__name__}. It takes "
            f"the same options."
        )
    if trainer.compute_loss_func is not None:
        raise ValueError(
            "AMALTrainer: `compute_loss_func` and `losses` both define the loss. Pass the function in `losses`, "
            "returning one value an example."
        )
    if trainer.label_names != ["labels"]:
        raise ValueError(
            f"AMALTrainer: losses need a student whose labels are called 'labels'; {type(trainer.model).__name__} has "
            f"{trainer.label_names}. "
            "Sequence and token classification, regression and language modelling heads are supported."
        )
    if args.use_liger_kernel:
        raise ValueError(
            "AMALTrainer: use_liger_kernel=True leaves out the logits that losses are made from. Set "
            "use_liger_kernel=False."
        )
    if trainer.method.policy.needs_hidden_states:
        _check_hidden_states(without_adapters(trainer.model))
    if trainer.method.batch_policy is not None:
        _check_changes(trainer)
    if trainer.method.per_token:
        _check_tokens(trainer)
    if learns:
        _check_meta_step(trainer)
        if args.push_to_hub and "checkpoint" in args.hub_strategy and not args.hub_include_weights:
            logger.warning(
                "Checkpoints will be published without what the method learns, and no run can go on from them. "
                "AMALArguments(hub_include_weights=True) publishes it."
            )


def _check_tokens(trainer: Any) -> None:
    if not answers_by_token(trainer.model):
        kind = type(without_adapters(trainer.model)).__name__
        raise ValueError(
            f"AMALTrainer: '{trainer.method.name}' weighs tokens, and {kind} gives one answer for an example. Leave "
            f"per_token out."
        )
    if isinstance(trainer.method.tangent, LastLayer):
        raise ValueError("AMALTrainer: per_token=True does not go with LastLayer(). Use FiniteDifference().")


def _check_changes(trainer: Any) -> None:
    name = type(trainer.method.batch_policy).__name__
    student = without_adapters(trainer.model)
    if "inputs_embeds" not in inspect.signature(student.forward).parameters:
        raise ValueError(
            f"AMALTrainer: {name} changes input embeddings, and {type(student).__name__}.forward takes no "
            f"`inputs_embeds`. Use another student, or weights instead of changed batches."
        )
    if _reads_last_token(student) and getattr(trainer.processing_class, "padding_side", "right") != "left":
        raise ValueError(
            f"AMALTrainer: {name} changes input embeddings, in which {type(student).__name__} cannot see where a text "
            f"ends: it would answer at the padding. Use a student that reads both ways (BERT and the like), or one "
            f"that reads forward with a tokenizer that pads on the left, as processing_class."
        )
    if isinstance(trainer.method.tangent, LastLayer):
        raise ValueError(
            f"AMALTrainer: {name} acts below the output layer, which is all that LastLayer() moves. Use "
            f"FiniteDifference()."
        )


def _reads_last_token(student: Any) -> bool:
    """Whether a classifier answers at a text's last token, which it finds by its number."""
    kind = type(student.config)
    classifies = "SequenceClassification" in type(student).__name__
    forward = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    return classifies and (forward or student.config.is_encoder_decoder)


def _check_hidden_states(student: Any) -> None:
    state_widths(student.config)
    parameters = inspect.signature(student.forward).parameters.values()
    if not any(p.name == "output_hidden_states" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise ValueError(
            f"AMALTrainer: the policy reads the student's hidden states, and {type(student).__name__}.forward takes "
            f"no `output_hidden_states`. Use a policy without them: LossNetwork()."
        )


def _check_meta_step(trainer: Any) -> None:
    args = trainer.args
    _check_processes(trainer)
    interval, trajectory = args.meta_interval or trainer.method.usual_interval, trainer.method.trajectory
    if trainer.method.policy.holds_for_one_step and interval > trainer.method.window:
        raise ValueError(
            f"AMALTrainer: the weights of '{trainer.method.name}' are those of one optimizer step, so every step "
            f"needs its slopes; meta_interval is {interval}. Leave it out; with Method(window=B) B steps share one "
            f"meta gradient."
        )
    if trainer.method.restart_every and (args.lr_scheduler_type != "constant" or args.get_warmup_steps(100)):
        raise ValueError(
            f"AMALTrainer: '{trainer.method.name}' lets the student begin again every "
            f"{trainer.method.restart_every} steps, and a learning rate that changes over the whole run would make "
            f'every short run another one. Set lr_scheduler_type="constant" and no warm-up.'
        )
    if trajectory is not None and interval < trajectory.steps:
        raise ValueError(
            f"AMALTrainer: '{trainer.method.name}' learns through {trajectory.steps} steps and cannot do so every "
            f"{interval}. Set meta_interval to {trajectory.steps} or more, or leave it out."
        )
    if trainer.method.restart_every and interval != trainer.method.restart_every:
        raise ValueError(
            f"AMALTrainer: '{trainer.method.name}' learns at the end of each short run of "
            f"{trainer.method.restart_every} steps; meta_interval={interval} has no meaning there. Leave it out."
        )
    if trainer.method.trajectory is not None and args.fp16:
        raise ValueError(
            "AMALTrainer: a trajectory cannot be walked back through the gradient scaler of fp16, which skips steps. "
            "Use bf16=True."
        )


def _check_processes(trainer: Any) -> None:
    works = 'Use plain data parallelism, or FSDP2 (fsdp=True, fsdp_config={"version": 2}).'
    if trainer.is_deepspeed_enabled:
        raise ValueError(f"AMALTrainer: learned weights do not run under DeepSpeed. {works}")
    if max(trainer.get_tp_size(), trainer.get_cp_size(), trainer.get_sp_size()) > 1:
        raise ValueError(
            f"AMALTrainer: learned weights do not run where processes share examples (tensor, context or sequence "
            f"parallelism). {works}"
        )
    if trainer.args.world_size > 1 and not trainer.accelerator.even_batches:
        raise ValueError(
            "AMALTrainer: with even_batches=False some processes have no last batch, and the others would wait for "
            "them for ever. Leave it out: rows that are repeated to make batches even count for nothing here."
        )
    if trainer.is_fsdp_enabled:
        _check_sharding(trainer, works)


def _check_sharding(trainer: Any, works: str) -> None:
    plugin, method = trainer.accelerator.state.fsdp_plugin, trainer.method
    if plugin.fsdp_version != 2:
        raise ValueError(f"AMALTrainer: learned weights do not run under FSDP1, whose parameters cannot move. {works}")
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError("AMALTrainer: learned weights need parameters on the GPU. Leave cpu_offload out.")
    if not isinstance(method.tangent, FiniteDifference) or method.batch_policy or method.trajectory:
        raise ValueError(
            f"AMALTrainer: '{method.name}' needs all parameters in one place, and FSDP2 cuts them over processes. "
            f"Under FSDP2 use a policy of weights with FiniteDifference() and no trajectory: amal()."
        )


def state_widths(config: Any) -> tuple[int, ...]:
    """The widths of a student's hidden states, the embeddings' first; of encoder and decoder one after the other.

    Raises:
        ValueError: the configuration does not say.
    """
    names = ("num_layers", "num_decoder_layers") if hasattr(config, "num_decoder_layers") else ()
    names = ("encoder_layers", "decoder_layers") if hasattr(config, "decoder_layers") else names
    layers = [getattr(config, name) for name in names or ("num_hidden_layers",) if hasattr(config, name)]
    width = getattr(config, "hidden_size", None)
    if width is None or not layers:
        raise ValueError(
            f"AMALTrainer: the policy reads the student's hidden states, and {type(config).__name__} does not say how "
            f"many there are and how wide (hidden_size, num_hidden_layers). Use a policy without them: LossNetwork()."
        )
    return tuple(width for count in layers for _ in range(count + 1))


def check_generator(model: Any, losses: list[Any], method: Method, sets: dict[str, Any]) -> None:
    """Refuse what cannot be trained on a student that generates text; and `top_k` on one that does not.

    Args:
        model: the student.
        losses: as given to the trainer.
        method: how their weights are learned.
        sets: training and meta set by name.

    Raises:
        ValueError: a row without a single target token, a method that reads the output layer, or `top_k` on a
            classifier.
    """
    cut = [loss.name for loss in losses if getattr(loss, "top", None) is not None]
    if cut and method.per_token:
        raise ValueError(f"Distillation '{cut[0]}': top_k does not go with per_token=True. Leave one of them out.")
    if not is_causal(model) and not is_encoder_decoder(model):
        if cut:
            raise ValueError(
                f"Distillation '{cut[0]}': top_k is for students that generate text; {type(model).__name__} has few "
                "classes. Leave it out."
            )
        return
    if isinstance(method.tangent, LastLayer):
        raise ValueError(
            f"LastLayer: the output layer of {type(model).__name__} is as wide as its vocabulary, and often tied to "
            "the embeddings. Use FiniteDifference(), which works with any student."
        )
    for name, dataset in sets.items():
        _check_targets(dataset, name, is_causal(model))


def _check_targets(dataset: Any, name: str, shifted: bool) -> None:
    if not isinstance(dataset, datasets.Dataset) or is_transformed(dataset):
        return
    wanted = ("labels", "input_ids") if shifted else ("labels",)
    column = next((c for c in wanted if c in dataset.column_names), None)
    if column is None:
        return
    # The first token of a causal language model has nothing before it that could predict it.
    empty = [
        row for row, labels in enumerate(dataset[column]) if not (np.asarray(labels)[int(shifted) :] != IGNORED).any()
    ]
    if empty:
        raise ValueError(
            f"AMALTrainer: {name}['{column}'] has no target token in {len(empty)} of {len(dataset)} rows: "
            f"{', '.join(map(str, empty[:5]))}{' ...' if len(empty) > 5 else ''}. Such a row has no loss "
            f"{'(the first token is never predicted) ' if shifted else ''}and would earn weights from nothing; "
            "remove these rows."
        )


def check_data(train_dataset: Any, meta_dataset: Any, method: Method, losses: list[Any], num_labels: int) -> None:
    """Refuse data that training would fail on.

    Raises:
        ValueError: an empty set, a loss's column of labels that is not there, several sets in one, no meta set where
            one is needed, a stream as meta set, a table of weights over a stream without ids, or labels that are NaN
            or outside the classes.
    """
    check_labels(train_dataset, "train_dataset", num_labels)
    for loss in losses:
        if isinstance(loss, CrossEntropy) and loss.columns:
            _check_column(train_dataset, loss, num_labels)
    columns = getattr(train_dataset, "column_names", None)
    if isinstance(meta_dataset, datasets.DatasetDict):
        raise ValueError(
            f"AMALTrainer: meta_dataset holds several splits, {list(meta_dataset)}. Pass one: meta_dataset[...]."
        )
    if method.policy.needs_ids and is_stream(train_dataset) and columns is not None and EXAMPLE_ID not in columns:
        raise ValueError(
            f"AMALTrainer: method '{method.name}' keeps weights by example, and the training set is a stream without "
            f"column '{EXAMPLE_ID}' (it has {columns}). "
            "Add a column of unique whole numbers under this name, or use a policy that reads the examples: "
            "amal(LossNetwork())."
        )
    if not method.learns:
        if meta_dataset is not None:
            logger.warning(
                "The meta set is not used, since method '%s' learns nothing. Pass method=amal() to learn from it.",
                method.name,
            )
        return
    if meta_dataset is None:
        raise ValueError(
            f"AMALTrainer: method '{method.name}' learns weights on clean held-out examples; pass them as "
            f"`meta_dataset`. "
            "A few hundred rows that are in neither train nor eval set are usual."
        )
    if is_stream(meta_dataset):
        raise ValueError(
            "AMALTrainer: meta_dataset must have a length and rows by number; it is a stream. Collect it first: "
            "Dataset.from_list(list(stream))."
        )
    check_labels(meta_dataset, "meta_dataset", num_labels)


def _check_column(dataset: Any, loss: CrossEntropy, num_labels: int) -> None:
    """Refuse labels in a column of their own that are not there, or not right."""
    if isinstance(dataset, datasets.Dataset) and not is_transformed(dataset):
        if loss.column not in dataset.column_names:
            raise ValueError(
                f"Loss '{loss.name}': the training set has no column '{loss.column}' (it has {dataset.column_names}). "
                f"Set column= to one of these."
            )
        check_labels(dataset, "train_dataset", num_labels, loss.columns)


def check_labels(dataset: Any, name: str, num_labels: int, columns: Sequence[str] = ("labels", "label")) -> None:
    """Refuse an empty dataset, and labels that are NaN or not a class.

    Only a `datasets.Dataset` is looked through; other datasets may be slow to read or differ at every pass.

    Args:
        dataset: rows; `None` and streams are left alone.
        name: for messages.
        num_labels: classes of the student.
        columns: where labels may be; the first that is there is looked at.

    Raises:
        ValueError: says which rows.
    """
    if dataset is None or is_stream(dataset):
        return
    if len(dataset) == 0:
        raise ValueError(f"AMALTrainer: {name} is empty; it needs at least one row.")
    if not isinstance(dataset, datasets.Dataset) or is_transformed(dataset):
        return
    column = next((c for c in columns if c in dataset.column_names), None)
    if column is None:
        return
    for start in range(0, len(dataset), 10_000):
        _check_label_block(dataset[start : start + 10_000][column], start, f"{name}['{column}']", num_labels)


def _check_label_block(block: list[Any], start: int, where: str, num_labels: int) -> None:
    if any(value is None for value in block):
        raise ValueError(
            f"AMALTrainer: {where} has no label in row {start + block.index(None)}. Use {IGNORED} for a row without a "
            f"label."
        )
    flat = np.concatenate([np.atleast_1d(np.asarray(value)).ravel() for value in block])
    if np.issubdtype(flat.dtype, np.floating):
        if np.isnan(flat).any():
            rows = [start + i for i, value in enumerate(block) if np.isnan(np.asarray(value)).any()]
            raise ValueError(
                f"AMALTrainer: {where} is NaN in {len(rows)} of {len(block)} rows from {start}, first in row "
                f"{rows[0]}. Remove or fix these rows."
            )
    elif num_labels > 1 and np.issubdtype(flat.dtype, np.integer):
        wrong = flat[(flat != IGNORED) & ((flat < 0) | (flat >= num_labels))]
        if len(wrong):
            raise ValueError(
                f"AMALTrainer: {where} holds the label {wrong[0]}; the student has classes 0 to {num_labels - 1} "
                f"({IGNORED} for no label, where `read_dataset` has -1). Set num_labels when loading the student."
            )


def check_meta_batch(batch: Batch, objective: CrossEntropy) -> None:
    """Refuse a meta set without what its objective reads.

    Raises:
        ValueError: the collator makes no labels.
    """
    if objective.column not in batch:
        raise ValueError(
            f"AMALTrainer: the meta set has no '{objective.column}': its batches hold {sorted(batch)}. Weights are "
            f"learned from clean labels; give its rows a column 'label' or 'labels'."
        )


def warn_of_shared_sets(meta_dataset: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """Warn of a meta set that shares rows with the training set, or is the evaluation set."""
    if meta_dataset is not None and meta_dataset is eval_dataset:
        logger.warning(
            "The meta set is the evaluation set: its scores are then those of examples that the weights were learned "
            "on, and choosing a model by them is biased. Pass a set of its own as `meta_dataset`."
        )
    if not isinstance(train_dataset, datasets.Dataset) or not isinstance(meta_dataset, datasets.Dataset):
        return
    train_dataset, meta_dataset = (rows.with_format(None) for rows in (train_dataset, meta_dataset))
    shared = set(train_dataset.column_names) & set(meta_dataset.column_names)
    texts = sorted(c for c in shared if train_dataset.features[c] == datasets.Value("string") and c != EXAMPLE_ID)
    by_content = texts or [c for c in ("input_ids",) if c in shared]
    by_id = [EXAMPLE_ID] if EXAMPLE_ID in shared else []
    for columns in (by_content, by_id):
        count = _count_overlap(train_dataset, meta_dataset, columns) if columns else 0
        if count:
            logger.warning(
                "%d of the first %d training rows are also in the meta set (same %s). Clean rows may serve as both in "
                "a short run; a student that has learned them by heart no longer shows which other rows help. Take "
                "them out of one of the two for a long run.",
                count,
                min(len(train_dataset), OVERLAP_LIMIT),
                " and ".join(columns),
            )


def _count_overlap(train_dataset: datasets.Dataset, meta_dataset: datasets.Dataset, columns: list[str]) -> int:
    meta = set(_keys(meta_dataset, columns))
    return sum(key in meta for key in _keys(train_dataset.take(min(len(train_dataset), OVERLAP_LIMIT)), columns))


def _keys(dataset: datasets.Dataset, columns: list[str]) -> list[str]:
    rows = zip(*(dataset[column] for column in columns), strict=True)
    return [repr(row) for row in rows]
