"""Bad input is refused when the trainer is made, with what came, what was expected and what to do."""

import logging
from types import SimpleNamespace

import datasets
import pytest
import torch
from conftest import LENGTH, VOCABULARY, tiny_bert, toy_arguments, toy_rows
from generation import tiny_generator
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    MixtralConfig,
    MixtralForCausalLM,
    TrainingArguments,
)

from amal_hf import (
    AMALArguments,
    AMALSeq2SeqArguments,
    AMALSeq2SeqTrainer,
    AMALTrainer,
    ClassProportional,
    CommentaryNetwork,
    CorrectedCrossEntropy,
    CrossEntropy,
    CustomLoss,
    Delayed,
    Distillation,
    ExactProduct,
    ExampleTable,
    ForwardMode,
    Frozen,
    LabelBlend,
    LastLayer,
    Method,
    TokenMask,
    Trajectory,
    amal,
    amal_as_published,
    commentaries,
    deep_interactions,
)
from amal_hf.checks import check_trainer


def with_labels(values):
    return toy_rows(len(values)).remove_columns("labels").add_column("labels", values)


def make(folder, **changes):
    """A trainer that would work, but for the changes."""
    fields = {
        "model": tiny_bert(),
        "args": toy_arguments(folder),
        "train_dataset": toy_rows(8),
        "meta_dataset": toy_rows(6, 4),
        "method": amal(),
    }
    return AMALTrainer(**{**fields, **changes})


def with_names(count, names):
    return toy_rows(count).cast_column("labels", datasets.ClassLabel(names=names))


def expert(**config):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"num_key_value_heads": 1, "num_local_experts": 2, "output_router_logits": True, "pad_token_id": 0}
    return MixtralForCausalLM(MixtralConfig(vocab_size=VOCABULARY, **sizes, **experts))


def with_ragged_ids():
    return toy_rows(3).map(lambda row, number: {"input_ids": row["input_ids"][number:]}, with_indices=True)


def frozen_head():
    student = tiny_bert()
    student.classifier.requires_grad_(False)
    return student


class Plain(torch.nn.Linear):
    """A student that is none of `transformers`."""

    def __init__(self):
        super().__init__(2, 2)

    def forward(self, input_ids, labels=None):
        return super().forward(input_ids)


BAD = {
    "no meta set": ({"meta_dataset": None}, "pass them as `meta_dataset`"),
    "empty meta set": ({"meta_dataset": toy_rows(6).select([])}, "meta_dataset is empty"),
    "empty training set": ({"train_dataset": toy_rows(6).select([])}, "train_dataset is empty"),
    "NaN labels": (
        {"train_dataset": with_labels([0.0, float("nan"), 1.0])},
        "NaN in 1 of 3 rows from 0, first in row 1",
    ),
    "no label": ({"train_dataset": with_labels([0, None, 1])}, "no label in row 1"),
    "label beyond the classes": ({"train_dataset": with_labels([0, 3, 1])}, "label 3; the student has classes 0 to 2"),
    "wrong label in the meta set": ({"meta_dataset": with_labels([0, -7])}, "meta_dataset.*label -7"),
    "meta set is a stream": ({"meta_dataset": toy_rows(6).to_iterable_dataset()}, "it is a stream"),
    "ids twice": (
        {"train_dataset": toy_rows(3).add_column("example_id", ["a", "b", "a"])},
        "'a' stands there more than once",
    ),
    "no losses": ({"losses": []}, "at least one"),
    "losses of one name": ({"losses": [CrossEntropy(), CrossEntropy()]}, "a name of its own"),
    "two definitions of the loss": ({"compute_loss_func": lambda *_: None}, "both define the loss"),
    "plain arguments": (
        {"args": TrainingArguments("out", use_cpu=True)},
        "must be AMALArguments, got TrainingArguments",
    ),
    "several splits to train on": (
        {"train_dataset": datasets.DatasetDict(train=toy_rows(4))},
        r"train_dataset holds several splits, \['train'\]",
    ),
    "splits in a dictionary": ({"meta_dataset": {"validation": toy_rows(4)}}, r"several splits, \['validation'\]"),
    "several whole numbers a row": (
        {"train_dataset": with_labels([[0, 1, 1]] * 3)},
        "several whole numbers as the labels of a row.*problem_type='multi_label_classification'",
    ),
    "truths": ({"train_dataset": with_labels([True, False])}, "has True and False as labels"),
    "labels of tokens of several lengths": (
        {"model": tiny_bert(head=BertForTokenClassification), "train_dataset": with_labels([[0, 1], [1]])},
        "DataCollatorForTokenClassification",
    ),
    "no configuration": ({"model": Plain()}, "Plain has no `config`"),
    "tuples": ({"model": tiny_bert(return_dict=False)}, "has return_dict=False"),
    "phases over a stream": (
        {
            "train_dataset": toy_rows(6).add_column("example_id", range(6)).to_iterable_dataset(),
            "method": amal_as_published(),
        },
        "'amal_as_published' learns in passes over the whole training set",
    ),
    "labels that are text": (
        {"train_dataset": with_labels(["good", "bad"])},
        "batches of train_dataset hold.*class_encode_column makes numbers of names",
    ),
    "labels that are measures": (
        {"train_dataset": with_labels([0.5, 1.0])},
        "holds 0.5, a number with a fraction, and the student has 3 classes",
    ),
    "yes and no in whole numbers": (
        {"model": tiny_bert(problem_type="multi_label_classification"), "train_dataset": with_labels([[0, 1, 1]] * 3)},
        "train_dataset has whole numbers as labels.*cast the column to float",
    ),
    "no labels": (
        {"train_dataset": toy_rows(4).remove_columns("labels")},
        "loss 'labels' reads 'labels', and batches of train_dataset hold",
    ),
    "no labels in the meta set": (
        {"meta_dataset": toy_rows(4).remove_columns("labels")},
        "reads 'labels', and batches of meta_dataset hold",
    ),
    "no label in the meta set": ({"meta_dataset": with_labels([-100] * 3)}, "no row of meta_dataset.'labels'. has"),
    "rows of several lengths": (
        {"train_dataset": with_ragged_ids(), "meta_dataset": toy_rows(4)},
        r"makes no batch of the first rows of train_dataset, which hold.*[^.]\. Rows of several.* as processing_class",
    ),
    "rows of several lengths and labels": (
        {"train_dataset": with_ragged_ids().map(lambda _: {"labels": [0.0, 1.0, 1.0]}), "meta_dataset": toy_rows(4)},
        r"train_dataset, which hold.*\. Rows of several lengths .* as processing_class",
    ),
    "a row that is no numbers": (
        {"train_dataset": toy_rows(3).map(lambda _: {"input_ids": ["a", "b"]}), "meta_dataset": toy_rows(4)},
        r"makes no batch of the first rows of train_dataset, which hold.*[^.]\. Tokenise",
    ),
    "a column that is not there": (
        {"losses": [CustomLoss(len, "f", columns=("scoer",))]},
        "loss 'f' reads 'scoer', and batches of train_dataset hold",
    ),
    "no column of trusted rows": (
        {"losses": [CorrectedCrossEntropy(torch.eye(3), trusted="checked")]},
        "loss 'labels' reads 'checked', and batches of train_dataset hold",
    ),
    "confusions of other classes": (
        {"losses": [CorrectedCrossEntropy(torch.eye(4))]},
        "confusions are of 4 classes, and the student has 3",
    ),
    "a class for a loss": ({"losses": [CrossEntropy]}, r"A class is called, CrossEntropy\(\)"),
    "no folder of a teacher": ({"teacher_model": "out/teacher/best"}, "no folder out/teacher/best"),
    "nor at home": ({"teacher_model": "~/no-such-folder-here"}, "no folder ~/no-such-folder-here"),
    "fused attention, differentiated forwards": (
        {"method": amal(tangent=ForwardMode())},
        r"ForwardMode\(\) differentiates .*'sdpa'.*attn_implementation='eager'",
    ),
    "fused attention, differentiated twice on the way back": (
        {"method": deep_interactions(trajectory=Trajectory(2, product=ExactProduct()))},
        r"ExactProduct\(\) differentiates .*'sdpa'.*attn_implementation='eager', or use FiniteProduct",
    ),
    "a frozen student": ({"model": tiny_bert().requires_grad_(False)}, "all parameters of the student are frozen"),
    "a frozen output layer": (
        {"model": frozen_head(), "method": amal(tangent=LastLayer())},
        "output layer .* is frozen",
    ),
    "classes of other names in the meta set": (
        {"train_dataset": with_names(8, ["anger", "joy", "sad"]), "meta_dataset": with_names(6, ["joy", "sad", "x"])},
        r"train_dataset are \['anger', 'joy', 'sad'\], and those of meta_dataset are \['joy', .*cast_column",
    ),
    "smoothed numbers": (
        {
            "model": tiny_bert(num_labels=1),
            "train_dataset": with_labels([0.5, 1.5]),
            "meta_dataset": with_labels([0.5, 1.0]),
            "args": toy_arguments("out", label_smoothing_factor=0.1),
        },
        "label_smoothing_factor=0.1 spreads a label over classes",
    ),
    "vectors of too few tokens": (
        {"method": commentaries(TokenMask(torch.randn(10, 8), [0])), "processing_class": range(VOCABULARY)},
        f"vectors of 10 tokens, and processing_class knows {VOCABULARY}",
    ),
    "a router on the way back": (
        {
            "model": expert(),
            "method": deep_interactions(),
            "train_dataset": toy_rows(8).map(lambda row: {"labels": row["input_ids"]}),
            "meta_dataset": toy_rows(6, 4).map(lambda row: {"labels": row["input_ids"]}),
        },
        "the router's loss of MixtralForCausalLM.*output_router_logits = False",
    ),
    "question answering": ({"model": tiny_bert(head=BertForQuestionAnswering)}, "start_positions"),
}


ONE_CLASS = {
    "LabelBlend": lambda: commentaries(LabelBlend(3)),
    "CommentaryNetwork": lambda: commentaries(CommentaryNetwork(torch.randn(8, 4), 3)),
    "ClassProportional": lambda: Method("balanced", ClassProportional([4, 2, 2])),
    "CommentaryNetwork, reused": lambda: Method("reused", Frozen(CommentaryNetwork(torch.randn(8, 4), 3), {})),
    "CommentaryNetwork, later": lambda: Method("later", Delayed(CommentaryNetwork(torch.randn(8, 4), 3), 0.5)),
}


@pytest.mark.parametrize("several", ["yes or no", "tokens"])
@pytest.mark.parametrize(("name", "method"), ONE_CLASS.items(), ids=ONE_CLASS)
def test_several_labels_are_refused_by_what_reads_one(tmp_path, name, method, several):
    """Before the first step, in which they would be looked up."""
    labels = [[0.0, 1.0, 1.0]] * 8 if several == "yes or no" else [[0] * LENGTH] * 8
    head = BertForSequenceClassification if several == "yes or no" else BertForTokenClassification
    rows = with_labels(labels)
    changes = {"model": tiny_bert(head=head), "train_dataset": rows, "meta_dataset": rows.select(range(4))}
    with pytest.raises(ValueError, match=f"{name.partition(',')[0]} is for examples of one class each.*amal()"):
        make(tmp_path, method=method(), **changes)


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_at_construction(tmp_path, changes, message):
    """Hours into a run is too late to learn that a label was NaN."""
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        make(tmp_path, **changes)


SLIPS = {
    "no teacher": (lambda: Distillation(None), "got None"),
    "a class of teachers": (lambda: Distillation(torch.nn.Linear), "got <class"),
    "a divergence by name": (
        lambda: Distillation("x", divergence="reverse_kl"),
        "got 'reverse_kl'.*import reverse_kl",
    ),
    "one column": (lambda: CustomLoss(len, "f", columns="score"), r"Write \('score',\)"),
    "a class of policies": (lambda: amal(ExampleTable), r"Write ExampleTable\(\)"),
    "a class of tangents": (lambda: amal(tangent=LastLayer), r"Write LastLayer\(\)"),
}


@pytest.mark.parametrize(("build", "message"), SLIPS.values(), ids=SLIPS.keys())
def test_slips_are_named_where_they_are_made(build, message):
    """Most would show in the first step only, as an error of something else."""
    with pytest.raises(TypeError, match=message):
        build()


def test_nothing_is_computed_before_the_first_rows_are_known_to_be_fine(tmp_path):
    """A teacher's answers for the whole training set would be computed, and then not used."""
    teacher = lambda batch: pytest.fail("the teacher was asked")  # noqa: E731
    cache = {"teacher_cache_dir": str(tmp_path / "cache")}
    losses = [[CrossEntropy(), Distillation(source)] for source in (teacher, tiny_bert(1))]
    twice = toy_rows(4).add_column("example_id", [1, 1, 2, 3])
    for given, options, message in (
        ({"train_dataset": toy_rows(4).remove_columns("labels")}, {}, "reads 'labels'"),
        ({"train_dataset": twice}, {}, "more than once"),
        ({}, {"loss_weights": [0.5]}, "2 finite numbers"),
        ({"method": Method("reused", Frozen(ExampleTable(), tmp_path / "nothing"))}, {}, "there is no file"),
    ):
        for several in losses:
            with pytest.raises((ValueError, FileNotFoundError), match=message):
                make(tmp_path, losses=several, args=toy_arguments(tmp_path, **cache, **options), **given)
    assert not (tmp_path / "cache").exists()


def test_generation_needs_its_trainer(tmp_path, caplog):
    """And its arguments: one of the two alone would be an error of something else, or nothing."""
    writer = tiny_generator("bart")
    with pytest.raises(TypeError, match="must be AMALSeq2SeqArguments, got AMALArguments"):
        AMALSeq2SeqTrainer(writer, toy_arguments(tmp_path))
    with pytest.raises(TypeError, match="BertForSequenceClassification does not generate text"):
        AMALSeq2SeqTrainer(tiny_bert())
    args = AMALSeq2SeqArguments(str(tmp_path), predict_with_generate=True, use_cpu=True)
    make(tmp_path, args=args)
    assert "predict_with_generate=True does nothing" in caplog.text


def test_a_teacher_with_other_classes_is_refused(tmp_path):
    """Its columns would be taken for other classes."""
    teacher = tiny_bert()
    teacher.config.id2label = {0: "x", 1: "y"}
    teacher.config.label2id = {"x": 0, "y": 1}
    with pytest.raises(ValueError, match="labels"):
        make(tmp_path, losses=[CrossEntropy(), Distillation(teacher)])


SHARDED = {
    "FSDP1": ({"fsdp_version": 1, "cpu_offload": None}, amal, "FSDP1, whose parameters cannot move.*FSDP2"),
    "offloaded": ({"fsdp_version": 2, "cpu_offload": CPUOffloadPolicy()}, amal, "Leave cpu_offload out"),
    "trajectory": (
        {"fsdp_version": 2, "cpu_offload": None},
        deep_interactions,
        "'deep_interactions' needs all parameters in one place.*amal()",
    ),
}


@pytest.mark.parametrize(("plugin", "method", "message"), SHARDED.values(), ids=SHARDED.keys())
def test_sharding_that_cannot_work_is_refused(tmp_path, monkeypatch, plugin, method, message):
    """In one line that names what works, not hours later in a collective."""
    trainer = make(tmp_path, method=method())
    monkeypatch.setattr(trainer.accelerator.state, "fsdp_plugin", SimpleNamespace(**plugin), raising=False)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match=message):
        check_trainer(trainer)


def test_processes_that_share_examples_are_refused(tmp_path, monkeypatch):
    """DeepSpeed hides the parameters; tensor parallelism would count every example several times."""
    trainer = make(tmp_path)
    monkeypatch.setattr(trainer, "get_tp_size", lambda: 2)
    with pytest.raises(ValueError, match="processes share examples.*FSDP2"):
        check_trainer(trainer)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match="do not run under DeepSpeed.*FSDP2"):
        check_trainer(trainer)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("meta_interval", 0),
        ("meta_interval", 2.5),
        ("meta_interval", "8"),
        ("meta_batch_size", 0),
        ("meta_warmup_steps", -1),
        ("meta_learning_rate", 0.0),
        ("loss_weights", {"labels": 0.5}),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, option, value):
    """The message names option, range and value."""
    with pytest.raises(ValueError, match=f"{option} must be .* got {value!r}"):
        toy_arguments(tmp_path, **{option: value})


def test_unknown_method_options_are_refused():
    """A misspelt option must not be taken for a default."""
    with pytest.raises(TypeError, match="intervall"):
        amal(intervall=3)


@pytest.mark.parametrize("loss_weights", [[0.5], [0.5, -0.5], [0.5, float("nan")]])
def test_a_mixture_that_does_not_fit_the_losses_is_refused(tmp_path, loss_weights):
    """One finite number of at least zero for each loss."""
    teacher = lambda batch: torch.zeros(len(batch["labels"]), 3)  # noqa: E731
    with pytest.raises(ValueError, match="2 finite numbers"):
        make(
            tmp_path,
            args=toy_arguments(tmp_path, loss_weights=loss_weights),
            losses=[CrossEntropy(), Distillation(teacher)],
        )


@pytest.mark.parametrize("by", ["text", "input_ids", "example_id"])
def test_a_meta_set_that_overlaps_the_training_set_is_warned_of(tmp_path, caplog, by):
    """A student that has learned the meta rows by heart no longer shows which other rows help."""
    train, meta = toy_rows(8), toy_rows(6, 4)
    if by == "text":
        train, meta = train.add_column("text", list("abcdefgh")), meta.add_column("text", list("ghijkl"))
    elif by == "example_id":
        train, meta = train.add_column("example_id", range(8)), meta.add_column("example_id", range(6, 12))
    else:
        meta = datasets.concatenate_datasets([meta.select(range(4)), train.select([2, 5])])
        # which names what rows have in common, and no row
        train, meta = (rows.add_column("source", ["imdb", "sst"] * (len(rows) // 2)) for rows in (train, meta))
    with caplog.at_level(logging.WARNING, logger="amal_hf"):
        make(tmp_path, train_dataset=train, meta_dataset=meta)
    assert f"2 of the first 8 training rows are also in the meta set (same {by})" in caplog.text


def test_classes_that_one_set_names_further_are_those_of_the_other(tmp_path):
    """As where few clean rows do not have the last class; and a set without names is taken as it is."""
    for names in (["a", "b", "c"], ["a", "b", "c", "d"]):
        make(tmp_path, train_dataset=with_names(8, ["a", "b", "c"]), meta_dataset=with_names(6, names))
    make(tmp_path, train_dataset=with_names(8, ["a", "b", "c"]))


def test_a_warm_up_ends_where_a_short_run_does(tmp_path):
    """The student would else be put back in the middle of the steps that are judged."""
    policy = CommentaryNetwork(torch.randn(8, 4), 3)
    options = {"lr_scheduler_type": "constant", "max_steps": 12}
    for warmup in (2, 3):
        args = toy_arguments(tmp_path, meta_warmup_steps=warmup, **options)
        trainer = make(tmp_path, method=commentaries(policy, short_runs=3), args=args)
        if warmup == 3:
            trainer.train()
        else:
            with pytest.raises(ValueError, match="puts the student back after every 3 steps.*a multiple of 3"):
                trainer.train()


def test_one_of_several_gpus_is_used_rather_than_data_parallel(tmp_path, caplog):
    """`python script.py` with several GPUs must not become nn.DataParallel, which parts a batch from its weights. A
    batch is then what was asked of one GPU, and not all that several would have shared.
    """
    args = toy_arguments(tmp_path, per_device_train_batch_size=2)
    args._n_gpu = 4
    with caplog.at_level(logging.WARNING, logger="amal_hf"):
        trainer = make(tmp_path, args=args)
    assert trainer.args.n_gpu == 1
    assert len(next(iter(trainer.get_train_dataloader()))["labels"]) == 2
    assert "accelerate launch" in caplog.text


def test_arguments_are_parsed_from_flags(tmp_path):
    """Every option is a field, so that the command line, YAML and JSON reach it."""
    from transformers import HfArgumentParser

    flags = [
        "--output_dir",
        str(tmp_path),
        "--loss_weights",
        "0.3",
        "0.7",
        "--meta_interval",
        "8",
        "--meta_warmup_steps",
        "0.1",
    ]
    (args,) = HfArgumentParser(AMALArguments).parse_args_into_dataclasses(flags)
    assert (args.loss_weights, args.meta_interval, args.get_meta_warmup_steps(50)) == ([0.3, 0.7], 8, 5)
    # which a YAML file reads as text
    args = AMALArguments(str(tmp_path), meta_learning_rate="1e-3", meta_warmup_steps="1e-1", use_cpu=True)
    assert (args.meta_learning_rate, args.get_meta_warmup_steps(50)) == (1e-3, 5)
    with pytest.raises(ValueError, match="meta_learning_rate must be a number, got 'fast'"):
        AMALArguments(str(tmp_path), meta_learning_rate="fast", use_cpu=True)


def test_folders_may_begin_at_home(tmp_path, monkeypatch):
    """As `output_dir` may."""
    monkeypatch.setenv("HOME", str(tmp_path))
    args = AMALArguments("~/out", weights_dir="~/weights", teacher_cache_dir="~/logits", use_cpu=True)
    folders = args.output_dir, args.weights_dir, args.teacher_cache_dir
    assert folders == tuple(str(tmp_path / name) for name in ("out", "weights", "logits"))


@pytest.mark.parametrize("several", [False, True])
def test_a_meta_set_that_is_the_evaluation_set_is_warned_of(tmp_path, caplog, several):
    """A score on examples that the weights were learned on says little, and a model chosen by it is chosen by luck."""
    rows = toy_rows(6, 4)
    with caplog.at_level(logging.WARNING, logger="amal_hf"):
        make(tmp_path, meta_dataset=rows, eval_dataset={"dev": toy_rows(4, 5), "clean": rows} if several else rows)
    assert "meta set is the evaluation set" in caplog.text


def test_steps_of_runs_of_one_budget(tmp_path):
    """However batches are cut: 100 rows in steps of 2 batches of 8 are 7, and none is too few to train."""
    options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    args = toy_arguments(tmp_path, **options)
    assert [args.get_steps(100, epochs) for epochs in (1, 3, 0.5, 0.01)] == [7, 21, 4, 1]
    assert args.get_steps(33, 1.1) == 4, "as Trainer has it, rounded up"
    short = toy_arguments(tmp_path, **options, dataloader_drop_last=True)
    assert [short.get_steps(rows, 1) for rows in (100, 33, 7)] == [6, 2, 1]
