"""A smaller student cut from its teacher.

The student is the teacher with some layers left out: embeddings, head and the kept layers start with the teacher's
weights, as DistilBERT did (Sanh et al. 2019, https://arxiv.org/abs/1910.01108), and as was done with encoder-decoders
that sum up and translate (Shleifer and Rush 2020, https://arxiv.org/abs/2010.13002).

1. Find the stack of layers, the one `ModuleList` as long as the configuration says; encoder-decoders have two.
2. Choose which layers stay.
3. Build the same class from a shortened configuration and load the teacher's weights, the kept layers renumbered.
"""

import copy
import itertools
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


_BY_LAYER = ("attention_layers", "attention_window", "layer_types", "mlp_layer_types", "no_rope_layers")
"""What configurations list by layer, as full or sliding attention; a layer keeps its own at its new place."""

Model = TypeVar("Model", bound=PreTrainedModel)


class _Stack(NamedTuple):
    """Layers one after the other.

    Attributes:
        name: of the `ModuleList`.
        depth: how many they are.
        field: of the configuration, that says so.
    """

    name: str
    depth: int
    field: str


def student_from_teacher(
    teacher: Model, layers: int | Sequence[int], decoder_layers: int | Sequence[int] | None = None
) -> Model:
    """Copy a teacher with only some of its layers.

    Labels, head, embeddings, dtype and device stay as they are. The teacher is not touched and shares no storage with
    the student, which comes back in training mode. Saving and loading the student works as for any other model.

    Args:
        teacher: a transformers model with one stack of layers (BERT, RoBERTa, DistilBERT, ELECTRA, ModernBERT and
            others built like them), or an encoder-decoder (BART, Marian, T5, Whisper and others built like them).
        layers: which layers stay, of an encoder-decoder those of the encoder. A number n keeps n evenly spaced layers,
            the first and the last among them (1 keeps the first): 6 of 12 are 0, 2, 4, 7, 9, 11, DistilBERT's choice.
            A sequence names the layers itself, counted from 0, in ascending order.
        decoder_layers: the same of the decoder; as `layers` by default.

    Raises:
        ValueError: no single stack of layers is found, there is no decoder to cut, a layer does not exist or is named
            twice or out of order, or a kept layer cannot stand at its new place (ModernBERT's layer 0 has no norm of
            its own and must be kept, T5's layers 0 tell positions).
    """
    stacks = _stacks(teacher)
    if decoder_layers is not None and len(stacks) == 1:
        raise ValueError(f"{type(teacher).__name__} has no decoder beside its layers: leave decoder_layers out.")
    asked = [layers, layers if decoder_layers is None else decoder_layers]
    kept = {stack: _kept(which, stack.depth) for stack, which in zip(stacks, asked, strict=False)}
    student = type(teacher)(_shortened(teacher.config, kept))
    weights = teacher.state_dict()
    for stack, places in kept.items():
        weights = _renumbered(weights, stack.name, places)
    student.to(device=teacher.device)  # type: ignore[call-arg] # transformers hides `self`
    _give_dtypes(student, weights)
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        first = all(places[0] == 0 for places in kept.values())
        advice = "Try others, such as the first ones" if first else "Keep layer 0 and try again"
        raise ValueError(
            f"Layers {' and '.join(map(str, kept.values()))} of {type(teacher).__name__} do not fit a model of that "
            f"many, because some architectures build a layer according to its place. {advice}. PyTorch said: {error}"
        ) from error
    if teacher.can_generate():
        student.generation_config = copy.deepcopy(teacher.generation_config)
    return student


_DECODER_DEPTHS = ("decoder_layers", "num_decoder_layers")


def _stacks(teacher: PreTrainedModel) -> list[_Stack]:
    """The stack of layers; of an encoder-decoder that of the encoder, and that of the decoder."""
    config = teacher.config
    lists = {name: len(module) for name, module in teacher.named_modules() if isinstance(module, nn.ModuleList)}
    # Not those within a layer, as T5 has them.
    outer = {name: depth for name, depth in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    of_decoder = {name for name in outer if config.is_encoder_decoder and ".decoder." in f".{name}"}
    sides = {"num_hidden_layers": outer.keys() - of_decoder}
    if of_decoder:
        sides[next((name for name in _DECODER_DEPTHS if hasattr(config, name)), "decoder_layers")] = of_decoder
    return [_the_stack(teacher, field, {name: outer[name] for name in names}) for field, names in sides.items()]


def _the_stack(teacher: PreTrainedModel, field: str, lists: dict[str, int]) -> _Stack:
    depth = getattr(teacher.config, field, None)  # models of several parts have none of their own
    fitting = [name for name, length in lists.items() if length == depth]
    if depth is None or len(fitting) != 1:
        lists = dict(sorted(lists.items()))
        raise ValueError(
            f"{type(teacher).__name__} is not supported: expected exactly one ModuleList of {field}={depth} layers, "
            f"found {len(fitting)} among {lists}. Build the student by hand from a configuration."
        )
    return _Stack(fitting[0], depth, field)


def _kept(layers: int | Sequence[int], depth: int) -> list[int]:
    return _evenly_spaced(layers, depth) if isinstance(layers, int) else _checked(layers, depth)


def _evenly_spaced(count: int, depth: int) -> list[int]:
    """`count` layers out of `depth`, the first and the last included."""
    if not 1 <= count <= depth:
        raise ValueError(f"Cannot keep {count} layers: the teacher has {depth}, so pass a number from 1 to {depth}.")
    step = (depth - 1) / max(count - 1, 1)
    return [round(place * step) for place in range(count)]


def _checked(layers: Sequence[int], depth: int) -> list[int]:
    """The layers asked for, once they are known to exist and to ascend."""
    kept = list(layers)
    missing = [layer for layer in kept if not 0 <= layer < depth]
    if missing or not kept:
        raise ValueError(
            f"Layers {missing or kept} cannot be kept: the teacher has layers 0 to {depth - 1}, and at least one must "
            "stay. Layers are counted from 0."
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(kept)):
        raise ValueError(f"Layers must ascend and appear once, got {kept}. Pass {sorted(set(kept))}.")
    return kept


def _shortened(config: PreTrainedConfig, kept: dict[_Stack, list[int]]) -> PreTrainedConfig:
    """A copy of the configuration for the kept layers only."""
    short, (first, *_) = copy.deepcopy(config), kept.values()
    for stack, places in kept.items():
        setattr(short, stack.field, len(places))
    for name, entries in config.to_dict().items():
        if name in _BY_LAYER and isinstance(entries, list):
            setattr(short, name, [entries[layer] for layer in first])
    if hasattr(short, "attention_layers"):  # of GPT-Neo: what `attention_types` says in short
        short.attention_types = [[short.attention_layers, 1]]
    return short


def _give_dtypes(student: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Weights in the precision of those they will take over; what is not saved, as rotary frequencies, in its own."""
    for name, weight in student.state_dict(keep_vars=True).items():
        if name in weights:
            weight.data = weight.data.to(weights[name].dtype)


def _renumbered(state: dict[str, Tensor], stack: str, kept: list[int]) -> dict[str, Tensor]:
    """The teacher's weights under the names they have in the student."""
    new_place = {str(layer): place for place, layer in enumerate(kept)}
    renamed = {}
    for name, weight in state.items():
        if not name.startswith(f"{stack}."):
            renamed[name] = weight
            continue
        layer, _, rest = name.removeprefix(f"{stack}.").partition(".")
        if layer in new_place:
            renamed[f"{stack}.{new_place[layer]}.{rest}"] = weight
    return renamed
