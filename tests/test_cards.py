"""Model cards: what they say, that they can be made again, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_bert, tiny_vit, toy_arguments, toy_rows
from datasets import ClassLabel
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertPreTrainedModel,
    TrainingArguments,
)

from amal_hf import (
    AMALTrainer,
    AnnealedWeights,
    Cage,
    CardDetails,
    Comparison,
    Contender,
    CrossEntropy,
    Distillation,
    FixedWeights,
    LabelBlend,
    Method,
    RuleLosses,
    SharedWeights,
    Spear,
    amal,
    commentaries,
    random_weights,
)
from amal_hf.card_check import check_card
from amal_hf.card_facts import RunFacts
from amal_hf.cards import names_of, render_card
from amal_hf.metrics import classification_metrics
from amal_hf.run_facts import _example, gather
from amal_hf.run_record import settings_of


CARDS = sorted((Path(__file__).parents[1] / "model_cards").glob("*/card.json"))

COMPARISON = Comparison(
    (
        Contender("teacher", 0.91234, (0.9, 0.92), 3, 22_700_000, 90.9, (6.1, 7.0), (2.2, 3.1), 58.0),
        Contender("labels only", 0.87, (0.85, 0.89), 3, 15_600_000, 62.4, (3.1, 3.5), (1.2, 1.9), 20.0),
        Contender("amal", 0.9, (0.88, 0.92), 3, 15_600_000, 62.4, (3.1, 3.5), (1.2, 1.9), 30.0),
    ),
    student="amal",
    dataset="questions",
    hardware="x86_64 CPU, 2 threads",
)

DETAILS = CardDetails(
    language=("en",),
    license="apache-2.0",
    finetuned_from="me/start",
    teachers=("me/teacher",),
    teacher_license="MIT",
    dataset="questions",
    dataset_tags=("me/questions",),
    data_license="CC-BY-4.0",
    comparison=COMPARISON,
    co2_grams=1.5,
    co2_source="CodeCarbon",
)


def texts(count, seed=0):
    rows = (
        toy_rows(count, seed).rename_column("labels", "label").cast_column("label", ClassLabel(names=["a", "b", "c"]))
    )
    return rows.add_column("text", [f"number {number} <script>alert(1)</script> | `x`" for number in range(count)])


def trained(folder, **given):
    usual = {
        "args": toy_arguments(folder, eval_strategy="steps", eval_steps=3),
        "train_dataset": texts(40),
        "eval_dataset": texts(8, 1),
        "meta_dataset": texts(12, 2),
        "losses": [CrossEntropy(), Distillation(tiny_bert(1))],
        "method": amal(),
    }
    trainer = AMALTrainer(tiny_bert(), compute_metrics=classification_metrics, **{**usual, **given})
    trainer.train()
    return trainer


def card_of(folder):
    return (folder / "README.md").read_text()


# ---- what it says ----


def test_a_full_card(tmp_path):
    """Metadata and text say what the run was, what it was compared with, and whom to cite; and it is valid."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "weight_history.png").write_bytes(b"picture")
    trained(tmp_path).create_model_card(DETAILS)
    card = ModelCard(card_of(tmp_path))
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("me/start", "finetune")
    assert data["teacher_model"] == ["me/teacher"] and "distillation" in data["tags"]
    assert data["datasets"] == ["me/questions"] and data["metrics"] == ["accuracy"]
    assert data["co2_eq_emissions"]["emissions"] == 1.5
    assert data["pipeline_tag"] == "text-classification" and data["library_name"] == "transformers"
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.9}] and result["dataset"]["type"] == "me/questions"
    for said in (
        "| teacher | 0.912 (0.9 to 0.92) | 3 | 22.7 M | 90.9 | 6.1 / 7 | 2.2 / 3.1 | 58 |",
        "| **amal** | 0.9 (0.88 to 0.92)",
        "on x86_64 CPU, 2 threads",
        "![weight history](figures/weight_history.png)",
        "- loss `teacher`: Distillation, forward_kl, temperature 2",
        "- weights: LossNetwork, hidden 32, GatedConvex",
        "- rows: 40 for training, 12 for meta, 8 for evaluation",
        "learning_rate 0.001",
        "licence of the data: CC-BY-4.0",
        "1.5 g of CO2 (CodeCarbon)",
        "Adaptive Mixing of Auxiliary Losses",
        "Distilling the Knowledge",
    ):
        assert said in card.text
    assert "number 0" not in card.text  # training data


@pytest.mark.parametrize("form", [None, "torch"])
def test_examples_are_shown_on_request(tmp_path, form):
    """The examples of extreme weight appear with id, label and text, and nothing in a text acts as markup."""
    trained(tmp_path, train_dataset=texts(40).with_format(form)).create_model_card(shown_examples=2)
    card = card_of(tmp_path)
    facts = json.loads((tmp_path / "card.json").read_text())
    assert len(facts["lowest"]) == len(facts["highest"]) == 2
    assert facts["lowest"][0]["weight"] <= facts["highest"][0]["weight"]
    assert facts["lowest"][0]["label"] in {"a", "b", "c"}
    assert "&lt;script>" in card and "<script>" not in card and "\\| \\`x\\`" in card


def test_sets_that_the_trainer_does_not_hold(tmp_path):
    """Rows that were scored without being its evaluation set leave its place empty, and rows without a label have no
    weight of one.
    """
    rows = texts(40).remove_columns("label").add_column("labels", [-100] * 20 + [1] * 20)
    trainer = trained(tmp_path, train_dataset=rows, eval_dataset=None, args=toy_arguments(tmp_path))
    trainer.evaluate(texts(8, 1))
    trainer.create_model_card(shown_examples=9)
    check_card(card_of(tmp_path), tmp_path)
    assert "The last evaluation: loss" in card_of(tmp_path)
    facts = json.loads((tmp_path / "card.json").read_text())
    assert {entry["label"] for entry in facts["lowest"]} == {"1"}
    known = np.array(trainer.example_weights()["labels"][:])[20:]
    assert facts["weights"][0]["mean"] == pytest.approx(np.nanmean(known))
    assert facts["weights"][0]["p05"] == pytest.approx(np.nanquantile(known, 0.05))


def test_rules_that_abstained_have_no_weight(tmp_path):
    """In the card a rule's weights are those of the rows that it voted on."""
    votes = [[1, -1], [-1, 2], [-1, -1], [0, 0]] * 10
    losses = [CrossEntropy(), RuleLosses(["first", "second"])]
    trainer = trained(tmp_path, train_dataset=texts(40).add_column("weak_labels", votes), losses=losses)
    trainer.create_model_card()
    found = {entry["loss"]: entry["mean"] for entry in json.loads((tmp_path / "card.json").read_text())["weights"]}
    for rule, name in enumerate(("rules/first", "rules/second")):
        weights = np.array(trainer.example_weights()[name][:])[np.array(votes)[:, rule] >= 0]
        assert found[name] == pytest.approx(np.nanmean(weights), rel=1e-5)


def test_rules_may_have_any_name(tmp_path):
    """A rule that looks for a word is named after it, be it one by which an empty place of a card is known."""
    rows = texts(40).add_column("weak_labels", [[1, 2], [-1, 0]] * 20)
    losses = [CrossEntropy(), RuleLosses(["nan", "undefined"])]
    trained(tmp_path, train_dataset=rows, losses=losses).create_model_card()
    assert "| rules/nan |" in card_of(tmp_path) and "| rules/undefined |" in card_of(tmp_path)


def test_weights_that_were_not_learned_are_no_fixed_mixture(tmp_path):
    """A card says by what examples were weighed; of a fixed mixture that it was one."""
    said = {}
    methods = {
        "fixed": None,
        "random": random_weights(),
        "annealed": Method("annealed", AnnealedWeights([1.0, 0.0])),
        "learned": amal(),
    }
    for name, method in methods.items():
        trained(tmp_path / name, method=method, args=toy_arguments(tmp_path / name)).create_model_card()
        said[name] = card_of(tmp_path / name)
    assert "on 2 losses in a fixed mixture." in said["fixed"] and "Nothing: the weights" in said["fixed"]
    for name, policy in (("random", "RandomWeights"), ("annealed", "AnnealedWeights")):
        assert f"on 2 losses, weighed by {policy}" in said[name] and "## How examples were weighed" in said[name]
        assert f"that have them, by {policy}" in said[name] and "fixed" not in said[name]
    assert "learned these weights on a small clean set" in said["learned"] and "## What was learned" in said["learned"]


def test_changed_batches_are_no_weights_and_shared_weights_are_nobodys_own(tmp_path):
    """Of a commentary that changes batches a card says so, also of one that was learned before, and not that it gave
    examples weights; of weights that all examples share it does not say that each has its own.
    """
    said, frozen = {}, LabelBlend(3)
    frozen.freeze()
    methods = {
        "blend": commentaries(LabelBlend(3)),
        "frozen": Method("commentary", FixedWeights(), batch_policy=frozen),
        "shared": amal(SharedWeights()),
    }
    for name, method in methods.items():
        trained(tmp_path / name, method=method, args=toy_arguments(tmp_path / name)).create_model_card()
        said[name] = " ".join(card_of(tmp_path / name).split())
        assert "its own weight" not in said[name] and "on an example" not in said[name]
    assert "fixed mixture. Its batches were changed by LabelBlend, which learned how on a" in said["blend"]
    assert "How LabelBlend changes batches. The weights of the losses were fixed" in said["blend"]
    assert "LabelBlend is as good as the clean set that it learned on (12 rows)" in said["blend"]
    assert "changed by LabelBlend, which had learned how before." in said["frozen"]
    assert "- batch policy: LabelBlend" in said["frozen"] and "Nothing: the weights" in said["frozen"]
    assert "learned a weight for every loss on a small clean set, the same for all training" in said["shared"]
    assert not any("The weights are as good" in said[name] for name in ("blend", "frozen"))


def test_an_optimizer_that_was_given_is_named(tmp_path):
    """It and its schedule move the student, whatever the arguments say; where one is left out these say it."""
    student = tiny_bert()
    weights, biases = ([p for p in student.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    sgd = torch.optim.SGD([{"params": weights}, {"params": biases, "lr": 0.02}], lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(sgd)
    given = {
        "both": {"model": student, "optimizers": (sgd, schedule)},
        "class": {"optimizer_cls_and_kwargs": (torch.optim.RMSprop, {"lr": 0.5})},
    }
    said = {}
    for name, more in given.items():
        rows = {"train_dataset": texts(40), "losses": [CrossEntropy()]}
        run = AMALTrainer(**{"model": tiny_bert(), "args": toy_arguments(tmp_path / name), **rows, **more})
        run.train()
        said[name] = gather(run, CardDetails()).hyperparameters
        assert "learning rate" not in settings_of(run)  # of the report
    assert said["both"]["optimizer"] == "SGD" and said["both"]["learning_rate"] == [0.02, 0.1]
    assert said["both"]["lr_scheduler_type"] == "ConstantLR" and "warmup_steps" not in said["both"]
    assert said["class"]["optimizer"] == "RMSprop" and said["class"]["learning_rate"] == 0.5
    assert said["class"]["lr_scheduler_type"] == "linear"


def test_a_student_of_pictures_is_shown_in_its_pipeline(tmp_path):
    """A base class would leave out the head that was trained."""
    AMALTrainer(tiny_vit(), toy_arguments(tmp_path)).create_model_card()
    card = ModelCard(card_of(tmp_path))
    assert card.data.to_dict()["pipeline_tag"] == "image-classification"
    assert 'pipeline("image-classification"' in card.text and 'student("picture.jpg")' in card.text
    other = BertForMultipleChoice(tiny_bert().config)
    AMALTrainer(other, toy_arguments(tmp_path)).create_model_card()
    assert "BertForMultipleChoice.from_pretrained" in card_of(tmp_path)


def test_snippets_name_what_transformers_and_the_tokenizer_have(tmp_path):
    """A class that `transformers` lacks is loaded as the one that it is derived from, or by `AutoModel`; a text to
    fill in has the mask of the tokenizer.
    """

    class Own(BertForMultipleChoice):
        """Of nobody else."""

    class Bare(BertPreTrainedModel):
        """With a head of its own."""

    for kind, name in ((Own, "BertForMultipleChoice"), (Bare, "AutoModel")):
        AMALTrainer(kind(tiny_bert().config), toy_arguments(tmp_path)).create_model_card()
        assert f"from transformers import {name}\n" in card_of(tmp_path)
    facts = gather(AMALTrainer(tiny_bert(head=BertForMaskedLM), toy_arguments(tmp_path)), CardDetails())
    assert facts.details.example == ""
    assert _example(SimpleNamespace(mask_token="<mask>"), "fill-mask") == "The text with a <mask> in it"


def test_scores_of_several_sets(tmp_path):
    """Their losses are no metrics, whatever the sets are called; a metric that is called a loss is one."""
    sets = {"dev": texts(8, 1), "other": texts(8, 3)}
    trainer = trained(tmp_path, eval_dataset=sets)
    trainer.log({"eval_dev_hamming_loss": 0.5, "eval_dev_loss": 1.0})
    trainer.create_model_card(dataset="questions")
    metrics = ModelCard(card_of(tmp_path)).data.to_dict()["metrics"]
    assert {"dev_hamming_loss", "other_accuracy"} <= set(metrics)
    assert not {"dev_loss", "other_loss"} & set(metrics)


def test_what_a_card_was_told_may_say_anything(tmp_path):
    """Words by which an empty place is known are words of people too."""
    compared = Comparison(
        (Contender("none", 0.5), Contender("amal", 0.6)), student="amal", dataset="Southern Min (nan)"
    )
    trained(tmp_path).create_model_card(comparison=compared, limits=("Probabilities of empty texts are undefined.",))
    card, facts = card_of(tmp_path), json.loads((tmp_path / "card.json").read_text())
    check_card(card, tmp_path, names_of(facts))
    with pytest.raises(ValueError, match="'nan'"):
        check_card(card.replace("| none | 0.5 |", "| none | nan |"), tmp_path, names_of({**facts, "labels": []}))


def test_what_is_not_known_is_left_out(tmp_path):
    """A trainer with nothing switched on, and nothing told, still makes a valid card without an empty place."""
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True)
    AMALTrainer(tiny_bert(), args, train_dataset=toy_rows(8)).create_model_card()
    card = card_of(tmp_path)
    check_card(card, tmp_path)
    assert "base_model" not in card and "licence" not in card and "What was learned" not in card


def test_no_path_of_this_machine_gets_out(tmp_path, monkeypatch):
    """A student and a teacher that were read from folders are not named by these, though a folder's name may look
    like that of a repository.
    """
    monkeypatch.chdir(tmp_path)
    tiny_bert().save_pretrained("runs/start")
    student = tiny_bert().from_pretrained(str(tmp_path / "runs" / "start"))
    trained_on = {"losses": [CrossEntropy(), Distillation("runs/start")]}
    args = toy_arguments(tmp_path / "out", max_steps=1)
    AMALTrainer(student, args, train_dataset=toy_rows(8), **trained_on).create_model_card(
        finetuned_from="runs/start", teachers=[str(tmp_path / "runs" / "start")]
    )
    assert str(tmp_path) not in card_of(tmp_path / "out")
    check_card(card_of(tmp_path / "out"))
    assert "- distillation" in card_of(tmp_path / "out")
    facts = (tmp_path / "out" / "card.json").read_text()
    assert str(tmp_path) not in facts and "runs/start" not in facts


def test_arguments_of_stock_scripts(tmp_path):
    """Scripts written for `Trainer.create_model_card` work, strings for lists and lists for strings included."""
    trainer = trained(tmp_path)
    trainer.create_model_card(
        language="en",
        tags="mine",
        tasks=["text-classification"],
        dataset_tags="glue",
        dataset="GLUE SST2",
        dataset_args="sst2",
    )
    data = ModelCard(card_of(tmp_path)).data.to_dict()
    assert data["language"] == ["en"] and data["datasets"] == ["glue"] and "mine" in data["tags"]
    assert data["model-index"][0]["results"][0]["dataset"]["config"] == "sst2"
    with pytest.raises(TypeError, match="licence"):
        trainer.create_model_card(licence="mit")


def test_sources_of_all_losses_are_cited(tmp_path):
    """Each loss brings its own; one that occurs twice stands there once."""
    cage = Spear(Cage([0, 1], 3))
    assert "Semi-Supervised Data Programming" in cage.citation
    mixing = {"losses": [CrossEntropy(), Distillation(tiny_bert(1)), Distillation(tiny_bert(2), name="second")]}
    trained(tmp_path, **mixing).create_model_card()
    assert card_of(tmp_path).count("hinton2015distilling") == 1


def test_students_with_adapters(tmp_path):
    """The Hub is told that the files are an adapter's, and the class is that of the model within."""
    student = get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", r=2))
    AMALTrainer(
        student, toy_arguments(tmp_path), train_dataset=toy_rows(8), losses=[CrossEntropy()]
    ).create_model_card()
    data = ModelCard(card_of(tmp_path)).data.to_dict()
    assert data["library_name"] == "peft" and data["pipeline_tag"] == "text-classification"


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_that_a_student_with_adapters_reads(tmp_path, tied):
    """Of a table of words that it has a copy of to train, the old one counts only as the output layer tied to it."""
    base = tiny_bert(head=BertForMaskedLM, tie_word_embeddings=tied)
    count, table = base.num_parameters(), base.get_input_embeddings().weight.numel()
    adapters = LoraConfig(r=2, target_modules=["query"], modules_to_save=["word_embeddings"])
    student = get_peft_model(base, adapters)
    lora = sum(part.numel() for name, part in student.named_parameters() if "lora" in name)
    trainer = AMALTrainer(student, toy_arguments(tmp_path), train_dataset=toy_rows(8))
    assert gather(trainer, CardDetails()).parameters == count + lora + (table if tied else 0)


def test_a_comparison_names_its_student():
    """A table in which no row is the student's would bold nothing and score nothing."""
    with pytest.raises(ValueError, match="must be the name of one row; the rows are"):
        replace(COMPARISON, student="ours")


# ---- that it can be made again ----


def test_rendering_is_a_function_of_the_facts(tmp_path):
    """The JSON beside a card gives the same card, byte for byte."""
    trained(tmp_path).create_model_card(DETAILS)
    facts = json.loads((tmp_path / "card.json").read_text())
    assert str(render_card(facts)) == card_of(tmp_path)


@pytest.mark.parametrize("facts", CARDS, ids=lambda file: file.parent.name)
def test_cards_that_are_checked_in(facts):
    """No number in `model_cards/` was written by hand: each card is what its JSON gives, and is valid."""
    card = (facts.parent / "README.md").read_text(encoding="utf-8")
    assert str(render_card(json.loads(facts.read_text(encoding="utf-8")))) == card
    check_card(card, facts.parent)
    results = json.loads((facts.parent / "results.json").read_text())
    rows = results if isinstance(results, list) else results["runs"]
    told = json.loads(facts.read_text())["details"]["comparison"]["rows"]
    scores = [row["exact_match"] if "exact_match" in row else row["test"] for row in rows]
    assert [(row["name"], score) for row, score in zip(rows, scores, strict=True)] == [
        (row["name"], row["value"]) for row in told
    ]


def test_a_name_that_is_missing_is_an_error():
    """A template that asks for what the facts do not have fails instead of leaving a hole."""
    facts = RunFacts("me/student", CardDetails(), "BertModel").plain()
    del facts["steps"]
    with pytest.raises(Exception, match="'steps' is undefined"):
        render_card(facts)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value):
    """A score that is no number is refused before it is written."""
    details = replace(DETAILS, comparison=replace(COMPARISON, rows=(Contender("amal", value),)))
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunFacts("me/student", details, "BertModel").plain()


# ---- what is refused ----


def valid():
    return str(
        render_card(RunFacts("me/student", DETAILS, "BertForX", "text-classification", base_model="me/start").plain())
    )


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("---\n", "", "does not begin with a block of metadata"),
        ("license: apache-2.0", "license: Apache 2.0", "license: 'Apache 2.0' is no licence id"),
        ("- en\n", "- English\n", "language: 'English' is no ISO 639 code"),
        ("base_model: me/start", "base_model: me/start/x", "base_model: 'me/start/x' is no repository"),
        ("relation: finetune", "relation: distill", "base_model_relation: 'distill' must be one of"),
        ("- me/questions", "- my questions", "datasets: 'my questions' is no repository"),
        (
            "pipeline_tag: text-classification",
            "pipeline_tag: Text Classification",
            "pipeline_tag: 'Text Classification'",
        ),
        ("value: 0.9\n", "value: high\n", "the value of accuracy is 'high', not a number"),
        ("value: 0.9\n", "value: .nan\n", "value is nan; leave out what was not measured"),
        ("value: 0.9\n", "value: !!python/object/apply:os.getcwd []\n", "its metadata cannot be read"),
        ("      name: questions\n", "", "its metadata cannot be read"),
        ("emissions: 1.5", "emissions: some", "co2_eq_emissions: 'some' is no number of grams"),
        ("## Limits\n", "## Uses\n\n## Limits\n", "the section 'Uses' is empty"),
        ("## Limits\n", "## Limits\n\nMore information needed\n", "it says 'More information needed'"),
        ("## Limits\n", "## Limits\n\n![weights](figures/weights.png)\n", "it shows 'figures/weights.png'"),
        ("## Limits\n", "## Limits\n\nLog in with hf_abcdefghijklmnopqrst.\n", "looks like an access token"),
        ("## Limits\n", "## Limits\n\n```\n", "a block of code has no end"),
    ],
)
def test_what_would_not_stand(tmp_path, right, wrong, message):
    """Each flaw is named; the card without it passes."""
    check_card(valid(), tmp_path)
    assert right in valid()
    with pytest.raises(ValueError, match="not fit to be published") as refused:
        check_card(valid().replace(right, wrong, 1), tmp_path)
    assert message in str(refused.value) and "abcdefghij" not in str(refused.value)
