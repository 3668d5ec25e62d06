"""Students cut from their teachers: the same numbers as the teacher without the other layers."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
    Gemma3Config,
    Gemma3ForSequenceClassification,
    GPTNeoConfig,
    GPTNeoForSequenceClassification,
    LEDConfig,
    LEDForConditionalGeneration,
    LongformerConfig,
    LongformerForSequenceClassification,
    MarianConfig,
    MarianMTModel,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    SmolLM3Config,
    SmolLM3ForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    T5ForTokenClassification,
)

from amal_hf.students import student_from_teacher


DEPTH = 4
LABELS = {"id2label": {0: "no", 1: "perhaps", 2: "yes"}, "label2id": {"no": 0, "perhaps": 1, "yes": 2}}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
MODERN = {"pad_token_id": 0, "cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
DISTIL = {
    "vocab_size": 40,
    "dim": 16,
    "n_layers": DEPTH,
    "n_heads": 2,
    "hidden_dim": 24,
    "max_position_embeddings": 32,
}
T5 = {"vocab_size": 40, "d_model": 16, "num_layers": DEPTH, "num_heads": 2, "d_kv": 8, "d_ff": 24}

BERT = (BertConfig, SIZES | NO_DROPOUT, "bert.encoder.layer")
ROBERTA = (RobertaConfig, SIZES | NO_DROPOUT, "roberta.encoder.layer")
DISTILBERT = (DistilBertConfig, DISTIL, "distilbert.transformer.layer")
ELECTRA = (ElectraConfig, SIZES | NO_DROPOUT | {"embedding_size": 8}, "electra.encoder.layer")
MODERNBERT = (ModernBertConfig, SIZES | MODERN | {"local_attention": 4}, "model.layers")

FAMILIES = [
    (BertForSequenceClassification, *BERT),
    (BertForTokenClassification, *BERT),
    (RobertaForSequenceClassification, *ROBERTA),
    (RobertaForTokenClassification, *ROBERTA),
    (DistilBertForSequenceClassification, *DISTILBERT),
    (DistilBertForTokenClassification, *DISTILBERT),
    (ElectraForSequenceClassification, *ELECTRA),
    (ElectraForTokenClassification, *ELECTRA),
    (ModernBertForSequenceClassification, *MODERNBERT),
    (ModernBertForTokenClassification, *MODERNBERT),
]


def build(model_class: Any, config_class: Any, options: dict[str, Any]) -> PreTrainedModel:
    """A tiny teacher whose every trained weight differs from its initial value (norms and biases too)."""
    torch.manual_seed(0)
    model = model_class(config_class(**options, **LABELS)).eval()
    with torch.no_grad():
        for weight in filter(lambda weight: weight.requires_grad, model.parameters()):
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of two sequences, the second one padded."""
    ids = torch.arange(3, 27).view(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask).logits


def passed_over(module: nn.Module, given: tuple[Any, ...], found: Any) -> Any:
    """As if the layer were not there."""
    return (given[0], *found[1:]) if isinstance(found, tuple) else given[0]


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of the weights."""
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.fixture(params=FAMILIES, ids=lambda family: family[0].__name__)
def family(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, str]:
    """A tiny teacher and the name of its layer stack."""
    model_class, config_class, options, stack = request.param
    return build(model_class, config_class, options), stack


def test_all_layers_is_the_teacher(family: tuple[PreTrainedModel, str]) -> None:
    """Keeping every layer changes nothing, so nothing outside the layers gets lost."""
    teacher, _ = family
    student = student_from_teacher(teacher, DEPTH)
    assert type(student) is type(teacher)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=0, atol=0)


def test_layers_are_the_teachers_with_the_others_removed(family: tuple[PreTrainedModel, str]) -> None:
    """Layers 0 and 2 compute what the teacher computes once its layers 1 and 3 are taken out of the stack."""
    teacher, stack = family
    student = student_from_teacher(teacher, [0, 2])
    cut = copy.deepcopy(teacher)
    layers = cut.get_submodule(stack)
    cut.set_submodule(stack, nn.ModuleList([layers[0], layers[2]]))  # type: ignore[index]
    torch.testing.assert_close(logits(student), logits(cut), rtol=0, atol=0)
    assert not torch.allclose(logits(student), logits(teacher))


def test_weights_are_copies(family: tuple[PreTrainedModel, str]) -> None:
    """Chosen layers equal the teacher's, and training the student leaves the teacher alone."""
    teacher, stack = family
    before = weights(teacher)
    student = student_from_teacher(teacher, [0, 3])
    for place, layer in enumerate((0, 3)):
        kept = student.get_submodule(f"{stack}.{place}").state_dict()
        for name, weight in teacher.get_submodule(f"{stack}.{layer}").state_dict().items():
            assert torch.equal(kept[name], weight)
    with torch.no_grad():
        for weight in student.parameters():
            weight.zero_()
    assert teacher.config.num_hidden_layers == DEPTH
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_saved_and_loaded(family: tuple[PreTrainedModel, str], tmp_path: Any) -> None:
    """A student survives save_pretrained and from_pretrained, labels and attention kinds included."""
    teacher, _ = family
    student = student_from_teacher(teacher, [0, 1, 3])
    student.save_pretrained(tmp_path)
    model_class: Any = type(student)
    again, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.config.num_hidden_layers == 3
    assert again.config.label2id == teacher.config.label2id
    torch.testing.assert_close(logits(again), logits(student), rtol=0, atol=0)


def test_modernbert_layers_keep_their_attention() -> None:
    """ModernBERT alternates full and sliding attention: a kept layer sees as far as it did in the teacher."""
    teacher = build(ModernBertForSequenceClassification, *MODERNBERT[:2])
    assert teacher.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    student = student_from_teacher(teacher, [0, 3])
    assert student.config.layer_types == ["full_attention", "full_attention"]


DECODER = SIZES | {"num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NEO = {"num_layers": DEPTH, "hidden_size": 16, "num_heads": 2, "vocab_size": 40, "window_size": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("model_class", "config", "stack", "listed"),
    [
        (
            SmolLM3ForSequenceClassification,
            SmolLM3Config(**DECODER, no_rope_layers=[1, 0, 0, 1], **LABELS),
            "model.layers",
            {"no_rope_layers": [1, 1]},
        ),
        (
            GPTNeoForSequenceClassification,
            GPTNeoConfig(**NEO, attention_types=[[["global", "local"], 1], [["local", "global"], 1]], **LABELS),
            "transformer.h",
            {"attention_layers": ["global", "global"]},
        ),
        (
            LongformerForSequenceClassification,
            LongformerConfig(**SIZES, pad_token_id=1, attention_window=[4, 16, 16, 8], **LABELS),
            "longformer.encoder.layer",
            {"attention_window": [4, 8]},
        ),
    ],
)
def test_layers_keep_what_the_configuration_lists_of_them(
    model_class: Any, config: Any, stack: str, listed: dict[str, Any], tmp_path: Any
) -> None:
    """Positions, attention and its window, listed by layer, go with a layer, and with the saved student."""
    torch.manual_seed(0)
    teacher = model_class(config).eval()
    for weight in teacher.parameters():
        weight.data.normal_(std=0.3)
    student = student_from_teacher(teacher, [0, 3])
    assert {name: getattr(student.config, name) for name in listed} == listed
    for layer in (1, 2):
        teacher.get_submodule(f"{stack}.{layer}").register_forward_hook(passed_over)
    torch.testing.assert_close(logits(student), logits(teacher))
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(model_class.from_pretrained(tmp_path)), logits(student), rtol=0, atol=0)


def test_modernbert_needs_its_first_layer() -> None:
    """ModernBERT's layer 0 has no norm before attention, so another layer in its place would lose one silently."""
    with pytest.raises(ValueError, match="Keep layer 0"):
        student_from_teacher(build(ModernBertForSequenceClassification, *MODERNBERT[:2]), [1, 2])


def test_layers_of_several_kinds_by_place() -> None:
    """Where layer 0 is kept already, other advice is given: here every second layer has experts."""
    moe = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "mlp_only_layers": [0, 2]}
    teacher = build(Qwen3MoeForSequenceClassification, Qwen3MoeConfig, DECODER | moe)
    with pytest.raises(ValueError, match="Try others, such as the first ones"):
        student_from_teacher(teacher, [0, 2])
    assert student_from_teacher(teacher, [0, 1]).config.num_hidden_layers == 2


def test_dtype_is_kept() -> None:
    """A bfloat16 teacher gives a bfloat16 student."""
    teacher = build(BertForSequenceClassification, *BERT[:2]).bfloat16()
    assert student_from_teacher(teacher, 2).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_of_weights_alone(dtype: torch.dtype, tmp_path: Any) -> None:
    """A teacher loaded in half precision keeps its rotary frequencies in fp32, and so does its student."""
    build(ModernBertForSequenceClassification, *MODERNBERT[:2]).save_pretrained(tmp_path)
    teacher = ModernBertForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
    student = student_from_teacher(teacher, DEPTH)
    frequencies = {name: buffer for name, buffer in teacher.named_buffers() if "inv_freq" in name}
    assert {buffer.dtype for buffer in frequencies.values()} == {torch.float32}
    for name, buffer in student.named_buffers():
        torch.testing.assert_close(buffer, frequencies[name], rtol=0, atol=0)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=0, atol=0)


def test_weights_of_several_precisions(tmp_path: Any) -> None:
    """T5 in fp16 has projections in fp32, without which it overflows; a student's are too."""
    build(T5ForTokenClassification, T5Config, T5).save_pretrained(tmp_path)
    teacher = T5ForTokenClassification.from_pretrained(tmp_path, dtype=torch.float16)
    student = student_from_teacher(teacher, [0, 2])
    kept = {weight.dtype for name, weight in student.named_parameters() if name.endswith("wo.weight")}
    assert kept == {torch.float32}
    assert student.dtype == torch.float16


WRITES = {"d_model": 16, "vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0, "attention_window": 8}
WRITES |= {
    f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("ffn_dim", 16), ("layers", 4))
}
WRITES |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")} | {"decoder_start_token_id": 1}


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize(
    ("model_class", "config_class", "options"),
    [
        (BartForConditionalGeneration, BartConfig, WRITES),
        (BartForSequenceClassification, BartConfig, WRITES | {"eos_token_id": 26}),
        (MarianMTModel, MarianConfig, WRITES),
        (LEDForConditionalGeneration, LEDConfig, WRITES),
        (T5ForConditionalGeneration, T5Config, T5 | {"decoder_start_token_id": 0}),
        (T5ForSequenceClassification, T5Config, T5 | {"decoder_start_token_id": 0, "eos_token_id": 26}),
    ],
)
def test_encoder_decoders_are_cut_on_both_sides(
    model_class: Any, config_class: Any, options: dict[str, Any], depth: int, tmp_path: Any
) -> None:
    """They compute what the teacher does once both sides' other layers are passed over; also after saving.

    Without a word on the decoder as many stay there. Two and three are also as long as the lists within T5's layers.
    """
    name = "num_decoder_layers" if config_class is T5Config else "decoder_layers"
    teacher = build(model_class, config_class, options | {name: depth, "dropout": 0.0, "dropout_rate": 0.0})
    student, same = student_from_teacher(teacher, [0, 2], [0, depth - 1]), student_from_teacher(teacher, 2)
    assert [getattr(model.config, name) for model in (student, same, teacher)] == [2, 2, depth]
    assert [model.config.num_hidden_layers for model in (student, same, teacher)] == [2, 2, 4]
    given = {"input_ids": torch.arange(3, 27).view(2, 12)}
    given["input_ids"][:, -1] = 26
    if model_class.__name__.endswith(("Generation", "MTModel")):
        given["labels"] = given["input_ids"][:, 1:6].contiguous()
    student.save_pretrained(tmp_path)
    for side, left in (("encoder", (1, 3)), ("decoder", range(1, depth - 1))):
        found = next(module for name, module in teacher.named_modules() if name.split(".")[-1] == side)
        stack = found.block if config_class is T5Config else found.layers
        for layer in left:
            stack[layer].register_forward_hook(passed_over)
    with torch.no_grad():
        expected, found, again = (
            model.eval()(**given, use_cache=False).logits
            for model in (teacher, student, model_class.from_pretrained(tmp_path))
        )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(again, found, rtol=0, atol=0)


def test_a_decoder_that_is_not_there() -> None:
    """Is not cut, and layers of one that cannot stand at their places are refused."""
    with pytest.raises(ValueError, match="BertForSequenceClassification has no decoder"):
        student_from_teacher(build(BertForSequenceClassification, *BERT[:2]), 2, 2)
    with pytest.raises(
        ValueError, match=r"Layers \[0, 3\] and \[1, 2\] of T5ForConditionalGeneration .* Keep layer 0"
    ):
        student_from_teacher(build(T5ForConditionalGeneration, T5Config, T5), 2, [1, 2])


def test_ready_to_train() -> None:
    """A student comes back as a freshly built model does: in training mode, every weight trainable."""
    teacher = build(BertForSequenceClassification, *BERT[:2]).requires_grad_(False)
    student = student_from_teacher(teacher, 2)
    assert student.training
    assert all(weight.requires_grad for weight in student.parameters())


@pytest.mark.parametrize(
    ("depth", "count", "kept"),
    [(12, 6, [0, 2, 4, 7, 9, 11]), (12, 1, [0]), (12, 2, [0, 11]), (4, 3, [0, 2, 3]), (5, 5, [0, 1, 2, 3, 4])],
)
def test_a_number_spreads_evenly(depth: int, count: int, kept: list[int]) -> None:
    """n layers are evenly spaced with both ends; 6 of 12 is DistilBERT's published choice."""
    teacher = build(BertForSequenceClassification, BertConfig, BERT[1] | {"num_hidden_layers": depth})
    by_number, by_name = student_from_teacher(teacher, count), student_from_teacher(teacher, kept)
    torch.testing.assert_close(logits(by_number), logits(by_name), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (0, "from 1 to 4"),
        (5, "from 1 to 4"),
        ([0, 4], r"Layers \[4\]"),
        ([-1], r"Layers \[-1\]"),
        ([], "at least one"),
        ([0, 0], "appear once"),
        ([2, 0], "ascend"),
    ],
)
def test_impossible_layers(layers: Any, message: str) -> None:
    """Layers that do not exist, repeat or run backwards are refused, since they are nearly always a slip."""
    with pytest.raises(ValueError, match=message):
        student_from_teacher(build(BertForSequenceClassification, *BERT[:2]), layers)


@pytest.mark.parametrize(
    ("model_class", "config_class", "options"),
    [
        (AlbertForSequenceClassification, AlbertConfig, SIZES | {"embedding_size": 8}),
    ],
)
def test_other_architectures_are_named(model_class: Any, config_class: Any, options: dict[str, Any]) -> None:
    """One shared layer (ALBERT) cannot be cut, and the message says which model it was."""
    with pytest.raises(ValueError, match=model_class.__name__):
        student_from_teacher(build(model_class, config_class, options), 1)


def test_models_of_several_parts_are_named() -> None:
    """A model whose text part has a configuration of its own is refused like others that cannot be cut."""
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    text = DECODER | {"num_hidden_layers": 2, "head_dim": 8}
    teacher = Gemma3ForSequenceClassification(Gemma3Config(text_config=text, vision_config=vision))
    with pytest.raises(ValueError, match="Gemma3ForSequenceClassification is not supported"):
        student_from_teacher(teacher, 1)
