"""From a trainer to a hub and back, with the real client and a hub on the loopback interface."""

import json
import logging
import re
from concurrent.futures import Future
from pathlib import Path

import datasets
import pytest
import torch
from conftest import VOCABULARY, tiny_bert, toy_arguments, toy_rows
from hub import TOKEN, Fault, connect, running_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http
from peft import LoraConfig, get_peft_model
from test_teachers import tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from amal_hf import (
    AMALSeq2SeqArguments,
    AMALSeq2SeqTrainer,
    AMALTrainer,
    CardDetails,
    CrossEntropy,
    Distillation,
    ExampleTable,
    FixedWeights,
    Frozen,
    LossNetwork,
    Method,
    amal,
    checkpoint_from_hub,
    save_policy,
)
from amal_hf.card_check import check_card
from amal_hf.portable import make_portable, make_resumable
from amal_hf.publishing import reach_hub
from amal_hf.run_figures import TRAINING_TEXTS


PUBLISHED = {"README.md", "card.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
"""What a person gets, and nothing else."""

RESUMED = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    *(f"{name}.{ending}" for name in ("optimizer", "rng_state") for ending in ("json", "safetensors")),
    "scheduler.json",
}
"""A checkpoint as it is published."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that this process talks to, and a client that does not wait between its attempts."""
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    with running_hub() as running:
        connect(running, monkeypatch, tmp_path / "home")
        yield running


def new_trainer(folder, method=None, **options):
    rows = toy_rows(40).add_column("text", [f"question {number}" for number in range(40)])
    return AMALTrainer(
        tiny_bert(),
        toy_arguments(folder, hub_model_id="me/student", **options),
        train_dataset=rows,
        eval_dataset=toy_rows(8, seed=1),
        meta_dataset=toy_rows(12, seed=2),
        processing_class=tokenizer(),
        losses=[CrossEntropy(), Distillation(tiny_bert(1))],
        method=method or amal(),
    )


def student_of(hub):
    return hub.repositories["models/me/student"]


# ---- the way there and back ----


def test_the_whole_path(hub, tmp_path):
    """What was distilled and pushed answers the same where it is read back, its card is valid, its snippet runs, and
    no byte of the token was sent or written anywhere.
    """
    trainer = new_trainer(tmp_path / "out", push_to_hub=True, hub_token=TOKEN)
    trainer.train()
    trainer.push_to_hub(language="en", license="apache-2.0", example="question")
    assert set(student_of(hub)) == PUBLISHED
    read = AutoModelForSequenceClassification.from_pretrained("me/student")
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in trainer.model.state_dict().items())
    assert AutoTokenizer.from_pretrained("me/student").get_vocab() == tokenizer().get_vocab()
    answers = pipeline("text-classification", "me/student")("some question")
    assert answers == pipeline("text-classification", trainer.model.eval(), tokenizer=tokenizer())("some question")
    card = student_of(hub)["README.md"].decode()
    check_card(card)
    exec(re.search("```python\n(.*?)```", card, re.DOTALL)[1], {})
    assert not any(TOKEN.encode() in content for content in hub.received)
    assert not any(TOKEN.encode() in file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert trainer.args.hub_token == TOKEN


@pytest.mark.parametrize(
    ("classes", "labels"),
    [({"id2label": {0: "`red`", 1: 'a "b"', 2: "blue"}}, None), ({"num_labels": 3}, None), ({"num_labels": 1}, 0.5)],
    ids=["named", "numbered", "a number"],
)
def test_a_student_with_adapters(hub, tmp_path, classes, labels):
    """Its files do not say which classes there are, and the model below them has two: the card's snippet does, and
    answers as the student did.
    """
    tiny_bert(num_labels=2).bert.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", **classes)
    student = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    args = toy_arguments(tmp_path / "out", hub_model_id="me/student", push_to_hub=True)
    rows = toy_rows(24) if labels is None else toy_rows(24).map(lambda row: {"labels": labels})
    trainer = AMALTrainer(student, args, train_dataset=rows, processing_class=tokenizer(), losses=[CrossEntropy()])
    trainer.train()
    trainer.push_to_hub(example="question")
    snippet = re.search("```python\n(.*?)```", student_of(hub)["README.md"].decode(), re.DOTALL)[1]
    exec(snippet, ran := {})
    (ours,) = pipeline("text-classification", student.eval(), tokenizer=tokenizer())("question")
    (read,) = ran["student"]("question")
    assert read["label"] == ours["label"] and read["score"] == pytest.approx(ours["score"])


@pytest.mark.parametrize(("named", "told"), [(True, "is a folder of this machine"), (False, "has no name")])
def test_adapters_to_what_nobody_else_has(hub, tmp_path, caplog, named, told):
    """They are published with a word that nobody else can load them, or with the name that the base has on the Hub."""
    base = tiny_bert()
    if named:
        base.save_pretrained(tmp_path / "base")
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    student = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    args = toy_arguments(tmp_path / "out", hub_model_id="me/student", push_to_hub=True)
    trainer = AMALTrainer(student, args, train_dataset=toy_rows(24), losses=[CrossEntropy()])

    def published():
        return json.loads(student_of(hub)["adapter_config.json"])["base_model_name_or_path"]

    trainer.push_to_hub()
    assert (published() or "") == (str(tmp_path / "base") if named else "")
    assert told in caplog.text and "nobody else can load them" in caplog.text
    caplog.clear()
    trainer.push_to_hub(finetuned_from="some/base")
    assert published() == "some/base" and "nobody" not in caplog.text


def test_a_whole_student_has_no_adapters(hub, tmp_path, caplog):
    """Whatever it is said to have been started from."""
    new_trainer(tmp_path, push_to_hub=True).push_to_hub(finetuned_from="some/base")
    assert set(student_of(hub)) == PUBLISHED and "adapters" not in caplog.text


def test_an_earlier_students_weights_are_not_left(hub, tmp_path):
    """What was published as adapters, or in parts, and then whole, is read as the last student; other files stay."""
    trainer = new_trainer(tmp_path, push_to_hub=True)
    others = {"last-checkpoint/model.safetensors", "weights/policy.safetensors", "notes.txt"}
    earlier = {"adapter_config.json", "adapter_model.safetensors", "model.safetensors.index.json"}
    student_of(hub).update(dict.fromkeys(others | earlier | {"model-00001-of-00002.safetensors"}, b"{}"))
    trainer.push_to_hub()
    assert set(student_of(hub)) == PUBLISHED | others
    read = AutoModelForSequenceClassification.from_pretrained("me/student")
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in trainer.model.state_dict().items())


_WORDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_NEW = [VOCABULARY, VOCABULARY + 1]


@pytest.mark.parametrize(
    ("below", "task", "adapters"),
    [
        (
            lambda: tiny_bert(num_labels=2),
            "SEQ_CLS",
            {"target_modules": ["query"], "modules_to_save": ["word_embeddings"]},
        ),
        (tiny_bert, "SEQ_CLS", {"target_modules": ["query"], "trainable_token_indices": _NEW}),
        (
            lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, **_WORDS)),
            "CAUSAL_LM",
            {"target_modules": ["c_attn"], "fan_in_fan_out": True},
        ),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, **_WORDS)
            ),
            "SEQ_2_SEQ_LM",
            {"target_modules": ["q"]},
        ),
    ],
    ids=["its own table", "its own words", "continues texts", "translates"],
)
def test_a_student_with_adapters_that_knows_more_words(hub, tmp_path, below, task, adapters):
    """The model below has no rows for them, and cannot be read beside files that do: the card's snippet gives it such
    rows first, and the student is then the one that was trained.
    """
    set_seed(0)
    model = below()
    getattr(model, "bert", model).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    base = type(model).from_pretrained(tmp_path / "base", **({"num_labels": 3} if task == "SEQ_CLS" else {}))
    base.resize_token_embeddings(VOCABULARY + 2)
    student = get_peft_model(base, LoraConfig(task_type=task, r=2, **adapters))
    args = toy_arguments(tmp_path / "out", hub_model_id="me/student", push_to_hub=True)
    ids = torch.randint(5, VOCABULARY + 2, (24, 6)).tolist()
    labels = list(range(3)) * 8 if task == "SEQ_CLS" else ids
    rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})
    trainer = AMALTrainer(student, args, train_dataset=rows, processing_class=tokenizer(), losses=[CrossEntropy()])
    trainer.train()
    trainer.push_to_hub(example="question")
    exec(re.search("```python\n(.*?)```", student_of(hub)["README.md"].decode(), re.DOTALL)[1], ran := {})
    told = {"input_ids": torch.tensor([[5, *_NEW]])}
    if task == "SEQ_2_SEQ_LM":
        read, told = ran["student"], told | {"decoder_input_ids": told["input_ids"]}
    else:
        read = ran["student"].model  # of a pipeline
    assert read.eval()(**told).logits.equal(student.eval()(**told).logits)


def test_a_student_that_its_adapters_were_merged_into(hub, tmp_path):
    """It takes the place of the adapters that were published before: of a repository that has both they are read."""
    tiny_bert(num_labels=2).bert.save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    student = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    args = toy_arguments(tmp_path / "out", hub_model_id="me/student", push_to_hub=True, save_strategy="epoch")
    trainer = AMALTrainer(student, args, train_dataset=toy_rows(24), losses=[CrossEntropy()])
    trainer.train()
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(student_of(hub))
    trainer.model = student.merge_and_unload()
    trainer.push_to_hub()
    assert set(student_of(hub)) == {"README.md", "card.json", "config.json", "model.safetensors"}
    read = AutoModelForSequenceClassification.from_pretrained("me/student")
    told = toy_rows(4).remove_columns("labels").with_format("torch")[:]
    assert read(**told).logits.equal(trainer.model.eval()(**told).logits)


def test_large_files_take_their_own_way(hub, tmp_path):
    """Weights go out as LFS objects; a second push of the same student sends nothing again."""
    trainer = new_trainer(tmp_path, push_to_hub=True)
    trainer.push_to_hub()
    assert sum(line.startswith("PUT /lfs/") for line in hub.requests) == 1
    hub.requests.clear()
    trainer.push_to_hub()
    assert not any(line.startswith("PUT") or "/commit/" in line for line in hub.requests)


@pytest.mark.parametrize("fault", [None, "/preupload/", "/commit/"])
def test_the_newer_upload_of_the_client(hub, monkeypatch, tmp_path, fault):
    """Where hf-xet is installed the client uploads in another way; what arrives is the same, errors or not."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.lfs = False  # its own storage is not rebuilt here
    trainer = new_trainer(tmp_path, push_to_hub=True)
    hub.faults += [Fault(fault, times=2)] if fault else []
    trainer.push_to_hub()
    assert set(student_of(hub)) == PUBLISHED
    assert student_of(hub)["model.safetensors"] == (tmp_path / "model.safetensors").read_bytes()


def test_nothing_else_of_the_folder_is_sent(hub, tmp_path):
    """A teacher, a cache or a table of weights that lies in the output folder stays at home, and figures go along."""
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "example_weights.csv").write_text("id,weight\n")
    (tmp_path / "figures" / TRAINING_TEXTS).mkdir(parents=True)
    (tmp_path / "figures" / "weights.png").write_bytes(b"picture")
    (tmp_path / "figures" / TRAINING_TEXTS / "masks.png").write_bytes(b"texts")
    (tmp_path / "report.html").write_text("texts")
    new_trainer(tmp_path, push_to_hub=True).push_to_hub()
    assert set(student_of(hub)) == PUBLISHED | {"figures/weights.png"}
    assert "(figures/weights.png)" in student_of(hub)["README.md"].decode()
    assert not list(tmp_path.glob("_push-*"))


def test_without_losses_it_is_as_safe(hub, tmp_path):
    """A trainer with nothing switched on, given plain arguments, publishes no pickle and no token either."""
    args = TrainingArguments(
        str(tmp_path), push_to_hub=True, hub_model_id="me/student", hub_token=TOKEN, max_steps=2, use_cpu=True
    )
    trainer = AMALTrainer(tiny_bert(), args, train_dataset=toy_rows(16), processing_class=tokenizer())
    trainer.train()
    trainer.push_to_hub(dataset="toys")
    assert set(student_of(hub)) == PUBLISHED
    assert not any(TOKEN.encode() in content for content in hub.received)
    args.hub_token = TOKEN
    Trainer(tiny_bert(), args, train_dataset=toy_rows(16))._save(str(tmp_path / "stock"))
    assert TOKEN.encode() in (tmp_path / "stock" / "training_args.bin").read_bytes()  # what this guards against


def test_students_that_write_text(hub, tmp_path):
    """The trainer of encoder-decoders publishes the same way, with a snippet that generates."""
    set_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    student = BartForConditionalGeneration(
        BartConfig(vocab_size=VOCABULARY, forced_eos_token_id=None, **sizes, **heads, **tokens)
    )
    args = AMALSeq2SeqArguments(str(tmp_path), push_to_hub=True, hub_model_id="me/student", use_cpu=True)
    trainer = AMALSeq2SeqTrainer(student, args, train_dataset=toy_rows(8), processing_class=tokenizer())
    trainer.push_to_hub(tasks="translation", example="question")
    assert {"generation_config.json", "model.safetensors"} < set(student_of(hub))
    exec(re.search("```python\n(.*?)```", student_of(hub)["README.md"].decode(), re.DOTALL)[1], {})


def test_weights_are_published_on_request_only(hub, tmp_path):
    """The policy and a dataset of every example's weights, keyed by id, come back as they were; by default neither
    goes out.
    """
    method = amal(LossNetwork(probe=False))
    trainer = new_trainer(tmp_path, method, push_to_hub=True, hub_include_weights=True, hub_private_repo=True)
    trainer.train()
    trainer.push_to_hub()
    assert set(student_of(hub)) == PUBLISHED | {"weights/policy.safetensors"}
    assert "me/student-weights" in student_of(hub)["README.md"].decode()
    assert hub.repositories["datasets/me/student-weights"].private
    there = datasets.load_dataset("me/student-weights", split="train", cache_dir=str(tmp_path / "cache"))
    assert there.column_names == ["example_id", "labels", "teacher"]
    for name in there.column_names:
        kept, read = (torch.tensor(table[name][:]) for table in (trainer.example_weights(), there))
        assert torch.equal(kept.nan_to_num(-1), read.nan_to_num(-1))
    file = tmp_path / "policy.safetensors"
    file.write_bytes(student_of(hub)["weights/policy.safetensors"])
    frozen = Method("reused", Frozen(LossNetwork(probe=False), file))
    new_trainer(tmp_path / "again", frozen).train()


def test_a_policy_that_reads_clean_rows_is_not_offered_for_use_again(hub, tmp_path):
    """A new student has none, and would be weighed by a network that is told a constant in their place."""
    trainer = new_trainer(tmp_path, push_to_hub=True, hub_include_weights=True)
    trainer.push_to_hub()
    assert set(student_of(hub)) == PUBLISHED
    for use in (lambda: save_policy(trainer.mixture.policy, tmp_path / "x"), lambda: Frozen(LossNetwork(), {})):
        with pytest.raises(ValueError, match=r"Learn it without: LossNetwork\(probe=False\)"):
            use()


# ---- strategies ----


def run_with(folder, strategy, method=None, **options):
    saving = {"save_strategy": "steps", "save_steps": 2, "hub_always_push": True, **options}
    trainer = new_trainer(folder, method, push_to_hub=True, hub_strategy=strategy, **saving)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        ("end", set()),
        ("every_save", set()),
        ("checkpoint", {"last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-2", "checkpoint-4", "checkpoint-6"}),
    ],
)
def test_strategies(hub, tmp_path, strategy, folders):
    """Every strategy sends what it says while training, without pickles, and `push_to_hub` completes it."""
    trainer = run_with(tmp_path, strategy)
    student = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    expected = {f"{folder}/{name}" for folder in folders for name in RESUMED} | (
        student if strategy != "end" else set()
    )
    assert set(student_of(hub)) == expected
    hub.requests.clear()
    trainer.push_to_hub()
    assert sum("/preupload/" in line for line in hub.requests) == 1  # checkpoints have arrived
    assert set(student_of(hub)) == expected | PUBLISHED
    assert not [path for path in student_of(hub) if path.endswith((".bin", ".pt", ".pth"))]
    assert not list(tmp_path.glob("_push-*"))


@pytest.mark.parametrize("method", [amal, lambda: amal(ExampleTable())], ids=["network", "table"])
def test_a_run_goes_on_from_the_hub(hub, tmp_path, method):
    """On a machine that has nothing but the script, a run that goes on from step 4 ends as the one that went through,
    to the bit.
    """
    whole = run_with(tmp_path / "here", "all_checkpoints", method(), hub_include_weights=True)
    folder = checkpoint_from_hub("me/student", tmp_path / "there", checkpoint="checkpoint-4")
    assert folder == str(tmp_path / "there" / "checkpoint-4")
    with pytest.raises(FileExistsError, match="checkpoint-4 is here already"):
        checkpoint_from_hub("me/student", tmp_path / "there", checkpoint="checkpoint-4")
    resumed = new_trainer(tmp_path / "there", method())
    resumed.train(resume_from_checkpoint=folder)
    assert resumed.state.global_step == 6
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


MAPPED = Path("/proc/self/maps")


@pytest.mark.skipif(not MAPPED.is_file(), reason="not told which files are mapped")
def test_a_run_goes_on_under_windows(tmp_path, monkeypatch):
    """It removes no file that is mapped, as tensors of safetensors are, and reads text as cp1252 where not told
    otherwise, in which there is no tokenizer of other alphabets.
    """
    torch.save({"state": torch.arange(5000), "step": 3}, tmp_path / "optimizer.pt")
    make_portable(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"Á": 1}', encoding="utf-8")
    unlink, read_text = Path.unlink, Path.read_text

    def unlink_there(path, missing_ok=False):
        assert str(path) not in read_text(MAPPED)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_there)
    monkeypatch.setattr(Path, "read_text", lambda path, encoding="cp1252": read_text(path, encoding))
    make_resumable(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["optimizer.pt", "tokenizer.json"]
    assert torch.load(tmp_path / "optimizer.pt")["state"].equal(torch.arange(5000))


def test_without_weights_a_published_checkpoint_is_refused(hub, tmp_path):
    """Learned weights were not published, so that the run cannot go on; this is said before a step is taken."""
    run_with(tmp_path / "here", "checkpoint")
    folder = checkpoint_from_hub("me/student", tmp_path / "there")
    with pytest.raises(FileNotFoundError, match="published without hub_include_weights=True"):
        new_trainer(tmp_path / "there").train(resume_from_checkpoint=folder)
    with pytest.raises(FileNotFoundError, match="me/student has no checkpoint in 'checkpoint-9'"):
        checkpoint_from_hub("me/student", tmp_path / "there", checkpoint="checkpoint-9")


def test_the_token_is_there_while_checkpoints_are_written(hub, monkeypatch, tmp_path):
    """A push in the background keeps its token, though the arguments lose it for as long as they are written."""
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    trainer = new_trainer(tmp_path, push_to_hub=True, hub_token=TOKEN, hub_strategy="every_save")
    trainer.save_model(str(tmp_path / "checkpoint-1"), _internal_call=True)
    monkeypatch.setattr(
        trainer._pushes.api, "run_as_future", lambda send, *given: late.append((send, given)) or Future()
    )
    late = []
    trainer._push_from_checkpoint(str(tmp_path / "checkpoint-1"))
    trainer.args.hub_token = None
    for send, given in late:
        send(*given)
    assert {"config.json", "model.safetensors"} <= set(student_of(hub))


def test_a_checkpoint_that_cannot_be_resumed_is_announced(hub, tmp_path, caplog):
    """Whoever publishes checkpoints to go on from them learns at once what that takes."""
    new_trainer(tmp_path, push_to_hub=True, hub_strategy="checkpoint")
    assert "no run can go on from them" in caplog.text
    caplog.clear()
    new_trainer(tmp_path, push_to_hub=True, hub_strategy="checkpoint", hub_include_weights=True)
    assert "no run can go on" not in caplog.text


def test_no_path_of_this_machine_is_published(hub, tmp_path):
    """Neither from where student and tokenizer came nor where the best checkpoint lies; a checkpoint that is fetched
    points to where it would lie there.
    """
    tiny_bert().save_pretrained(tmp_path / "start")
    tokenizer().save_pretrained(tmp_path / "start")
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    args = toy_arguments(
        tmp_path / "out",
        push_to_hub=True,
        hub_model_id="me/student",
        hub_strategy="checkpoint",
        save_strategy="steps",
        **best,
    )
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "start")
    known = AutoTokenizer.from_pretrained(tmp_path / "start")
    trainer = AMALTrainer(student, args, train_dataset=toy_rows(40), eval_dataset=toy_rows(8), processing_class=known)
    trainer.train()
    trainer.push_to_hub()
    assert not [path for path, content in student_of(hub).items() if str(tmp_path).encode() in content]
    assert str(tmp_path) in (tmp_path / "out" / "checkpoint-6" / "trainer_state.json").read_text()
    fetched = checkpoint_from_hub("me/student", tmp_path / "there")
    best = json.loads((tmp_path / "there" / "checkpoint-6" / "trainer_state.json").read_text())[
        "best_model_checkpoint"
    ]
    assert best.startswith(str(tmp_path / "there")) and fetched.startswith(str(tmp_path / "there"))


# ---- what goes wrong ----


def test_a_wrong_token_is_refused_at_once(hub, tmp_path):
    """A run that could not be pushed does not begin."""
    with pytest.raises(OSError, match="401") as failed:
        new_trainer(tmp_path, push_to_hub=True, hub_token="hf_wrong")
    assert "Invalid credentials" in str(failed.value) and "hf_wrong" not in str(failed.value)


def test_what_cannot_be_pushed_is_on_disk(hub, tmp_path):
    """A run that was never saved is not lost to a missing token; and nothing is created for a card with a slip."""
    trainer = new_trainer(tmp_path / "out")
    with pytest.raises(TypeError, match="langauge"):
        trainer.push_to_hub(langauge="en")
    assert not hub.repositories
    trainer.args.hub_token = "wrong"
    with pytest.raises(Exception, match="401") as refused:
        trainer.push_to_hub(language="en")
    assert "The student is saved in" in refused.value.__notes__[0] and not hub.repositories
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in trainer.model.state_dict().items())
    assert "language:\n- en" in (tmp_path / "out" / "README.md").read_text()
    trainer.args.hub_token = TOKEN
    trainer.push_to_hub()
    assert "language:\n- en" in student_of(hub)["README.md"].decode()


def test_private_repositories(hub, monkeypatch, tmp_path):
    """A private student is created so, and nobody reads it without the token."""
    new_trainer(tmp_path).push_to_hub(private=True)
    assert student_of(hub).private
    AutoModelForSequenceClassification.from_pretrained("me/student")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(OSError, match="me/student"):
        AutoModelForSequenceClassification.from_pretrained("me/student", cache_dir=tmp_path / "cache")


def test_a_repository_that_exists_is_kept(hub, tmp_path):
    """Files that others put there stay; the student's are replaced."""
    new_trainer(tmp_path / "first", push_to_hub=True)
    student_of(hub).update({"notes.txt": b"ours", "config.json": b"{}"})
    new_trainer(tmp_path / "second", push_to_hub=True).push_to_hub()
    assert student_of(hub)["notes.txt"] == b"ours"
    assert json.loads(student_of(hub)["config.json"])["model_type"] == "bert"


@pytest.mark.parametrize("line", ["/preupload/", "/info/lfs", "PUT /lfs/", "/lfs/verify", "/commit/"])
def test_a_server_that_fails_twice(hub, tmp_path, line):
    """Two errors of the server at any step of a push are overcome."""
    trainer = new_trainer(tmp_path, push_to_hub=True)
    hub.faults.append(Fault(line, times=2))
    trainer.push_to_hub()
    assert set(student_of(hub)) == PUBLISHED and len(student_of(hub).messages) == 1
    assert hub.faults[0].times == 0


def test_a_connection_that_is_cut(hub, tmp_path):
    """An upload that breaks off in the middle is sent again, and what arrives is whole."""
    trainer = new_trainer(tmp_path, push_to_hub=True)
    hub.faults.append(Fault("PUT /lfs/", status=0))
    trainer.push_to_hub()
    assert student_of(hub)["model.safetensors"] == (tmp_path / "model.safetensors").read_bytes()


def test_a_push_that_fails_says_where_everything_is(hub, tmp_path):
    """After a failure the student is on disk, and the next push sends what is missing, not what is there."""
    trainer = new_trainer(tmp_path, push_to_hub=True)
    hub.faults.append(Fault("/commit/", status=403))
    with pytest.raises(OSError, match="403") as failed:
        trainer.push_to_hub()
    assert (
        f"the files are in {tmp_path}, and `trainer.push_to_hub()` sends what is missing" in failed.value.__notes__[0]
    )
    AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert not list(tmp_path.glob("_push-*"))
    hub.requests.clear()
    trainer.push_to_hub()
    assert set(student_of(hub)) == PUBLISHED
    assert not any(line.startswith("PUT") for line in hub.requests)  # the weights had arrived


def test_a_background_push_that_fails_is_reported(hub, tmp_path, caplog):
    """The end of training names the push that failed and why; `push_to_hub` brings the checkpoint that is missing."""
    hub.faults.append(Fault("/commit/", status=403, times=99))
    with caplog.at_level(logging.ERROR, "amal_hf.publishing"):
        trainer = run_with(tmp_path, "checkpoint", save_steps=6)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "'Training in progress, step 6'",
        "'Training in progress, step 6, checkpoint'",
    ]
    assert "403" in caplog.text and "This did not get to me/student. Nothing is lost" in caplog.text
    assert TOKEN not in caplog.text
    assert (tmp_path / "checkpoint-6" / "optimizer.pt").is_file() and not student_of(hub)
    hub.faults.clear()
    trainer.push_to_hub()
    assert {f"last-checkpoint/{name}" for name in RESUMED} | PUBLISHED == set(student_of(hub))


def test_a_push_in_the_background(hub, tmp_path):
    """`blocking=False` gives a future, and the folder may change meanwhile."""
    trainer = new_trainer(tmp_path, push_to_hub=True)
    pushing = trainer.push_to_hub(blocking=False)
    assert isinstance(pushing, Future)
    (tmp_path / "model.safetensors").write_bytes(b"changed")
    assert "me/student" in pushing.result(timeout=60).commit_url
    assert student_of(hub)["model.safetensors"] != b"changed"


def test_a_card_that_the_hub_would_refuse_is_not_sent(hub, tmp_path):
    """What is wrong with it is said, all at once, and the student is on disk."""
    trainer = new_trainer(tmp_path, push_to_hub=True)
    with pytest.raises(ValueError, match="language: 'English' is no ISO 639 code.*\n.*license: 'Apache 2.0' is no"):
        trainer.push_to_hub(details=CardDetails(language=("English",), license="Apache 2.0"))
    assert (tmp_path / "model.safetensors").is_file() and not student_of(hub)
    assert not list(tmp_path.glob("_push-*"))


# ---- what is nobody's business, and what is no fault ----


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_weights_in_a_file_stay_at_home_too(hub, tmp_path, strategy):
    """A table that is a file has its rows in every checkpoint; they tell about the training data all the same, and so
    may whatever else a callback has put there.
    """

    trainer = new_trainer(
        tmp_path,
        amal(ExampleTable()),
        push_to_hub=True,
        hub_strategy=strategy,
        hub_always_push=True,
        save_strategy="steps",
        save_steps=2,
        weights_dir=str(tmp_path / "rows"),
    )
    trainer.train()
    (tmp_path / "checkpoint-6" / "predictions.csv").write_text("texts")
    trainer._push_from_checkpoint(str(tmp_path / "checkpoint-6"))
    trainer.push_to_hub()
    assert list((tmp_path / "checkpoint-6").glob("weights-*.safetensors"))
    assert not [path for path in student_of(hub) if "weights-" in path]
    assert "predictions.csv" not in student_of(hub)


def test_a_table_in_a_file_is_published_as_a_dataset(hub, tmp_path):
    """There is no policy to save beside it."""
    table = {"weights_dir": str(tmp_path / "rows"), "hub_include_weights": True}
    trainer = new_trainer(tmp_path / "out", amal(ExampleTable()), push_to_hub=True, **table)
    trainer.train()
    trainer.push_to_hub()
    assert set(student_of(hub)) == PUBLISHED
    assert "datasets/me/student-weights" in hub.repositories


def test_weights_are_as_private_as_their_student(hub, tmp_path):
    """Whether that was said late, or the repository was private before."""
    trainer = new_trainer(tmp_path / "late", push_to_hub=True, hub_include_weights=True)
    trainer.push_to_hub(private=True)
    assert hub.repositories["datasets/me/student-weights"].private
    hub.repositories.pop("datasets/me/student-weights")
    student_of(hub).private = True
    new_trainer(tmp_path / "there", push_to_hub=True, hub_include_weights=True).push_to_hub()
    assert hub.repositories["datasets/me/student-weights"].private


def test_weights_of_other_losses_replace_the_earlier_ones(hub, tmp_path):
    """The dataset can be read after every push, and has the columns of the last."""
    for number, losses in enumerate(
        ([CrossEntropy()], [CrossEntropy(), Distillation(tiny_bert(1))], [CrossEntropy()])
    ):
        folder = tmp_path / str(number)
        args = toy_arguments(folder, hub_model_id="me/student", push_to_hub=True, hub_include_weights=True)
        sets = {"train_dataset": toy_rows(40), "meta_dataset": toy_rows(12, seed=2)}
        trainer = AMALTrainer(tiny_bert(), args, **sets, losses=losses, method=amal(), processing_class=tokenizer())
        trainer.train()
        trainer.push_to_hub()
        there = datasets.load_dataset("me/student-weights", split="train", cache_dir=str(tmp_path / f"cache {number}"))
        assert there.column_names == trainer.example_weights().column_names


@pytest.mark.parametrize("value", [[0.1, 0.2], None, "good", {"a": 1.0}, float("nan")])
def test_a_metric_that_is_no_number_is_left_out(hub, tmp_path, value):
    """It is in the log for good, and must not keep a finished student from being published."""
    trainer = new_trainer(tmp_path, push_to_hub=True)
    trainer.compute_metrics = lambda prediction: {"odd": value, "accuracy": 0.5}
    trainer.evaluate()
    trainer.push_to_hub()
    card = student_of(hub)["README.md"].decode()
    assert "accuracy 0.5" in card and "odd" not in card


def test_names_and_texts_may_say_anything(hub, tmp_path):
    """Classes, a repository and training texts that look like faults of a card are none; a picture in a text is not
    shown.
    """
    texts = ["undefined {{ name }}", "see [docs](api.html)", "![x](https://example.org/x.png)", "NONE | nan"]
    rows = toy_rows(40).add_column("text", [texts[number % 4] for number in range(40)])
    names = ["nan", "NONE", "figures"]
    student = tiny_bert(id2label=dict(enumerate(names)), label2id={name: n for n, name in enumerate(names)})
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "weights.png").write_bytes(b"picture")
    args = toy_arguments(tmp_path, hub_model_id="me/bert-base-nan", push_to_hub=True)
    trainer = AMALTrainer(
        student,
        args,
        train_dataset=rows,
        meta_dataset=toy_rows(12, seed=2),
        losses=[CrossEntropy()],
        method=amal(),
        processing_class=tokenizer(),
    )
    trainer.train()
    trainer.push_to_hub(shown_examples=8)
    card = hub.repositories["models/me/bert-base-nan"]["README.md"].decode()
    assert "undefined" in card and r"!\[x\](https" in card
    with pytest.raises(ValueError, match="is no licence id"):
        trainer.push_to_hub(license="My Own")
    trainer.push_to_hub()  # what was wrong is not kept


def test_scores_are_those_of_the_student_that_is_published(tmp_path):
    """With the best checkpoint loaded, its evaluation, and its step beside those of the run, at whose end the weights
    are; of several sets, one of each.
    """
    trainer = new_trainer(
        tmp_path,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    scores = iter([0.9, 0.2, 0.1])
    trainer.compute_metrics = lambda prediction: {"score": next(scores)}
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "score 0.9" in card
    assert (
        "- 6 optimizer steps" in card
        and "; the student is that of step 2, the best in evaluation of those that were saved" in card
    )
    assert "that have them, as at the end of training. A loss weighs much" in card
    trainer.compute_metrics = lambda prediction: {"score": 0.5}
    trainer.evaluate()
    trainer.create_model_card()
    assert "score 0.5" in (tmp_path / "README.md").read_text()
    several = new_trainer(tmp_path / "several")
    several.eval_dataset = {"near": toy_rows(8, seed=1), "far": toy_rows(8, seed=2)}
    several.compute_metrics = lambda prediction: {"score": 0.25}
    several.evaluate()
    several.create_model_card()
    card = (tmp_path / "several" / "README.md").read_text()
    assert "near_score 0.25" in card and "far_score 0.25" in card


@pytest.mark.parametrize(("scores", "loaded"), [((0.2, 0.3, 0.9, 0.4), 0.3), ((0.9, 0.4, 0.3, 0.2), 0.2)])
def test_a_best_student_that_was_not_saved_is_not_published(tmp_path, scores, loaded):
    """Evaluated more often than saved, the best may be gone: the card has the score of the student that is there."""
    trainer = new_trainer(
        tmp_path,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=2,
        max_steps=len(scores),
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    given = iter(scores)
    trainer.compute_metrics = lambda prediction: {"score": next(given)}
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert f"score {loaded}" in card
    assert ("the student is that of step 2" in card) == (loaded == 0.3)


def test_figures_of_an_earlier_run_are_not_shown(tmp_path):
    """A run with fixed weights in the same folder has none."""
    pytest.importorskip("matplotlib")
    new_trainer(tmp_path, write_figures=True).train()
    assert list((tmp_path / "figures").glob("*.png"))
    new_trainer(tmp_path, Method("fixed", FixedWeights()), write_figures=True).train()
    assert not list((tmp_path / "figures").glob("*.png"))


def test_sharded_checkpoints_are_not_published(tmp_path, monkeypatch):
    """They hold pickles, and could not be resumed from the Hub; said before training."""
    trainer = new_trainer(tmp_path)
    trainer.is_fsdp_enabled, trainer.args.hub_strategy = True, "checkpoint"
    with pytest.raises(ValueError, match="Under FSDP checkpoints hold pickles"):
        trainer.init_hf_repo()


def test_a_script_asks_the_hub_before_it_trains_anything(hub, tmp_path):
    """Its published trainer may be the last of several; a token that may not write is told of now."""
    args = toy_arguments(tmp_path / "student", push_to_hub=True, hub_model_id="me/asked")
    reach_hub(args)
    assert "models/me/asked" in hub.repositories
    reach_hub(toy_arguments(tmp_path / "other"))
    assert not any("other" in name for name in hub.repositories)
    with pytest.raises(HfHubHTTPError):
        reach_hub(toy_arguments(tmp_path, push_to_hub=True, hub_model_id="me/not", hub_token="hf_" + 20 * "x"))
