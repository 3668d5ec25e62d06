"""The code of the README and of docs/ runs as it stands there, and links lead somewhere."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from conftest import tiny_bert
from hub import TOKEN, connect, running_hub
from test_teachers import tokenizer

import amal_hf
from amal_hf import AMALArguments, AMALTrainer, aggregation
from amal_hf.commentary import Commentary
from amal_hf.policies.network_policy import NetworkPolicy


ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs").glob("*.md"),
    ROOT / "benchmarks" / "README.md",
    ROOT / "CONTRIBUTING.md",
]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
SCALING = TEXTS[ROOT / "docs" / "scaling.md"]
RESULTS = TEXTS[ROOT / "docs" / "results.md"]
GUIDE = TEXTS[ROOT / "README.md"] + TEXTS[ROOT / "docs" / "guide.md"]


def code_with(words):
    """The block of Python, or the new side of the one that is a difference, in which these words are."""
    kinds = re.findall(r"^```(python|diff)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    (block,) = [(kind, text) for kind, text in kinds if words in text]
    kind, text = block
    if kind == "python":
        return text
    return "\n".join(line[1:] for line in text.splitlines() if not line.startswith("-"))


def write_rows(folder, column, **splits):
    """Texts of which the first word says the class."""
    folder.mkdir(parents=True)
    firsts = {"LOC": "where", "HUM": "who", "NUM": "w0"}
    for place, (split, rows) in enumerate(splits.items()):
        labels = [list(firsts)[number % 3] for number in range(rows)]
        texts = [f"{firsts[label]} w{number % 50} w{place} w{number // 50}" for number, label in enumerate(labels)]
        lines = [json.dumps({column: text, "label": label}) for text, label in zip(texts, labels, strict=True)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))


@pytest.fixture
def world(monkeypatch, tmp_path):
    """What a reader has: a tokenizer, models, and a working directory with data and a teacher in it."""
    monkeypatch.chdir(tmp_path)
    teacher = tiny_bert(1)
    words = tokenizer(["[PAD]", "[UNK]", "where", "who", *(f"w{number}" for number in range(50))])
    teacher.save_pretrained("path/to/teacher")
    teacher.save_pretrained("google-bert/bert-base-uncased")  # a folder, as there is no network
    words.save_pretrained("path/to/teacher")
    return {"tokenizer": words, "student": tiny_bert(), "teacher": teacher}


def run(code, world):
    """Executes it in that world, which keeps what it imports and makes."""
    exec(compile(code, "README.md", "exec"), world)


def test_labels_a_teacher_and_a_meta_set(world, monkeypatch, tmp_path):
    """From a data set to a student on the Hub: every block in which labels are learned from."""
    write_rows(Path("stanfordnlp/sst2"), "sentence", train=360, validation=24)
    run(code_with("split_dataset(data"), world)
    assert len(world["clean"]) == 300
    world["dev"] = world["data"]["validation"].map(lambda row: world["tokenizer"](row["sentence"]))
    run(code_with("path/to/teacher"), world)
    assert set(world["trainer"].example_weights().column_names) == {"example_id", "labels", "teacher"}

    run(code_with("teacher_trainer = Trainer("), world)
    assert "wrong_labels_by_teacher" in world["trainer"].state.log_history[-1]
    run(code_with("calibrated_at="), world)
    train_with(world, world["losses"], world["train"])
    run(code_with("CorrectedCrossEntropy"), world)
    train_with(world, world["losses"], world["train"].add_column("checked", [False] * len(world["train"])))

    run(code_with("label_smoothing_factor=0.1"), world)
    assert world["last"].num_train_epochs == 5
    with running_hub() as hub:
        connect(hub, monkeypatch, tmp_path / "home")
        world["trainer"].args.hub_model_id = "me/student"
        world["trainer"].args.hub_token = TOKEN
        run(code_with("Comparison("), world)
        assert "0.81" in hub.repositories["models/me/student"]["README.md"].decode()


def test_rows_with_weight(world):
    """Are kept as they were, and clean ones come last."""
    write_rows(Path("stanfordnlp/sst2"), "sentence", train=360, validation=24)
    run(code_with("split_dataset(data"), world)
    rows, clean = world["train"].to_list(), world["clean"].to_list()
    run(code_with("kept_rows(train"), world)
    kept = world["train"].to_list()
    assert len(clean) < len(kept) <= len(rows) + len(clean)
    assert kept[-len(clean) :] == clean and all(row in rows for row in kept[: -len(clean)])


def test_rows_that_nobody_suspects(world):
    """The same without clean rows."""
    pytest.importorskip("cleanlab")
    write_rows(Path("stanfordnlp/sst2"), "sentence", train=360, validation=24)
    run(code_with("split_dataset(data"), world)
    rows = world["train"].to_list()
    world["encoder"] = world["teacher"].bert
    run(code_with("find_label_issues"), world)
    assert 0 < len(world["train"]) <= len(rows)
    assert all(row in rows for row in world["train"].to_list())


def test_a_teacher_of_seconds(world):
    """Is learned from, on all rows and the clean ones."""
    write_rows(Path("stanfordnlp/sst2"), "sentence", train=360, validation=24)
    run(code_with("split_dataset(data"), world)
    world |= {"encoder": world["teacher"].bert, "AMALArguments": AMALArguments, "AMALTrainer": AMALTrainer}
    world["dev"] = world["data"]["validation"].map(lambda row: world["tokenizer"](row["sentence"]))
    run(code_with("answered_rows(train"), world)
    assert len(world["rows"]) == len(world["train"]) + len(world["clean"])
    assert "wrong_labels_by_teacher" in world["trainer"].state.log_history[-1]
    assert set(world["trainer"].example_weights().column_names) == {"example_id", "labels", "teacher"}


def train_with(world, losses, rows):
    """A few steps: that losses can be trained with."""
    arguments = AMALArguments("few", max_steps=2, report_to="none", write_figures=False)
    trainer = AMALTrainer(
        world["student"],
        arguments,
        train_dataset=rows,
        meta_dataset=world["clean"],
        processing_class=world["tokenizer"],
        losses=losses,
        method=amal_hf.amal(),
    )
    trainer.train()


def test_rules(world):
    """Where rules vote: the block as it stands, with a student and arguments in the place of its dots."""
    write_rows(Path("path/to/data"), "text", train=200, validation=40, test=20)
    world["arguments"] = AMALArguments("rules", max_steps=4, report_to="none", write_figures=False)
    code = code_with("keyword_rule").replace("    ...,\n", "    student, arguments, processing_class=tokenizer,\n")
    run(code, world)
    world["trainer"].train()
    names = set(world["trainer"].example_weights().column_names)
    assert names == {"example_id", "labels", "rules/asks_for_a_place", "rules/keyword_who"}


def test_calls_that_are_named_can_be_made():
    """Every call in the text and the tables: nothing that was renamed, no argument that is gone."""
    text = re.sub(r"^```.*?^```", "", GUIDE + RESULTS, flags=re.DOTALL | re.MULTILINE)
    homes = (amal_hf, AMALTrainer, NetworkPolicy, aggregation, Commentary)
    checked = set()
    for code in re.findall(r"`(?:\w+=)?([^`\n=]+\([^`\n]*\))`", text):
        for call in calls_in(code):
            (made, *_) = [getattr(home, call.func.id) for home in homes if hasattr(home, call.func.id)]
            known = inspect.signature(made).parameters
            assert {keyword.arg for keyword in call.keywords} <= set(known), code
            assert len(call.args) <= len(known), code
            checked.add(call.func.id)
    assert {"amal", "Distillation", "LossNetwork", "label_by_votes", "example_weights"} <= checked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Each one that stays in the repository: to a file that is there, and to a heading that it has."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", TEXTS[page]):
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), target


def anchors(text):
    """What headings of a page are called in its address."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", ["8gpus", "2x8", "fsdp2"])
def test_configurations_are_those_of_accelerate(name, tmp_path):
    """Every file in `docs/scaling.md` is read by `accelerate launch`, with no key that it does not know."""
    (text,) = re.findall(rf"^```yaml\n# {name}.yaml\n(.*?)^```", SCALING, re.DOTALL | re.MULTILINE)
    (tmp_path / "config.yaml").write_text(text)
    found = load_config_from_file(str(tmp_path / "config.yaml"))
    assert found.num_processes == (16 if name == "2x8" else 8)
    assert found.mixed_precision == "bf16"


def test_arguments_for_fsdp_can_be_made(monkeypatch, tmp_path):
    """The block of `docs/scaling.md`, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # transformers sets it, and would leave it so
    (code,) = re.findall(r"^```python\n(.*?)^```", SCALING, re.DOTALL | re.MULTILINE)
    world = {"AMALArguments": AMALArguments}
    run(code.replace("bf16=True,", "bf16=True, use_cpu=True,"), world)
    assert world["args"].fsdp_config["version"] == 2


def calls_in(code):
    """Calls by name; none where the code is a formula or words."""
    try:
        tree = ast.parse(code, mode="eval")
    except SyntaxError:
        return []
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
