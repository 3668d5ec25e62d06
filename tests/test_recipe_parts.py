"""Parts of the recipes that need no training, and no teacher."""

import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import tiny_bert
from datasets import ClassLabel, Dataset, Features, concatenate_datasets
from test_teachers import tokenizer
from transformers import pipeline


sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

import denoise_rules  # noqa: E402
import distil_bert  # noqa: E402
import learn_commentary  # noqa: E402
import reweight_noisy_labels  # noqa: E402
import translate_deep_interactions  # noqa: E402

from amal_hf.card_check import check_card  # noqa: E402
from amal_hf.card_facts import RunFacts  # noqa: E402
from amal_hf.cards import render_card  # noqa: E402


RECIPES = [denoise_rules, distil_bert, learn_commentary, reweight_noisy_labels, translate_deep_interactions]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_recipe_goes_on_from_no_checkpoint(recipe):
    """It says so, where it would begin anew."""
    with pytest.raises(ValueError, match="--resume_from_checkpoint: this script .* from the beginning, got 'out'"):
        recipe.parse(["--resume_from_checkpoint", "out"])
    assert recipe.parse([])[1].resume_from_checkpoint is None


@pytest.mark.parametrize(
    "student_of",
    [
        denoise_rules.new_student,
        reweight_noisy_labels.new_student,
        learn_commentary.first_student,
        learn_commentary.other_student,
        lambda bench: distil_bert.with_head(bench.recipe.model, bench.data["train"].features["label"]),
    ],
    ids=["denoise_rules", "reweight_noisy_labels", "learn_commentary", "to reuse one", "distil_bert"],
)
def test_a_student_may_have_a_head_for_other_classes(tmp_path, student_of):
    """It was fine-tuned on something else: it gets a new head, and is not refused."""
    tiny_bert(num_labels=3).save_pretrained(tmp_path)
    rows = Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=["no", "yes"])}))
    recipe = SimpleNamespace(model=str(tmp_path), student=str(tmp_path))
    bench = SimpleNamespace(
        recipe=recipe, args=SimpleNamespace(seed=0), data={"train": rows}, names=rows.features["label"].names
    )
    student = student_of(bench)
    assert student.classifier.out_features == 2 and student.config.id2label == {0: "no", 1: "yes"}


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"sentence": "question"}, "('question')"),
        ({"text": "question " * 300}, "question ', truncation=True, max_length=16)"),
        ({"sentence1": "question", "sentence2": "what"}, "({'text': 'question', 'text_pair': 'what'})"),
    ],
    ids=["short", "long", "pair"],
)
def test_a_saved_student_is_asked_about_any_row(tmp_path, row, asked):
    """Of a text that is longer than it can read, and of the two of a pair; what is printed can be typed."""
    tiny_bert().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    call, answer = distil_bert.shown_answer(tmp_path, {"label": 0, **row}, 16).splitlines()
    assert asked in call
    again = eval(call, {"pipeline": pipeline})
    assert answer == f"  -> {again[0] if isinstance(again, list) else again}"


@pytest.mark.parametrize(
    ("noise", "rate", "said"),
    [
        ("uniform", 0.4, "data.csv; the training labels were spoilt (uniform, 0.4)"),
        ("imbalance", 0.1, "data.csv; the training rows were made uneven by class (imbalance, 0.1)"),
        ("uniform", 0.0, "data.csv"),
    ],
)
def test_a_card_says_what_was_spoilt(noise, rate, said):
    """No label is wrong where rows are left out, or where nothing was done."""
    recipe = SimpleNamespace(dataset="data.csv", model=None, methods=["amal"], noise=noise, rate=rate)
    row = {"name": "amal", "test": 0.5, "test_interval": (0.4, 0.6), "seconds": 1.0}
    assert reweight_noisy_labels.card_details(SimpleNamespace(recipe=recipe), [row]).dataset == said


def test_clean_rows_among_others_have_right_labels():
    """They have no column of true ones, which is empty there once both are one set."""
    rows = Dataset.from_dict({"label": [0, 1, 2, 0], "true_label": [0, 1, 0, 1]})
    both = concatenate_datasets([rows, Dataset.from_dict({"label": [1, 2]})])
    weights = SimpleNamespace(example_weights=lambda: {"labels": [1.0, 2.0, 0.1, 0.2, 3.0, float("nan")]})
    assert reweight_noisy_labels.weight_auc(weights, both) == 1.0


@pytest.mark.parametrize("layout", ["JSON lines", "parallel text"])
def test_a_pair_ends_with_its_line(tmp_path, layout):
    """And not at other separators that a sentence may hold."""
    pairs = [{"en": "One\u2028line.", "de": "Eine\x85Zeile."}, {"en": "Two", "de": "Zwei"}]
    if layout == "JSON lines":
        lines = (json.dumps(pair, ensure_ascii=False) for pair in pairs)
        (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    else:
        for language in ("en", "de"):
            (tmp_path / f"train.{language}").write_text("\n".join(p[language] for p in pairs), encoding="utf-8")
    recipe = SimpleNamespace(dataset=str(tmp_path), source="en", target="de")
    assert translate_deep_interactions.read_pairs(recipe, 0).to_list() == pairs


@pytest.mark.parametrize(("names", "languages"), [(("de", "en"), ("de", "en")), (("source", "English"), ())])
def test_columns_of_pairs_may_have_any_name(names, languages):
    """On the card are those that are codes of languages; others would have it refused, when all is trained."""
    source, target = names
    recipe = SimpleNamespace(dataset="pairs.jsonl", source=source, target=target, shuffled=0.3)
    details = translate_deep_interactions.card_details(
        recipe, [{"name": "long_runs", "exact_match": 0.5, "train_seconds": 1.0}]
    )
    assert details.language == languages
    check_card(str(render_card(RunFacts("student", details, "BartForConditionalGeneration").plain())))


def test_a_translator_is_saved_last(tmp_path):
    """It is published as it is saved, and has its card by then; what was measured is kept even if that is refused."""
    found = []

    def note(part):
        found.append((part, sorted(file.name for file in tmp_path.iterdir())))

    trainer = SimpleNamespace(
        example_weights=lambda: Dataset.from_dict({"example_id": [0], "labels": [1.0]}),
        create_model_card=lambda details: note(details.comparison.student),
        save_model=lambda folder: note(folder),
    )
    recipe = SimpleNamespace(dataset=None, source="en", target="de", shuffled=0.3)
    rows = [{"name": "long_runs", "exact_match": 0.5, "train_seconds": 1.0}]
    translate_deep_interactions.save(trainer, rows, recipe, SimpleNamespace(output_dir=str(tmp_path)))
    measured = ["example_weights.csv", "results.json"]
    assert found == [("long_runs", measured), (str(tmp_path / "student"), measured)]


def test_a_commentary_is_reused_on_the_rows_that_it_was_learned_on():
    """The command that is printed makes the same rows: of the same data, seed and share of wrong labels."""
    rows = ["--dataset", "my data.csv", "--label_noise", "0.2", "--meta_rows", "50", "--seed", "7", "--smoke"]
    said = learn_commentary.reuse_command(*learn_commentary.parse([*rows, "--output_dir", "out", "--kind", "mask"]))
    recipe, args = learn_commentary.parse(shlex.split(said)[2:])
    assert (recipe.dataset, recipe.label_noise, recipe.meta_rows, args.seed) == ("my data.csv", 0.2, 50, 7)
    assert recipe.smoke and recipe.reuse == str(Path("out", "commentary"))
    plain = learn_commentary.reuse_command(*learn_commentary.parse([]))
    assert plain == "python recipes/learn_commentary.py --reuse out/learn_commentary/commentary"


@pytest.mark.parametrize("true", [None, [0, 1]], ids=["not known", "all right"])
def test_weights_are_not_drawn_where_no_label_is_known_to_be_wrong(tmp_path, true):
    """There is nothing to compare: no picture is spoken of, and nothing fails after the training."""
    rows = Dataset.from_dict({"label": [0, 1]} | ({} if true is None else {"true_label": true}))
    trainer = SimpleNamespace(
        method=SimpleNamespace(batch_policy=None), example_weights=lambda: {"labels": [0.5, 1.5]}
    )
    assert learn_commentary.draw(SimpleNamespace(data={"train": rows}), trainer, tmp_path / "weights.png") == []
