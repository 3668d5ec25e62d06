"""Students that write down what they hear or see: distilled like those that translate."""

from dataclasses import replace

import pytest
import torch
from conftest import VOCABULARY
from datasets import Dataset
from generation import generator_arguments
from test_generation import check_cuts
from transformers import (
    BertConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    Pix2StructConfig,
    Pix2StructForConditionalGeneration,
    Speech2TextConfig,
    Speech2TextForConditionalGeneration,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    set_seed,
)

from amal_hf import (
    AMALSeq2SeqTrainer,
    CrossEntropy,
    Distillation,
    DoubleBackward,
    FiniteDifference,
    LossNetwork,
    Method,
    SourceGain,
    Trajectory,
    amal,
    deep_interactions,
    student_from_teacher,
)
from amal_hf.generators import answers_by_token, is_encoder_decoder, predicts_next, with_decoder_inputs
from amal_hf.losses import Task
from amal_hf.model_labels import class_count
from amal_hf.without_source import cost_without_source


LAYERS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
WIDTHS = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "dropout": 0.0, "attention_dropout": 0.0}
WORDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 2}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def whisper():
    sizes = {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16}
    return WhisperForConditionalGeneration(
        WhisperConfig(vocab_size=VOCABULARY, **LAYERS, **WIDTHS, **WORDS, **sizes, activation_dropout=0.0)
    )


def speech_to_text():
    sizes = {"input_feat_per_channel": 8, "conv_channels": 16, "max_source_positions": 20, "max_target_positions": 16}
    return Speech2TextForConditionalGeneration(
        Speech2TextConfig(vocab_size=VOCABULARY, **LAYERS, **WIDTHS, **WORDS, **sizes, activation_dropout=0.0)
    )


def moonshine():
    layers = {
        f"{side}_num_{what}": 2 for side in ("encoder", "decoder") for what in ("hidden_layers", "attention_heads")
    }
    return MoonshineForConditionalGeneration(
        MoonshineConfig(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, **layers, **WORDS)
    )


def reads_pictures():
    sees = ViTConfig(**SMALL, **NO_DROPOUT, image_size=8, patch_size=4)
    writes = BertConfig(vocab_size=VOCABULARY, **SMALL, **NO_DROPOUT, is_decoder=True, add_cross_attention=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(sees, writes)
    config.pad_token_id, config.decoder_start_token_id = 0, 2
    return VisionEncoderDecoderModel(config)


def reads_patches():
    sizes = {"hidden_size": 16, "d_kv": 8, "d_ff": 32, "num_attention_heads": 2, "dropout_rate": 0.0}
    sees = {**sizes, "patch_embed_hidden_size": 8, "num_hidden_layers": 2, "attention_dropout": 0.0}
    writes = {**sizes, "vocab_size": VOCABULARY, "num_layers": 2, "num_heads": 2}
    return Pix2StructForConditionalGeneration(Pix2StructConfig(text_config=writes, vision_config=sees))


STUDENTS = {
    "whisper": (whisper, "input_features", (8, 20)),
    "speech_to_text": (speech_to_text, "input_features", (20, 8)),
    "moonshine": (moonshine, "input_values", (1200,)),
    "pictures": (reads_pictures, "pixel_values", (3, 8, 8)),
    "patches": (reads_patches, "flattened_patches", (4, 10)),
}
every_student = pytest.mark.parametrize("kind", STUDENTS)


def tiny(kind, seed=0):
    set_seed(seed)
    model = STUDENTS[kind][0]().double()
    model.set_attn_implementation("eager")
    return model


def rows(kind, count, seed=0):
    """Noise, and ragged words."""
    generator = torch.Generator().manual_seed(seed)
    _, name, shape = STUDENTS[kind]
    heard = torch.randn(count, *shape, generator=generator)
    if name == "flattened_patches":
        heard[..., :2].abs_()  # of which row and column a patch is
    lengths = torch.randint(2, 7, (count,), generator=generator).tolist()
    words = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({name: heard.tolist(), "labels": words})


def collate(features):
    """As users of speech models write it: labels are filled up, all else has one size."""
    longest = max(len(row["labels"]) for row in features)
    labels = [[*row["labels"], *[-100] * (longest - len(row["labels"]))] for row in features]
    others = [name for name in features[0] if name != "labels"]
    batch = {name: torch.tensor([row[name] for row in features]) for name in others}
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    return {**batch, "labels": torch.tensor(labels)}


def new_trainer(folder, kind, method=None, losses=None, callbacks=None, processing_class=None, **options):
    return AMALSeq2SeqTrainer(
        model=tiny(kind),
        args=generator_arguments(folder, **{"max_steps": 3, "meta_interval": 1, **options}),
        train_dataset=rows(kind, 12),
        eval_dataset=rows(kind, 4, 3),
        meta_dataset=rows(kind, 6, 4),
        data_collator=collate,
        losses=[CrossEntropy(), Distillation(tiny(kind, 1))] if losses is None else losses,
        method=amal(LossNetwork(learning_rate=0.05)) if method is None else method,
        callbacks=callbacks,
        processing_class=processing_class,
    )


@every_student
def test_labels_cost_what_the_model_says(kind):
    """It writes words of a vocabulary, each compared with the label at its own place."""
    model = tiny(kind)
    assert is_encoder_decoder(model) and answers_by_token(model) and not predicts_next(model)
    assert class_count(model) == VOCABULARY
    batch = collate(list(rows(kind, 1)))
    loss = CrossEntropy()
    loss.bind(Task())
    outputs = model(**batch)
    torch.testing.assert_close(loss.of_logits(outputs.logits, batch["labels"])[0].double(), outputs.loss.double())


@every_student
def test_gradients_do_not_depend_on_how_a_batch_is_cut(tmp_path, kind):
    """With a teacher of its kind, and weights that learn."""
    check_cuts(new_trainer, tmp_path, kind)


def test_ways_of_measuring_slopes_agree(tmp_path):
    """The finite difference and the exact derivative teach the same weights."""
    found = []
    for tangent in (FiniteDifference(), DoubleBackward()):
        trainer = new_trainer(tmp_path, "whisper", amal(LossNetwork(learning_rate=0.05), tangent=tangent))
        trainer.train()
        found.append(torch.tensor(trainer.example_weights()["labels"]))
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


def processor():
    """What makes features of sounds, and a tokenizer of words."""
    words = {"<|endoftext|>": 0, "!": 1, **{f"w{number}": number for number in range(2, VOCABULARY)}}
    return WhisperProcessor(WhisperFeatureExtractor(feature_size=8), WhisperTokenizer(vocab=words, merges=[]))


def test_a_teacher_of_a_folder_is_that_of_its_object_and_can_be_cached(tmp_path):
    """By its name or path it is loaded with the head that writes, whatever the student's own processor is."""
    reads = processor()
    teacher, folder = tiny("whisper", 1), str(tmp_path / "teacher")
    teacher.save_pretrained(folder)
    reads.save_pretrained(folder)
    weights = []
    for source, options in (
        (teacher, {}),
        (folder, {}),
        (folder, {"processing_class": reads}),
        (folder, {"processing_class": reads.feature_extractor}),
        (folder, {"teacher_cache_dir": str(tmp_path / "cache")}),
    ):
        losses = [CrossEntropy(), Distillation(source)]
        trainer = new_trainer(tmp_path / "out", "whisper", losses=losses, **options)
        trainer.train()
        weights.append(torch.tensor(trainer.example_weights()["teacher"]))
    for others in weights[1:4]:
        torch.testing.assert_close(others, weights[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(weights[4], weights[0], atol=1e-3, rtol=0)  # a cache is in half precision


def test_a_teacher_that_sees_is_loaded_by_its_folder(tmp_path):
    """As one that hears: the mapping of `transformers` that has it says with which head."""
    teacher, folder = tiny("patches", 1), str(tmp_path / "teacher")
    teacher.save_pretrained(folder)
    weights = []
    for source in (teacher, folder):
        trainer = new_trainer(tmp_path / "out", "patches", losses=[CrossEntropy(), Distillation(source)])
        trainer.train()
        weights.append(torch.tensor(trainer.example_weights()["teacher"]))
    torch.testing.assert_close(*weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["whisper", "pictures", "patches"])
def test_a_teacher_of_other_words_is_refused(tmp_path, kind):
    """Before training, whether or not a mapping of `transformers` has the student."""
    teacher = tiny(kind, 1)
    (teacher.decoder if kind == "pictures" else teacher).resize_token_embeddings(VOCABULARY + 1)
    with pytest.raises(ValueError, match=f"writes with {VOCABULARY + 1} tokens, the student with {VOCABULARY}"):
        new_trainer(tmp_path, kind, losses=[CrossEntropy(), Distillation(teacher)])


def test_a_card_says_what_it_is_for(tmp_path):
    """Speech recognition: by a pipeline that reads a sound."""
    trainer = new_trainer(tmp_path / "out", "whisper", processing_class=processor())
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: automatic-speech-recognition" in card
    assert 'pipeline("automatic-speech-recognition", model="out")' in card and 'student("sound.wav")' in card


@every_student
def test_what_a_target_gains_from_what_is_heard(tmp_path, kind):
    """Against its decoder alone, which has the same cost whatever there was to hear."""
    trainer = new_trainer(tmp_path, kind, Method("gain", SourceGain(among=12)), losses=[CrossEntropy()])
    trainer.train()
    assert torch.isfinite(torch.tensor(trainer.example_weights()["labels"])).all()
    first = collate([*rows(kind, 3)])
    second = {**collate([*rows(kind, 3, 5)]), "labels": first["labels"]}
    ours, theirs = (
        cost_without_source(trainer._student(), with_decoder_inputs(dict, trainer.model)(batch), trainer.mixture.task)
        for batch in (first, second)
    )
    assert torch.equal(ours, theirs) and ours.isfinite().all()


@pytest.mark.parametrize("kind", ["whisper", "speech_to_text", "moonshine"])
def test_its_states_can_be_read(tmp_path, kind):
    """Those of both sides, by a network; with pictures the two sides have configurations of their own."""
    trainer = new_trainer(tmp_path, kind, deep_interactions(trajectory=Trajectory(2)), meta_interval=2, max_steps=4)
    trainer.train()
    weights = torch.tensor(trainer.example_weights()["labels"])
    assert weights.isfinite().all() and (weights != 0.5).any()  # half is what they begin with
    with pytest.raises(ValueError, match="does not say how many there are"):
        new_trainer(tmp_path, "pictures", deep_interactions())


@every_student
def test_tokens_can_be_weighed(tmp_path, kind):
    """Each by itself, beside the largest logits of a teacher or all of them."""
    trainer = new_trainer(tmp_path, kind, replace(amal(LossNetwork()), per_token=True))
    trainer.train()
    assert torch.tensor(trainer.example_weights()["labels"]).isfinite().all()
    few = new_trainer(tmp_path, kind, losses=[CrossEntropy(), Distillation(tiny(kind, 1), top_k=5)])
    few.train()
    assert torch.tensor(few.example_weights()["teacher"]).isfinite().all()


def test_a_decoder_is_cut_and_the_encoder_kept():
    """As speech recognisers are distilled: what hears stays whole, and what writes has its outer layers left."""
    teacher = tiny("whisper").eval()
    student = student_from_teacher(teacher, 2, decoder_layers=[1]).eval()
    assert len(student.model.encoder.layers) == 2 and len(student.model.decoder.layers) == 1
    batch = collate(list(rows("whisper", 2)))
    teacher.model.decoder.layers = teacher.model.decoder.layers[1:]
    torch.testing.assert_close(student(**batch).logits, teacher(**batch).logits)
