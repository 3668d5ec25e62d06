"""Students that generate text, family by family."""

import io
import pickle

import pytest
import torch
from conftest import VOCABULARY, tiny_bert, toy_arguments, toy_rows
from generation import CAUSAL, FAMILIES, collator, generator_arguments, pairs, tiny_generator
from transformers import (
    AutoConfig,
    BartForCausalLM,
    CLIPVisionConfig,
    GPT2LMHeadModel,
    JetMoeConfig,
    JetMoeForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MarianForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Seq2SeqTrainer,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    TrainerCallback,
    set_seed,
)

from amal_hf import (
    AMALSeq2SeqTrainer,
    AMALTrainer,
    CrossEntropy,
    Distillation,
    DoubleBackward,
    ForwardMode,
    LastLayer,
    LossNetwork,
    MeanOne,
    amal,
)
from amal_hf.generators import answers_by_token, is_encoder_decoder, predicts_next
from amal_hf.router_loss import router_loss
from amal_hf.task import Task


every_family = pytest.mark.parametrize("family", FAMILIES)


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        read = {name: p for name, p in model.named_parameters() if p.grad is not None}  # not a pooler of pictures
        self.steps.append({name: p.grad.clone() for name, p in read.items()})


class StopAt(TrainerCallback):
    """Ends a run early, with a checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def new_trainer(folder, family, losses=None, rows=10, method=None, callbacks=None, train=None, **options):
    train = pairs(rows, family) if train is None else train
    return AMALSeq2SeqTrainer(
        model=tiny_generator(family),
        args=generator_arguments(folder, **{"max_steps": 3, "meta_interval": 1, **options}),
        train_dataset=train,
        eval_dataset=pairs(6, family, 3),
        meta_dataset=pairs(4, family, 4),
        data_collator=collator(),
        losses=[CrossEntropy(), Distillation(tiny_generator(family, 1))] if losses is None else losses,
        method=amal(LossNetwork(learning_rate=0.05)) if method is None else method,
        callbacks=callbacks,
    )


def relative_difference(ours, theirs):
    norm = torch.stack([g.norm() for g in ours.values()]).norm()
    assert norm > 1e-4, "a vacuous comparison"
    return torch.stack([(ours[name] - theirs[name]).norm() for name in ours]).norm() / norm


def check_cuts(new_trainer, folder, family):
    """The gradients of steps of six rows, whole and in three parts."""
    runs = []
    for size, accumulation in ((6, 1), (2, 3)):
        seen = Gradients()
        new_trainer(
            folder,
            family,
            callbacks=[seen],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.1,
            train_sampling_strategy="sequential",
            max_grad_norm=0.0,
        ).train()
        runs.append(seen.steps)
    for ours, theirs in zip(*runs, strict=True):
        assert relative_difference(ours, theirs) < 1e-4


@every_family
def test_labels_cost_what_the_model_says(family):
    """The value of one example is the model's own loss on it: the shift of the labels is read as the model reads
    it.
    """
    from amal_hf.losses import Task

    model, batch = tiny_generator(family), collator()(list(pairs(1, family, 7)))
    loss = CrossEntropy()
    loss.bind(Task(shifted=family in CAUSAL))
    outputs = model(**batch)
    torch.testing.assert_close(loss.of_logits(outputs.logits, batch["labels"])[0].double(), outputs.loss.double())


@every_family
def test_gradients_do_not_depend_on_how_a_batch_is_cut(tmp_path, family):
    """Padding differs with every cut, and sentences differ in length; each counts once all the same.

    To 1e-4: norms and attention that compute in fp32 in a model in fp64 round, and finite differences magnify that.
    """
    check_cuts(new_trainer, tmp_path, family)


@every_family
def test_an_interrupted_run_goes_on_to_the_last_bit(tmp_path, family):
    """Weights of sentences, the network behind them and the student must not know of the interruption."""
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    whole = new_trainer(tmp_path / "whole", family, **options)
    whole.train()
    new_trainer(tmp_path / "cut", family, callbacks=[StopAt(3)], **options).train()
    resumed = new_trainer(tmp_path / "cut", family, **options)
    resumed.train(resume_from_checkpoint=True)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert resumed.example_weights().to_pandas().equals(whole.example_weights().to_pandas())


@pytest.mark.parametrize("family", ["bart", "gpt2"])
@pytest.mark.parametrize("tangent", [ForwardMode(), DoubleBackward()], ids=["forward", "double backward"])
def test_slopes_agree_however_they_are_computed(tmp_path, monkeypatch, family, tangent):
    """Tokens taken in chunks and computed anew must not change what the exact slopes say."""
    monkeypatch.setattr("amal_hf.tokens.CHUNK", 200)
    measured = []
    for method in (amal(), amal(tangent=tangent)):
        trainer = new_trainer(tmp_path, family, method=method, max_steps=1)
        kept = []
        monkeypatch.setattr(LossNetwork, "update", lambda self, seen, slopes, kept=kept: kept.append(slopes))
        trainer.train()
        measured.append(kept[0].double())
    torch.testing.assert_close(*measured, rtol=1e-3, atol=1e-4)


@every_family
@pytest.mark.parametrize("top_k", [None, 5, 60])
def test_cached_teachers_say_what_live_ones_say(tmp_path, family, top_k):
    """Ragged targets go through the cache and come back at their places, all logits or only the largest."""
    runs = []
    for cache in (None, str(tmp_path / "cache")):
        seen = Gradients()
        losses = [CrossEntropy(), Distillation(tiny_generator(family, 1), top_k=top_k)]
        new_trainer(tmp_path, family, losses, callbacks=[seen], max_steps=1, teacher_cache_dir=cache).train()
        runs.append(seen.steps[0])
    assert relative_difference(*runs) < 1e-5


@pytest.mark.parametrize(("predict", "key"), [(False, "eval_loss"), (True, "eval_length")])
def test_evaluation_writes_text_where_asked(tmp_path, predict, key):
    """Generation is for scores alone; the plain loss needs none."""
    trainer = new_trainer(tmp_path, "bart", predict_with_generate=predict, generation_max_length=7)
    trainer.compute_metrics = lambda prediction: {"length": prediction.predictions.shape[1]} if predict else {}
    trainer.train()
    assert key in trainer.evaluate()


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"label_smoothing_factor": 0.1}])
def test_off_is_seq2seq_trainer(tmp_path, options):
    """Swapping the class must not change anybody's results."""
    weights = []
    for trainer_class in (Seq2SeqTrainer, AMALSeq2SeqTrainer):
        model = tiny_generator("t5", dropout_rate=0.1)
        trainer = trainer_class(
            model=model,
            args=generator_arguments(
                tmp_path, predict_with_generate=True, eval_strategy="steps", eval_steps=2, **options
            ),
            train_dataset=pairs(14, "t5"),
            eval_dataset=pairs(4, "t5", 3),
            data_collator=collator(model),
        )
        trainer.train()
        weights.append(
            (trainer.model.state_dict(), [e.get("loss", e.get("eval_loss")) for e in trainer.state.log_history[:-1]])
        )
    (ours, our_logs), (theirs, their_logs) = weights
    assert our_logs == their_logs
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def emptied(family, row):
    """Pairs of which one has no target."""
    rows = pairs(6, family)
    labels = list(rows["labels"])
    labels[row] = [-100] * len(rows["input_ids"][row]) if family in CAUSAL else []
    return rows.remove_columns("labels").add_column("labels", labels)


class ParameterFound(pickle.Pickler):
    """Refuses a student."""

    def persistent_id(self, value):
        assert not isinstance(value, torch.nn.Parameter)


@pytest.mark.parametrize("family", ["t5", "bart", "m2m_100"])
def test_worker_processes_are_sent_a_collator_without_the_student(tmp_path, family):
    """Where they are not forked (macOS, Windows, Python 3.14) it is pickled with all that it holds: the student went
    along to each of them, or nothing did.
    """
    trainer, sent = new_trainer(tmp_path, family), io.BytesIO()
    ParameterFound(sent).dump(trainer.data_collator)
    rows = trainer.train_dataset.select(range(3))
    there, here = pickle.loads(sent.getvalue())(list(rows)), trainer.data_collator(list(rows))
    assert there.keys() == here.keys() >= {"decoder_input_ids"}
    assert all(there[name].equal(here[name]) for name in here)


def test_students_that_shift_their_labels_themselves(tmp_path):
    """M2M100 and its kind have no method for it: the first step is that of `Seq2SeqTrainer` all the same, as rows of
    one length, weighed alike, have one mean.
    """
    rows = pairs(8, "bart").map(lambda row: {"labels": (row["labels"] * 9)[:6]})
    losses = []
    for trainer_class, given in ((Seq2SeqTrainer, {}), (AMALSeq2SeqTrainer, {"losses": [CrossEntropy()]})):
        model = tiny_generator("m2m_100")
        arguments = generator_arguments(tmp_path, max_steps=1, logging_steps=1)
        trainer = trainer_class(model, arguments, train_dataset=rows, data_collator=collator(model), **given)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    model.config.decoder_start_token_id = None

    def complete(rows):
        batch = collator(tiny_generator("m2m_100"))(rows)
        return {**batch, "decoder_input_ids": batch["labels"].clamp(min=0)}

    AMALSeq2SeqTrainer(model, arguments, train_dataset=rows, data_collator=complete, losses=[CrossEntropy()])
    with pytest.raises(ValueError, match="decoder_start_token_id=None and pad_token_id=0"):
        AMALSeq2SeqTrainer(
            model, arguments, train_dataset=rows, data_collator=collator(model), losses=[CrossEntropy()]
        )


@pytest.mark.parametrize(
    ("kind", "shifted"), [(BartForCausalLM, False), (MarianForCausalLM, False), (GPT2LMHeadModel, True)]
)
def test_labels_stand_where_the_students_own_loss_has_them(kind, shifted):
    """The decoder of an encoder-decoder, alone, compares place by place; other causal models with the next token."""
    family = kind.config_class.model_type
    config = AutoConfig.for_model(family, **{"vocab_size": VOCABULARY, **FAMILIES[family]})
    student, ids = kind(config).double(), torch.arange(5, 25).view(2, 10)
    outputs = student(input_ids=ids, labels=ids)
    loss = CrossEntropy()
    loss.bind(Task(None, 0.0, predicts_next(student)))
    torch.testing.assert_close(
        loss(outputs, {"labels": ids, "input_ids": ids}).mean(), outputs.loss, check_dtype=False
    )


def test_experts_of_a_student_are_balanced(tmp_path):
    """A mixture of experts adds its router's loss where it sees labels; here it is added beside the weighed losses."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "num_key_value_heads": 1,
        "output_router_logits": True,
    }
    rows = toy_rows(8).remove_columns("labels").map(lambda row: {"labels": row["input_ids"]})
    logged = []
    for coefficient in (0.0, 3.0):
        set_seed(0)
        config = MixtralConfig(
            vocab_size=VOCABULARY, **sizes, **experts, router_aux_loss_coef=coefficient, pad_token_id=0
        )
        student = MixtralForCausalLM(config)
        with torch.no_grad():
            balance = student(torch.tensor(rows["input_ids"][:]), torch.tensor(rows["attention_mask"][:])).aux_loss
        arguments = toy_arguments(tmp_path, max_steps=1, logging_steps=1, per_device_train_batch_size=8)
        trainer = AMALTrainer(student, arguments, train_dataset=rows, losses=[CrossEntropy()])
        trainer.train()
        logged.append(trainer.state.log_history[0]["loss"])
    assert logged[1] - logged[0] == pytest.approx(3 * balance.item(), abs=1e-3)


SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 2}
EXPERTS = {
    "JetMoe": lambda: JetMoeForCausalLM(
        JetMoeConfig(**SMALL, kv_channels=8, intermediate_size=32, num_local_experts=4, num_experts_per_tok=2)
    ),
    "Mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**SMALL, num_attention_heads=2, intermediate_size=32, num_local_experts=4)
    ),
    "Switch": lambda: SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(
            **{"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
            **{"num_decoder_layers": 2, "num_experts": 4, "num_sparse_encoder_layers": 1},
            **{"num_sparse_decoder_layers": 1, "decoder_start_token_id": 0},
        )
    ),
}


@pytest.mark.parametrize("new", EXPERTS.values(), ids=EXPERTS.keys())
def test_the_routers_losses_are_those_that_the_student_adds(new):
    """Whatever their coefficients are called, and wherever they stand."""
    set_seed(0)
    student, ids = new().eval(), torch.arange(5, 21).view(2, 8)
    given = {"input_ids": ids, **({"decoder_input_ids": ids} if student.config.is_encoder_decoder else {})}
    losses = [student(**given, labels=ids, output_router_logits=on).loss for on in (True, False)]
    ours = router_loss(student(**given, output_router_logits=True), student)
    torch.testing.assert_close(ours, losses[0] - losses[1], atol=1e-6, rtol=1e-4)
    assert ours > 0 and router_loss(student(**given), student) == 0


BAD = {
    "empty target": ({"family": "t5", "train": emptied("t5", 4)}, "no target token in 1 of 6 rows: 4"),
    "nothing but a prompt": ({"family": "gpt2", "train": emptied("gpt2", 2)}, "no target token in 1 of 6 rows: 2"),
    "last layer": ({"family": "bart", "method": amal(tangent=LastLayer())}, "as wide as its vocabulary"),
    "another vocabulary": (
        {"family": "bart", "losses": [CrossEntropy(), Distillation(tiny_generator("bart", vocab_size=61))]},
        "61",
    ),
    "another kind of teacher": (
        {"family": "bart", "losses": [CrossEntropy(), Distillation(tiny_generator("gpt2"))]},
        "encoder-decoder",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_at_construction(tmp_path, changes, message):
    """What cannot be trained on is said before any work, with the rows it is about."""
    with pytest.raises(ValueError, match=message):
        new_trainer(tmp_path, **changes)


def test_a_classifier_is_refused(tmp_path):
    """It writes nothing, and would fail at the first evaluation only."""
    with pytest.raises(TypeError, match="does not generate text"):
        AMALSeq2SeqTrainer(model=tiny_bert(), args=generator_arguments(tmp_path), train_dataset=toy_rows(4))


def test_weights_tell_shuffled_targets_apart(tmp_path):
    """One weight a pair, learned by mean one: finite, and not all alike."""
    trainer = new_trainer(
        tmp_path, "t5", losses=[CrossEntropy()], method=amal(LossNetwork(learning_rate=0.05, normalisation=MeanOne()))
    )
    trainer.train()
    weights = torch.tensor(trainer.example_weights()["labels"][:])
    assert weights.isfinite().any()
    assert weights[weights.isfinite()].std() > 0


def test_students_that_see_continue_a_text():
    """LLaVA is in no mapping of language models, and its own loss is of the next token all the same."""
    words = LlamaConfig(**SMALL, num_attention_heads=2, intermediate_size=32)
    eyes = CLIPVisionConfig(
        **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        **{"image_size": 16, "patch_size": 8},
    )
    set_seed(0)
    student = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=eyes, text_config=words, image_token_id=VOCABULARY - 1)
    ).double()
    ids = torch.arange(5, 25).view(2, 10)
    outputs = student(input_ids=ids, labels=ids)
    assert answers_by_token(student) and predicts_next(student) and not is_encoder_decoder(student)
    loss = CrossEntropy()
    loss.bind(Task(None, 0.0, predicts_next(student)))
    values = loss(outputs, {"labels": ids, "input_ids": ids})
    torch.testing.assert_close(values.mean(), outputs.loss, check_dtype=False)
