"""What is checked of a trainer before any training, so that no work is lost to a bad input.

Of its data: `data_checks.py`, `label_checks.py`, `first_batch.py`; of one that generates text: `generator_checks.py`.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, Seq2SeqTrainer

from amal_hf.arguments import AMALArguments
from amal_hf.collator import is_stream
from amal_hf.generators import answers_by_token, is_encoder_decoder, without_adapters
from amal_hf.loggers import logger_of
from amal_hf.losses import JointLoss, Loss
from amal_hf.method import Method
from amal_hf.shown_states import state_widths, takes_states


logger = logger_of(__name__)


def check_arguments(losses: Any, method: Any) -> None:
    """Refuse losses and a method of the wrong kind, and a trajectory through a loss with a model of its own.

    Raises:
        TypeError, ValueError: says what to write instead.
    """
    if isinstance(losses, Loss) or (losses is not None and not isinstance(losses, Sequence)):
        raise TypeError(f"AMALTrainer: losses must be a list, got {losses!r}. Write losses=[CrossEntropy(), ...].")
    if method is not None and not isinstance(method, Method):
        raise TypeError(
            f"AMALTrainer: method must be a Method, got {method!r}. Call what makes one: method=amal(), or "
            f"amal(LossNetwork()) for a policy of your own."
        )
    moving = [loss.name for loss in losses or () if isinstance(loss, JointLoss)]
    if moving and method is not None and method.trajectory is not None:
        raise ValueError(
            f"AMALTrainer: '{method.name}' walks back through the student's steps, and the model inside loss "
            f"'{moving[0]}' does not stand where it stood then. Use a method without a trajectory: amal(), or "
            f"deep_interactions(window=...)."
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


def check_trainer(trainer: Any) -> None:
    """Refuse what a mixture of losses cannot work with.

    Raises:
        TypeError: arguments of the wrong class, or a student without a configuration or that returns tuples.
        ValueError: a combination that is not supported, with what to do instead.
    """
    for check in (_check_options, _check_outputs, _check_losses, _check_student, _check_method):
        check(trainer)


def _check_options(trainer: Any) -> None:
    args = trainer.args
    if not isinstance(args, AMALArguments):
        raise TypeError(
            f"AMALTrainer: with losses or a method, `args` must be AMALArguments, got {type(args).__name__}. It takes "
            f"the same options."
        )
    if args.use_liger_kernel:
        raise ValueError(
            "AMALTrainer: use_liger_kernel=True leaves out the logits that losses are made from. Set "
            "use_liger_kernel=False."
        )
    if getattr(args, "predict_with_generate", False) and not isinstance(trainer, Seq2SeqTrainer):
        logger.warning("predict_with_generate=True does nothing in AMALTrainer. Use AMALSeq2SeqTrainer.")


def _check_outputs(trainer: Any) -> None:
    config = getattr(trainer.model, "config", None)
    if config is None or not getattr(config, "return_dict", True):
        raise TypeError(
            f"AMALTrainer: losses read `outputs.logits`, and policies the student's configuration; "
            f"{type(trainer.model).__name__} has {'no `config`' if config is None else 'return_dict=False'}. Use a "
            f"PreTrainedModel that returns a ModelOutput."
        )


def _check_losses(trainer: Any) -> None:
    if trainer.compute_loss_func is not None:
        raise ValueError(
            "AMALTrainer: `compute_loss_func` and `losses` both define the loss. Pass the function in `losses`, "
            "returning one value an example."
        )
    if trainer.label_names != ["labels"]:
        raise ValueError(
            f"AMALTrainer: losses need a student whose labels are called 'labels'; {type(trainer.model).__name__} has "
            f"{trainer.label_names}. Sequence and token classification, regression and language modelling heads are "
            f"supported; set label_names=['labels'] where a forward takes them by **kwargs."
        )


def _check_student(trainer: Any) -> None:
    if not any(parameter.requires_grad for parameter in trainer.model.parameters()):
        raise ValueError("AMALTrainer: all parameters of the student are frozen, so there is nothing to train.")


def _check_method(trainer: Any) -> None:
    args, method = trainer.args, trainer.method
    if method.policy.needs_hidden_states:
        _check_hidden_states(without_adapters(trainer.model))
    if method.policy.needs_source_gain:
        _check_source(trainer)
    if method.policy.draws:
        _check_draws(trainer)
    if method.batch_policy is not None:
        _check_changes(trainer)
    if method.per_token:
        _check_tokens(trainer)
    if not method.learns:
        return
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
    if trainer.method.tangent.head_alone:
        raise ValueError("AMALTrainer: per_token=True does not go with LastLayer(). Use FiniteDifference().")


def _check_changes(trainer: Any) -> None:
    name = type(trainer.method.batch_policy).__name__
    student = without_adapters(trainer.model)
    if "inputs_embeds" not in inspect.signature(student.forward).parameters:
        raise ValueError(
            f"AMALTrainer: {name} changes input embeddings, and {type(student).__name__}.forward takes no "
            f"`inputs_embeds`. Use another student, or weights instead of changed batches."
        )
    _check_vectors(trainer)
    if trainer.method.batch_policy.replaces_attention and _masks_words(student):
        raise ValueError(
            f"AMALTrainer: {name} takes the place of the mask by which {type(student).__name__} sees no later or no "
            f"distant words, or of one that it makes itself. Use TokenMask(...), which leaves attention alone."
        )
    if _reads_last_token(student) and getattr(trainer.processing_class, "padding_side", "right") != "left":
        raise ValueError(
            f"AMALTrainer: {name} changes input embeddings, in which {type(student).__name__} cannot see where a text "
            f"ends: it would answer at the padding. Use a student that reads both ways (BERT and the like), or one "
            f"that reads forward with a tokenizer that pads on the left, as processing_class."
        )
    if trainer.method.tangent.head_alone:
        raise ValueError(
            f"AMALTrainer: {name} acts below the output layer, which is all that LastLayer() moves. Use "
            f"FiniteDifference()."
        )


def _reads_last_token(student: Any) -> bool:
    """Whether a classifier answers at a text's last token, which it finds by its number."""
    classifies = "SequenceClassification" in type(student).__name__
    return classifies and (_reads_forward(student) or student.config.is_encoder_decoder)


def _reads_forward(student: Any) -> bool:
    kind = type(student.config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def _masks_words(student: Any) -> bool:
    """Whether the student's own attention is to some of the words only, or takes no mask for pairs of tokens."""
    config = student.config
    layers = getattr(config, "layer_types", None) or ()
    local = any("full" not in layer for layer in layers) or getattr(config, "attention_window", None) is not None
    one_sided = _reads_forward(student) or config.is_encoder_decoder or getattr(config, "is_decoder", False)
    return local or one_sided or config.model_type in ("deberta", "deberta-v2")


def _check_hidden_states(student: Any) -> None:
    state_widths(student.config)
    if not takes_states(student):
        raise ValueError(
            f"AMALTrainer: the policy reads the student's hidden states, and {type(student).__name__}.forward takes "
            f"no `output_hidden_states`. Use a policy without them: LossNetwork()."
        )


def _check_source(trainer: Any) -> None:
    reads = f"AMALTrainer: {type(trainer.method.policy).__name__} reads what a target gains from its source"
    if not is_encoder_decoder(trainer.model):
        raise ValueError(
            f"{reads}, and {type(without_adapters(trainer.model)).__name__} is no encoder-decoder. Use SmallLoss() "
            f"in the place of SourceGain(), and StateNetwork() without source_gain."
        )
    if trainer.method.per_token:
        raise ValueError(f"{reads}, which a token has none of by itself. Leave per_token out.")


def _check_draws(trainer: Any) -> None:
    args, draws = trainer.args, f"AMALTrainer: {type(trainer.method.policy).__name__}(draw=True) draws rows"
    if is_stream(trainer.train_dataset):
        raise ValueError(f"{draws}, which a stream does not have at hand. Use a datasets.Dataset, or leave draw out.")
    if args.train_sampling_strategy != "random":
        raise ValueError(
            f"{draws} at random, and train_sampling_strategy is '{args.train_sampling_strategy}'. Leave it at "
            f"'random', or leave draw out."
        )
    if args.accelerator_config.dispatch_batches:
        raise ValueError(
            f"{draws} in every process, and dispatch_batches=True has one that reads. Leave one of them out."
        )


def _check_vectors(trainer: Any) -> None:
    """Of a mask over tokens, which looks them up by their ids; a student's own table may be padded."""
    vectors, tokenizer = getattr(trainer.method.batch_policy, "vectors", None), trainer.processing_class
    if vectors is not None and hasattr(tokenizer, "__len__") and len(vectors) < len(tokenizer):
        raise ValueError(
            f"AMALTrainer: {type(trainer.method.batch_policy).__name__} has vectors of {len(vectors)} tokens, and "
            f"processing_class knows {len(tokenizer)}. Make it of the student's own table, or of one for the same "
            f"tokenizer."
        )


def _check_meta_step(trainer: Any) -> None:
    for check in (_check_processes, _check_attention, check_timing, _check_replay, _check_scaler):
        check(trainer)


def check_timing(trainer: Any) -> None:
    """Refuse steps at which a method cannot learn; asked before every run, since a search sets arguments.

    Raises:
        ValueError: says which argument, and what to set it to.
    """
    _check_interval(trainer)
    _check_restarts(trainer)


def _check_attention(trainer: Any) -> None:
    attention = getattr(trainer.model.config, "_attn_implementation", None) or "eager"
    tangent, trajectory = trainer.method.tangent, trainer.method.trajectory
    used, other = (tangent, "FiniteDifference") if trajectory is None else (trajectory.product, "FiniteProduct")
    if used.needs_eager_attention and attention != "eager":
        raise ValueError(
            f"AMALTrainer: {type(used).__name__}() differentiates attention in a way that '{attention}' cannot be. "
            f"Load the student with attn_implementation='eager', or use {other}()."
        )


def _check_interval(trainer: Any) -> None:
    method = trainer.method
    interval, trajectory = trainer.args.meta_interval or method.usual_interval, method.trajectory
    if method.policy.holds_for_one_step and interval > method.window:
        raise ValueError(
            f"AMALTrainer: the weights of '{method.name}' are those of one optimizer step, so every step needs its "
            f"slopes; meta_interval is {interval}. Leave it out; with Method(window=B) B steps share one meta "
            f"gradient."
        )
    if trajectory is not None and interval < trajectory.steps:
        raise ValueError(
            f"AMALTrainer: '{method.name}' learns through {trajectory.steps} steps and cannot do so every {interval}. "
            f"Set meta_interval to {trajectory.steps} or more, or leave it out."
        )


def _check_restarts(trainer: Any) -> None:
    args, method = trainer.args, trainer.method
    if not method.restart_every:
        return
    if args.lr_scheduler_type != "constant" or args.get_warmup_steps(100):
        raise ValueError(
            f"AMALTrainer: '{method.name}' lets the student begin again every {method.restart_every} steps, and a "
            f"learning rate that changes over the whole run would make every short run another one. Set "
            f'lr_scheduler_type="constant" and no warm-up.'
        )
    interval = args.meta_interval or method.usual_interval
    if interval != method.restart_every:
        raise ValueError(
            f"AMALTrainer: '{method.name}' learns at the end of each short run of {method.restart_every} steps; "
            f"meta_interval={interval} has no meaning there. Leave it out."
        )


def _check_replay(trainer: Any) -> None:
    """Of a trajectory: its steps are taken again, from the losses of examples and weights as they were."""
    if trainer.method.trajectory is None:
        return
    if getattr(trainer.model.config.get_text_config(), "output_router_logits", False):
        raise ValueError(
            f"AMALTrainer: '{trainer.method.name}' walks back through the student's steps, and the router's loss of "
            f"{type(trainer.model).__name__} is not one of examples. Set student.config.output_router_logits = False, "
            f"or use amal()."
        )


def check_smoothing(kind: str | None, smoothing: float) -> None:
    """Refuse smoothed numbers, of which evaluation would make classes; say that answers of yes or no are left alone.

    Raises:
        ValueError: label smoothing for a student that hits numbers.
    """
    if kind == "regression" and smoothing:
        raise ValueError(
            f"AMALTrainer: label_smoothing_factor={smoothing} spreads a label over classes, and the labels of this "
            f"student are numbers. Leave it out."
        )
    if kind == "multi_label_classification" and smoothing:
        logger.warning(
            "Labels that are answers of yes or no are not smoothed: label_smoothing_factor=%s is not used.", smoothing
        )


def _check_scaler(trainer: Any) -> None:
    if trainer.method.trajectory is not None and trainer.accelerator.mixed_precision == "fp16":
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
    if not method.tangent.forward_only or method.batch_policy or method.trajectory:
        raise ValueError(
            f"AMALTrainer: '{method.name}' needs all parameters in one place, and FSDP2 cuts them over processes. "
            f"Under FSDP2 use a policy of weights with FiniteDifference() and no trajectory: amal()."
        )
