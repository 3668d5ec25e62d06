"""Teachers: whatever gives fixed logits for a batch, without gradient, in the student's label order.

`open_teacher` turns a model, a folder or a Hub id into a teacher:

1. Find the teacher's configuration and tokenizer; the weights stay unread for now.
2. Match its labels with the student's (`label_order`).
3. Choose what it reads: the student's tensors, or the raw text (`teacher_inputs.py`).
4. Live: load it and run it on every batch. Cached: look its logits up (`teacher_cache.py`).
"""

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import snapshot_download
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from amal_hf.generators import is_causal, is_encoder_decoder, without_adapters
from amal_hf.label_order import Order, label_order, same_words, word_order
from amal_hf.model_labels import class_names, label_names
from amal_hf.shapes import Batch, Logits
from amal_hf.teacher_cache import CachedTeacher, CacheRecipe, digest_folder, digest_model, open_cache
from amal_hf.teacher_inputs import (
    Encoding,
    TeacherInputs,
    TextEncoding,
    own_tokenizer,
    row_numbers,
    student_encoding,
    text_encoding,
)
from amal_hf.top_logits import TopK


_TASKS: tuple[Any, ...] = (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)
_SMALL_FILES = ("*.json", "*.txt", "*.model")  # configuration and tokenizer of a Hub repository

Autocast: TypeAlias = Callable[[], AbstractContextManager[Any]]
"""Makes the context a teacher runs in, e.g. `accelerator.autocast`."""


class LiveTeacher:
    """A model that runs on every batch and follows it to its device."""

    def __init__(
        self,
        model: PreTrainedModel,
        order: Order = None,
        encoding: TextEncoding | None = None,
        autocast: Autocast = nullcontext,
    ) -> None:
        """Freeze the model in place: `eval()` and no gradients.

        Args:
            model: a transformers model whose outputs have `logits`.
            order: for every class of the student its place among the teacher's; None means the same order.
            encoding: raw text through the teacher's own tokenizer, by example id; None means the batch as it is.
            autocast: makes the context to run in. Default: none, full precision; only a model that Accelerate has
                prepared gets mixed precision on its own.
        """
        self.model = model.requires_grad_(False)
        self.model.train(False)
        self._order = order
        self._encoding = encoding
        self._autocast = autocast
        self._looked_at = False
        # of the class: libraries that wrap `model.forward` hide its parameters, as PEFT and torch.compile do
        plain = without_adapters(getattr(model, "_orig_mod", model))
        self._accepted = set(inspect.signature(type(plain).forward).parameters) - {"labels"}

    def __call__(self, batch: Batch) -> Logits:
        """`(B, C)`, float32, or `(B, T, C)` as the teacher gives them, on the batch's device.

        Raises:
            ValueError: text must be looked up, and the batch carries no example ids of the training set.
        """
        device = next(value.device for value in batch.values() if isinstance(value, torch.Tensor))
        if next(self.model.parameters()).device != device:
            self.model.to(device)  # type: ignore[arg-type] # transformers hides `self`
        read = batch if self._encoding is None else self._encoded(batch, self._encoding, device)
        inputs = {name: value for name, value in read.items() if name in self._accepted}
        if "use_cache" in self._accepted:
            inputs["use_cache"] = False  # keys and values of all layers, for a next word that nobody asks for
        with torch.no_grad(), self._autocast():
            logits = _logits_of(self.model(**inputs), self.model)
        if not self._looked_at:
            _check_numbers(logits)  # waits for the device, once
            self._looked_at = True
        return logits if self._order is None else logits[..., self._order]

    @staticmethod
    def _encoded(batch: Batch, encoding: TextEncoding, device: torch.device) -> Batch:
        numbers = row_numbers(batch, encoding.rows.num_rows)
        return {name: value.to(device) for name, value in encoding(numbers).items()}


def _logits_of(outputs: Any, model: PreTrainedModel) -> Logits:
    logits = getattr(outputs, "logits", None)
    if logits is None:
        raise TypeError(
            f"The teacher, a {type(model).__name__}, returns a {type(outputs).__name__} without `logits`. Load it "
            f"with the head of the student's task, or pass a function (batch) -> logits."
        )
    # Over a vocabulary a copy is the largest tensor of a step, and losses make float32 of a chunk at a time.
    found: Logits = logits if logits.ndim == 3 else logits.float()
    return found


def _check_numbers(logits: Logits) -> None:
    if bool(torch.isnan(logits).any()):
        raise ValueError(
            "The teacher's logits are NaN on the first batch, and would make the student's weights NaN at its first "
            "step. Look at the teacher: its weights, or its precision (load it with dtype=torch.float32)."
        )


def open_teacher(
    source: PreTrainedModel | str | Path,
    *,
    student: PreTrainedModel,
    inputs: TeacherInputs,
    tokenizer: PreTrainedTokenizerBase | None = None,
    cache_dir: str | Path | None = None,
    autocast: Autocast = nullcontext,
    top: TopK | None = None,
) -> LiveTeacher | CachedTeacher:
    """Make a teacher of a model, a folder or a Hub id.

    Args:
        source: the teacher. A model given as object is frozen in place; if it is the student itself, or has
            parameters in common with it, a frozen copy of it as it is now becomes the teacher. It stays on the device
            it has run on.
        student: gives labels, task (sequences or tokens), vocabulary size, and the device on which a cache is filled.
        inputs: what the teacher reads.
        tokenizer: the teacher's own tokenizer. Default: for a folder or Hub id the one saved with it, if any; for a
            model given as object the student's is assumed.
        cache_dir: where logits are kept. Default: nowhere, the teacher runs on every batch.
        autocast: makes the context the teacher runs in.
        top: which logits a cache keeps. Default: all.

    Raises:
        ValueError: labels or vocabularies do not match, the teacher is of another task or has no trained head, a cache
            is wanted for a stream, or token classification or generation with another tokenizer.
        FileNotFoundError: `source` is a path, and no folder is there.
    """
    teacher = _from_folder(source, student) if isinstance(source, str | Path) else _from_model(source, student)
    generates = is_causal(student) or is_encoder_decoder(student)
    known = teacher.tokenizer if tokenizer is None else tokenizer
    if generates:
        # A cache of the largest logits holds numbers of words, which cannot be cut afterwards.
        whole = top is None or cache_dir is None
        alike = whole and same_words(known, inputs.tokenizer)
        order: Order = word_order(teacher.config, student.config, alike)
    else:
        order = label_order(teacher.config, student.config, class_names(inputs.dataset))
    own = own_tokenizer(known, teacher.config, inputs.tokenizer, student.config)
    if own is not None and (generates or _is_a(student, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING)):
        raise ValueError(
            "The teacher's vocabulary differs from the student's, so their tokens stand at different positions and "
            "token logits cannot be compared. Use a teacher with the student's tokenizer for token classification "
            "and generation."
        )
    text = None if own is None else text_encoding(inputs, own, teacher.config)
    if cache_dir is None:
        return LiveTeacher(teacher.load(), order, text, autocast)
    encoding = student_encoding(inputs) if text is None else text
    recipe = _recipe(teacher, encoding, inputs.batch_size, student.device, autocast, top)
    return CachedTeacher(open_cache(Path(cache_dir), recipe), order)


@dataclass(frozen=True)
class _Source:
    """A teacher whose weights may still be unread."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    digest: Callable[[], str]
    load: Callable[[], PreTrainedModel]


def _from_model(model: PreTrainedModel, student: PreTrainedModel) -> _Source:
    teacher = _copied(model) if _share_parameters(model, student) else model
    return _Source(teacher.config, None, lambda: digest_model(teacher, teacher.config.to_dict()), lambda: teacher)


def _share_parameters(model: PreTrainedModel, student: PreTrainedModel) -> bool:
    """Whether freezing one would freeze the other: they are the same, or PEFT has put adapters into both."""
    return not {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in student.parameters())


def _copied(model: PreTrainedModel) -> PreTrainedModel:
    twin = copy.deepcopy(model)
    # Accelerate replaces `forward` on the object by a function that stays bound to the original's weights
    twin.__dict__.pop("forward", None)
    return twin


def _from_folder(source: str | Path, student: PreTrainedModel) -> _Source:
    folder = _located(source)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"The teacher in {folder} is adapters to another model. Load both, as AutoModelForSequenceClassification"
            f".from_pretrained does where PEFT is installed, and pass the object."
        )
    config = AutoConfig.from_pretrained(folder)
    # without these files AutoTokenizer makes up an empty tokenizer
    saved = any(folder.glob("tokenizer*")) or any(folder.glob("vocab*"))
    tokenizer = AutoTokenizer.from_pretrained(folder) if saved else None
    return _Source(config, tokenizer, lambda: digest_folder(folder), lambda: _loaded(folder, config, student))


def _located(source: str | Path) -> Path:
    """The folder with the teacher's files, downloaded if need be."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    # An id on the Hub is a name, or an owner and a name.
    if isinstance(source, Path) or source.startswith((".", "/", "~")) or len(folder.parts) > 2:
        raise FileNotFoundError(f"There is no folder {source} to load a teacher from.")
    try:
        snapshot = Path(
            snapshot_download(source, allow_patterns=[*_SMALL_FILES, "*.safetensors"], ignore_patterns="*/*")
        )
    except Exception as error:
        error.add_note(f"Teacher {source!r}: there is no folder of this name here, so it was looked for on the Hub.")
        raise
    if not any(snapshot.glob("*.safetensors")):  # an old repository: fetch the pickled weights only then
        snapshot_download(source, allow_patterns="pytorch_model*.bin", ignore_patterns="*/*")
    return snapshot


def _loaded(folder: Path, config: PreTrainedConfig, student: PreTrainedModel) -> PreTrainedModel:
    """The saved teacher as a model of the student's task, all its weights trained."""
    model_class = _class_for(config, student)
    if config.architectures and model_class.__name__ not in config.architectures:
        raise ValueError(
            f"The teacher in {folder} was saved as {config.architectures}, but this student needs a "
            f"{model_class.__name__}. Fine-tune the teacher on the student's task first."
        )
    model: PreTrainedModel
    report: dict[str, Any]
    model, report = model_class.from_pretrained(folder, output_loading_info=True)  # type: ignore[misc] # a pair
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ValueError(
            f"The teacher in {folder} lacks weights ({sorted(report['missing_keys'])}), which would be random. "
            "Fine-tune it and save it again."
        )
    return model


def _class_for(config: PreTrainedConfig, student: PreTrainedModel) -> type[PreTrainedModel]:
    """The model class of the teacher's architecture for the student's task."""
    for mapping in _TASKS:
        if _is_a(student, mapping):
            model_class: type[PreTrainedModel] = mapping[type(config)]
            return model_class
    raise ValueError(
        f"A teacher for a {type(student).__name__} cannot be loaded by name: only sequence and token classification "
        "and generation are known. Load the teacher and pass the object."
    )


def _is_a(student: PreTrainedModel, mapping: Any) -> bool:
    """Whether the student does the task of this transformers mapping (configuration class → model class)."""
    return isinstance(student, mapping.get(type(student.config), ()))


def _recipe(
    teacher: _Source,
    encoding: Encoding,
    batch_size: int,
    device: torch.device,
    autocast: Autocast,
    top: TopK | None,
) -> CacheRecipe:
    with autocast():
        on = torch.is_autocast_enabled(device.type)
        precision = str(torch.get_autocast_dtype(device.type)) if on else "as saved"
    return CacheRecipe(
        encoding=encoding,
        teacher={"teacher": teacher.digest(), "precision": precision},
        label2id={name: place for place, name in enumerate(label_names(teacher.config))},
        load=lambda: LiveTeacher(teacher.load(), autocast=autocast),
        batch_size=batch_size,
        device=device,
        top=top,
    )
