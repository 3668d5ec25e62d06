"""A teacher that has not seen the labels: `amal()` starts at the mixture of Bayes' rule, `bayes_mixture()` is it."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace

import datasets
import pytest
import torch
from conftest import tiny_bert, toy_arguments, toy_rows
from process_cases import Stream
from test_token_mixture import of_tokens, tagged_rows, tagger
from transformers import default_data_collator

from amal_hf import (
    AboveAverage,
    AMALTrainer,
    CardDetails,
    Convex,
    ConvexOrNone,
    CrossEntropy,
    Delayed,
    Distillation,
    ExampleTable,
    FixedWeights,
    Frozen,
    GatedConvex,
    GeneralizedCrossEntropy,
    LossNetwork,
    MeanOne,
    Method,
    Trajectory,
    amal,
    bayes_mixture,
    label_posterior,
    save_policy,
)
from amal_hf.mixture import independent
from amal_hf.noisy_labels import CITATION, label_share
from amal_hf.policies.bayes_share import MOST_CLASSES, SMALLEST_SHARE, BayesShare
from amal_hf.policies.policy import Independent, Observation, Signals, Sizes
from amal_hf.run_facts import gather
from amal_hf.task import Task


B, C = 200, 3
RANDOM = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(B, C, generator=RANDOM)
TRUTH = torch.multinomial(LOGITS.softmax(1), 1, generator=RANDOM)[:, 0]
LABELS = torch.where(torch.rand(B, generator=RANDOM) < 0.6, TRUTH, torch.randint(C, (B,), generator=RANDOM))
KNOWN = label_posterior(LOGITS, LABELS)
SHARE = label_share((LOGITS / KNOWN.temperature).softmax(1), KNOWN.confusions.float(), LABELS)
LABEL_FIRST, TEACHER_FIRST = Independent(0, 1), Independent(1, 0)


def sizes(columns=LABEL_FIRST, losses=2, classes=C):
    return Sizes(losses, (columns.teacher,), B, classes, independent=columns)


def begun(policy=None, columns=LABEL_FIRST, initial=(0.5, 0.5), told=True):
    """A network that has been told of all labels."""
    policy = LossNetwork() if policy is None else policy
    policy.reset(sizes(columns, len(initial)), torch.tensor(initial))
    if told:
        policy.note_labels(LOGITS, LABELS)
    return policy


def seen(policy, labels=LABELS, losses=2):
    values = torch.rand(B, losses, generator=torch.Generator().manual_seed(2))
    logits = torch.randn(B, C, generator=torch.Generator().manual_seed(3))
    features = policy.observe(Signals(values, logits, (LOGITS,), {"labels": labels}, Task()))
    return Observation(torch.arange(B), features, 0.0)


@pytest.mark.parametrize("columns", [LABEL_FIRST, TEACHER_FIRST], ids=["label first", "teacher first"])
@pytest.mark.parametrize(
    ("normalisation", "sum_"),
    [(None, 1.0), (Convex(), 1.0), (GatedConvex(), 1.0), (ConvexOrNone(), 0.9)],
    ids=["usual", "convex", "gated", "convex or none"],
)
def test_it_starts_at_the_mixture_of_bayes_rule(normalisation, sum_, columns):
    """Of every example, whatever the order of the losses; no share is below about 0.02."""
    policy = begun(LossNetwork(normalisation=copy.deepcopy(normalisation)), columns)
    found = policy.weights(seen(policy))[:, columns.label] / sum_
    torch.testing.assert_close(found, SHARE.clamp(SMALLEST_SHARE, 1), rtol=0, atol=SMALLEST_SHARE)
    inside = (SHARE > SMALLEST_SHARE) & (SHARE < 1 - SMALLEST_SHARE)
    torch.testing.assert_close(found[inside], SHARE[inside])
    assert 100 < inside.sum() < B and found.min() > 0.9 * SMALLEST_SHARE


@pytest.mark.parametrize("initial", [(0.1, 0.9), (1.0, 3.0), (1.0, 0.0)])
def test_it_starts_there_however_losses_were_to_be_mixed(initial):
    """What label and teacher were given at the start is divided anew."""
    policy = begun(initial=initial)
    found = policy.weights(seen(policy))[:, 0]
    inside = (SHARE > SMALLEST_SHARE) & (SHARE < 1 - SMALLEST_SHARE)
    torch.testing.assert_close(found[inside], SHARE[inside], rtol=1e-3, atol=1e-4)


def test_other_losses_keep_what_they_have():
    """Label and teacher divide what they have together."""
    policy = begun(columns=Independent(2, 0), initial=(0.3, 0.4, 0.3))
    weights = policy.weights(seen(policy, losses=3)).detach()
    torch.testing.assert_close(weights[:, 1], torch.full((B,), 0.4))
    inside = (SHARE > SMALLEST_SHARE) & (SHARE < 1 - SMALLEST_SHARE)
    torch.testing.assert_close(weights[inside, 2], 0.6 * SHARE[inside])


def test_it_learns_where_bayes_rule_is_wrong():
    """Labels that it takes for wrong come back where they help, and those that it follows go where they hurt."""
    policy = begun(LossNetwork(learning_rate=0.1, normalisation=Convex()))
    rows = seen(policy)
    before = policy.weights(rows)[:, 0].detach()
    doubted = before < 0.1
    for _ in range(200):
        policy.update(rows, torch.stack([torch.where(doubted, 1.0, -1.0), torch.zeros(B)], 1))
    after = policy.weights(rows)[:, 0].detach()
    assert doubted.sum() > 20
    assert after[doubted].mean() > before[doubted].mean() + 0.3
    assert after[~doubted].mean() < before[~doubted].mean() - 0.1


def test_it_learns_more_slowly():
    """At a tenth of its rate, as where it starts is worth keeping; at the whole of it as long as nothing is known."""
    for told, rate in ((True, 0.05), (False, 0.5)):
        policy = begun(LossNetwork(learning_rate=0.5), told=told)
        assert policy.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_an_example_without_a_label_follows_its_teacher():
    """Though it may count for less."""
    policy = begun()
    rows = seen(policy, LABELS.masked_fill(torch.arange(B) < 5, -100))
    weights = policy.weights(rows._replace(present=torch.stack([torch.arange(B) >= 5, torch.ones(B).bool()], 1)))
    torch.testing.assert_close(weights[:5].detach(), torch.tensor([[0.0, 1.0]] * 5))


def test_shares_are_equal_until_it_has_been_told():
    """Of labels; then it asks for no more of them. Rows without a label tell nothing."""
    policy = begun(told=False)
    assert policy.rows_wanted == 10_000 and policy.figures() == {}
    policy.note_labels(LOGITS, torch.full((B,), -100))
    assert policy.rows_wanted == 10_000
    torch.testing.assert_close(policy.weights(seen(policy)).detach(), torch.full((B, 2), 0.5))
    policy.note_labels(LOGITS, LABELS)
    assert policy.rows_wanted == 0
    assert policy.figures() == {"wrong_labels_by_teacher": pytest.approx(KNOWN.wrong)}


def test_what_is_no_number_is_left_out():
    """Rows of a teacher that gives none, in what it is told and in what it weighs; a class that the teacher does not
    know has minus infinity.
    """
    policy = begun(told=False)
    odd = torch.cat([LOGITS, torch.tensor([[math.nan, 0, 0]]), torch.tensor([[1.0, 0, -math.inf]])])
    policy.note_labels(odd, torch.cat([LABELS, torch.tensor([0, 2])]))
    assert policy.bayes.confusions.isfinite().all()
    features = torch.cat([odd[-2:], torch.zeros(2, 1), torch.zeros(2, 1)], 1)
    share = policy.bayes.share(Observation(torch.arange(2), features, 0.0))
    assert share[0].isnan() and 0 <= share[1] <= 1
    features[1] = torch.tensor([1.0, 0, 0, 0, -1])
    assert policy.bayes.share(Observation(torch.arange(2), features, 0.0)).isnan().all()


def test_the_network_reads_the_share():
    """In the place of the teacher's logits."""
    policy = begun()
    inputs = policy.inputs(seen(policy))
    torch.testing.assert_close(inputs[:, 0], SHARE)
    assert inputs.shape[1] == policy.width(sizes())


def test_of_two_teachers_it_holds_the_right_one_against_labels(tmp_path):
    """Whichever comes first."""
    other = Distillation(lambda batch: -LOGITS[batch["example_id"]], name="other")
    trainer = new_trainer(tmp_path, losses=[other, UNSEEN, CrossEntropy()], max_steps=1)
    trainer.train()
    policy = trainer.method.policy
    signals = Signals(torch.zeros(B, 3), LOGITS, (-LOGITS, LOGITS), {"labels": LABELS}, Task())
    assert policy.bayes.logits(signals).equal(LOGITS)


def test_a_teacher_of_other_classes_is_refused_in_words(tmp_path):
    """Those of the loss itself."""
    wide = Distillation(lambda batch: torch.zeros(len(batch["example_id"]), 5), has_seen_labels=False)
    with pytest.raises(ValueError, match="the student's logits have shape"):
        new_trainer(tmp_path, losses=[CrossEntropy(), wide]).train()


def test_a_policy_that_is_used_later_is_told_now():
    """`Delayed` passes it on."""
    policy = begun(Delayed(LossNetwork(), 0.5), told=False)
    assert policy.rows_wanted
    policy.note_labels(LOGITS, LABELS)
    assert not policy.rows_wanted and policy.figures()["wrong_labels_by_teacher"] == pytest.approx(KNOWN.wrong)


def test_a_saved_one_knows_what_it_was_told(tmp_path):
    """Used again for another student, it gives the same weights and asks for nothing."""
    first = begun(LossNetwork(probe=False))
    first.update(seen(first), torch.randn(B, 2, generator=torch.Generator().manual_seed(4)))
    save_policy(first, tmp_path / "network.safetensors")
    again = begun(Frozen(LossNetwork(probe=False), tmp_path / "network.safetensors"), told=False)
    assert not again.rows_wanted
    torch.testing.assert_close(again.weights(seen(again)), first.weights(seen(first)))


@pytest.mark.parametrize("normalisation", [MeanOne(), AboveAverage()])
def test_without_a_mixture_of_each_example_it_starts_at_equal_weights(normalisation):
    """Weights that compete with those of other examples have no shares."""
    policy = begun(LossNetwork(normalisation=normalisation))
    assert policy.bayes is None and policy.rows_wanted == 0 and "Bayes" not in policy.describe()


def test_so_it_does_with_too_many_classes():
    """Words, say."""
    policy = LossNetwork()
    policy.reset(sizes(classes=MOST_CLASSES + 1), torch.tensor([0.5, 0.5]))
    assert policy.bayes is None
    with pytest.raises(ValueError, match="is for labels of 2 to 512 classes.*got 513 classes"):
        BayesShare(sizes(classes=MOST_CLASSES + 1))


def teacher(**options):
    return Distillation(lambda batch: LOGITS[batch["example_id"]], **options)


UNSEEN = teacher(has_seen_labels=False)


@pytest.mark.parametrize(
    ("losses", "columns"),
    [
        ([CrossEntropy(), UNSEEN], (0, 1, None)),
        ([CrossEntropy(), teacher(has_seen_labels=False, calibrated_at=0.7)], (0, 1, 0.7)),
        ([teacher(), UNSEEN, GeneralizedCrossEntropy(0.5)], (2, 1, None)),
        ([CrossEntropy(), teacher()], None),
        ([CrossEntropy("votes", column="majority"), UNSEEN], None),
        ([CrossEntropy(), UNSEEN, teacher(name="second", has_seen_labels=False)], None),
        ([CrossEntropy(), GeneralizedCrossEntropy(0.5), UNSEEN], None),
        ([CrossEntropy(), teacher(has_seen_labels=False, top_k=2)], None),
    ],
    ids=[
        "label and teacher",
        "calibrated",
        "and another",
        "any teacher",
        "votes",
        "two teachers",
        "two of labels",
        "top logits",
    ],
)
def test_which_losses_are_the_two(losses, columns):
    """One of the labels themselves, and one of a teacher that has not seen them and gives all its logits; and the
    temperature of one that is calibrated.
    """
    assert independent(losses) == columns


def new_trainer(folder, policy=None, losses=None, rows=16, method=None, data_collator=None, model=None, **options):
    data = toy_rows(rows) if isinstance(rows, int) else rows
    return AMALTrainer(
        model=tiny_bert() if model is None else model,
        data_collator=data_collator,
        args=toy_arguments(folder, **options),
        train_dataset=data,
        losses=[CrossEntropy(), UNSEEN] if losses is None else losses,
        method=amal(policy) if method is None else method,
        meta_dataset=toy_rows(8),
    )


def test_a_run_starts_there(tmp_path):
    """Before the first step the teacher is asked about the training rows; log and description tell."""
    trainer = new_trainer(tmp_path, max_steps=8)
    trainer.train()
    rows = toy_rows(16)
    known = label_posterior(LOGITS[:16], rows["labels"][:])
    bayes = trainer.method.policy.bayes
    torch.testing.assert_close(bayes.confusions, known.confusions.float())
    assert trainer.state.log_history[0]["wrong_labels_by_teacher"] == pytest.approx(known.wrong)
    assert trainer.method.policy.describe().endswith("from Bayes' rule")
    assert "has not seen the labels" in UNSEEN.describe()


@pytest.mark.parametrize("method", [amal(), bayes_mixture()], ids=lambda method: method.name)
def test_a_calibrated_teacher_is_read_at_its_temperature(tmp_path, method):
    """Which labels do not choose then; the description and the card say so."""
    losses = [CrossEntropy(), teacher(has_seen_labels=False, calibrated_at=1.7)]
    trainer = new_trainer(tmp_path, losses=losses, method=method, max_steps=1)
    trainer.train()
    known = label_posterior(LOGITS[:16], toy_rows(16)["labels"][:], temperature=1.7)
    bayes = trainer.method.policy.bayes
    torch.testing.assert_close(bayes.confusions, known.confusions.float())
    assert float(bayes.temperature) == pytest.approx(1.7)
    assert label_posterior(LOGITS[:16], toy_rows(16)["labels"][:]).temperature != known.temperature
    assert "has not seen the labels, calibrated at temperature 1.7" in trainer.mixture.distillations[0].describe()
    cited = "".join(gather(trainer, CardDetails()).citations)
    sources = ("On Calibration of Modern", "Learning From Noisy", "Distilling the Knowledge")
    assert [cited.count(source) for source in sources] == [1, 1, 1]


def test_at_first_it_weighs_as_bayes_mixture(tmp_path):
    """The weights of a run in which the network learns nothing are those of `bayes_mixture()`, but for shares near
    nothing: the teacher was asked about all rows, and before the first of them was weighed.
    """
    data = datasets.Dataset.from_dict({**toy_rows(B)[:], "labels": LABELS.tolist()})
    found = []
    for method in (amal(LossNetwork(normalisation=Convex())), bayes_mixture()):
        trainer = new_trainer(tmp_path, method=method, rows=data, max_steps=B // 4)
        trainer.method.policy.update = lambda *args: None
        trainer.train()
        table = trainer.example_weights().with_format("torch")
        assert table["example_id"][:].equal(torch.arange(B))
        found.append(table["labels"][:])
    torch.testing.assert_close(*found, rtol=0, atol=SMALLEST_SHARE)
    assert found[0].std() > 0.1


@pytest.mark.parametrize("make", [LossNetwork, lambda: Delayed(LossNetwork(), 0.5)], ids=["network", "delayed"])
def test_its_source_is_cited_where_it_is_used(tmp_path, make):
    """In the card, beside that of the method; not where the teacher may have seen the labels."""
    cited = []
    for seen_labels in (False, True):
        trainer = new_trainer(tmp_path, make(), [CrossEntropy(), teacher(has_seen_labels=seen_labels)], max_steps=1)
        trainer.train()
        citations = gather(trainer, CardDetails()).citations
        assert trainer.method.citation in citations
        cited.append(CITATION in citations)
    assert cited == [True, False]


class Asking(LossNetwork):
    """Wants to be told of labels, and makes nothing of them."""

    rows_wanted = 10
    told = None

    def note_labels(self, logits, labels):
        self.told = logits, labels
        self.rows_wanted = 0


def drawing(rows):
    """A collator that takes a random number."""
    torch.rand(1)
    return default_data_collator(rows)


def test_being_told_disturbs_nothing(tmp_path):
    """Dropout and the order of rows are those of the same run without it, whatever the collator draws; each of so many
    rows is shown once, and the teacher is asked about no others.
    """
    parameters, asked = [], []
    teacher = Distillation(
        lambda batch: asked.append(len(batch["example_id"])) or LOGITS[batch["example_id"]], has_seen_labels=False
    )
    for policy in (Asking(normalisation=MeanOne()), LossNetwork(normalisation=MeanOne())):
        trainer = new_trainer(tmp_path, policy, losses=[CrossEntropy(), teacher], data_collator=drawing)
        asked.clear()
        trainer.train()
        assert sum(asked) == 6 * 4 + 10 * isinstance(policy, Asking)
        parameters.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        if isinstance(policy, Asking):
            logits, labels = trainer.method.policy.told
            rows = [int((LOGITS[:16] == row).all(1).nonzero()[0, 0]) for row in logits]
            assert len(set(rows)) == 10 and rows == sorted(rows) != list(range(10))
            assert labels.tolist() == [toy_rows(16)["labels"][row] for row in rows]
    assert parameters[0].equal(parameters[1])


def test_only_that_teacher_is_asked(tmp_path):
    """And no more than once about a row, before the first step: a large one takes its time."""
    asked = {"teacher": [], "other": []}

    def ask(name):
        def answer(batch):
            asked[name].extend(batch["example_id"].tolist())
            return LOGITS[batch["example_id"]]

        return answer

    losses = [
        CrossEntropy(),
        Distillation(ask("teacher"), has_seen_labels=False),
        Distillation(ask("other"), name="other"),
    ]
    trainer = new_trainer(tmp_path, losses=losses, max_steps=1)
    before = {name: len(rows) for name, rows in asked.items()}
    trainer.train()
    more = {name: sorted(rows[before[name] :]) for name, rows in asked.items()}
    assert len(more["other"]) == 4
    assert len(more["teacher"]) == 16 + 4 and set(more["teacher"]) == set(range(16))


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    """What it was told is in the checkpoint: it is not told again."""
    whole = new_trainer(tmp_path / "whole", max_steps=8, save_strategy="steps", save_steps=4)
    whole.train()
    resumed = new_trainer(tmp_path / "resumed", max_steps=8)
    resumed.mixture.show_labels = pytest.fail
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert ours.equal(theirs)


def test_with_a_warm_up_it_starts_after_it(tmp_path):
    """It is told then, and not before."""
    trainer = new_trainer(tmp_path, max_steps=8, meta_warmup_steps=4, train_sampling_strategy="sequential")
    told = []
    show = trainer.mixture.show_labels
    trainer.mixture.show_labels = lambda *args: (told.append(trainer.state.global_step), show(*args))
    trainer.train()
    assert told == [4]


def test_a_stream_starts_at_equal_shares(tmp_path):
    """Its rows cannot be drawn at random."""
    trainer = new_trainer(tmp_path, rows=Stream(16), max_steps=4)
    trainer.train()
    assert trainer.method.policy.bayes.rows_wanted and "wrong_labels_by_teacher" not in trainer.state.log_history[0]


class OwnLoader(AMALTrainer):
    """A trainer whose batches come from somewhere else."""

    def get_train_dataloader(self):
        rows = toy_rows(16).add_column("example_id", list(range(16))).with_format("torch")
        return self.accelerator.prepare(torch.utils.data.DataLoader(rows, batch_size=4))


def test_so_does_a_data_loader_of_ones_own(tmp_path):
    """There is no training set to draw from."""
    trainer = OwnLoader(
        tiny_bert(),
        toy_arguments(tmp_path, max_steps=4),
        losses=[CrossEntropy(), UNSEEN],
        method=amal(),
        meta_dataset=toy_rows(8),
    )
    trainer.train()
    assert trainer.method.policy.bayes.rows_wanted


def test_soft_labels_start_at_equal_shares(tmp_path):
    """They do not go wrong from one class to another. The teacher is asked once all the same, not at every step."""
    rows = toy_rows(16)
    soft = rows.map(lambda row: {"labels": [0.2 + 0.4 * (row["labels"] == c) for c in range(3)]})
    trainer = AMALTrainer(
        model=tiny_bert(problem_type="single_label_classification"),
        args=toy_arguments(tmp_path, max_steps=4),
        train_dataset=soft,
        losses=[CrossEntropy(), UNSEEN],
        method=replace(amal(), trajectory=Trajectory(3), window=1),
        meta_dataset=soft.select(range(8)),
    )
    told = []
    show = trainer.mixture.show_labels
    trainer.mixture.show_labels = lambda *args: (told.append(trainer.state.global_step), show(*args))
    trainer.train()
    assert told == [0]
    assert trainer.method.policy.bayes.rows_wanted
    assert trainer.state.log_history[0]["weight_labels_mean"] == pytest.approx(0.5, abs=0.05)


def of_many_classes(batch):
    return torch.eye(MOST_CLASSES + 1)[batch["example_id"]]


WIDE = Distillation(of_many_classes, has_seen_labels=False)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, False),
        ({"losses": [CrossEntropy(), teacher()]}, False),
        ({"method": Method("fixed", FixedWeights())}, False),
        ({"rows": Stream(16)}, True),
        ({"losses": [CrossEntropy(), UNSEEN, teacher(name="second", has_seen_labels=False)]}, True),
        ({"policy": LossNetwork(normalisation=MeanOne())}, True),
        ({"policy": ExampleTable()}, True),
        ({"model": tiny_bert(num_labels=MOST_CLASSES + 1), "losses": [CrossEntropy(), WIDE]}, True),
    ],
    ids=["read", "has seen them", "fixed", "stream", "two such", "no mixture", "table", "many classes"],
)
def test_what_makes_no_difference_is_said(tmp_path, caplog, options, told):
    """Once, where a teacher has not seen the labels and no learned weight begins with what it says of them."""
    new_trainer(tmp_path, max_steps=8, **options).train()
    assert caplog.text.count("has_seen_labels=False makes no difference") == told


@pytest.mark.parametrize(("by_rows", "by_teacher", "warns"), [(0.4, 0.1, True), (0.4, 0.3, False), (0.08, 0.0, False)])
def test_a_teacher_that_must_have_seen_the_labels_is_told_of(
    tmp_path, caplog, monkeypatch, by_rows, by_teacher, warns
):
    """It takes far fewer of them for wrong than clean rows do; said at the end of training."""
    trainer = new_trainer(tmp_path, max_steps=2)
    figures = {"wrong_labels": by_rows, "wrong_labels_by_teacher": by_teacher}
    monkeypatch.setattr(trainer.method.policy, "figures", lambda: figures)
    trainer.train()
    said = [record.message for record in caplog.records if "trained on them after all" in record.message]
    assert len(said) == warns and all("40 % of the training labels" in one and "them 10 %" in one for one in said)


@pytest.mark.parametrize("method", [amal, bayes_mixture])
def test_sentences_of_labelled_tokens_have_no_share(tmp_path, caplog, method):
    """Examples have not one class: learned weights start at equal shares, which is said; `bayes_mixture()` refuses."""
    rows = tagged_rows(40).remove_columns("flipped")
    known = torch.randn(40, len(rows[0]["labels"]), 3)
    trainer = AMALTrainer(
        model=tagger(),
        args=toy_arguments(tmp_path, max_steps=8),
        train_dataset=rows,
        losses=[CrossEntropy(), Distillation(lambda batch: known[batch["example_id"]], has_seen_labels=False)],
        method=method(),
        meta_dataset=rows.select(range(8)) if method is amal else None,
    )
    with nullcontext() if method is amal else pytest.raises(ValueError, match="needs labels of one class each"):
        trainer.train()
    assert ("has_seen_labels=False makes no difference" in caplog.text) == (method is amal)


def test_tokens_have_shares_of_their_own(tmp_path):
    """Where weights are those of tokens, it is told of tokens: which of them are wrong is found."""
    rows = tagged_rows(40, wrong=0.4)
    flipped = torch.tensor(rows["flipped"][:])[:, 1:]
    right = torch.tensor(rows["input_ids"][:]) % 3
    sure = torch.nn.functional.one_hot(right, 3).float() * 3
    trainer = AMALTrainer(
        model=tagger(),
        args=toy_arguments(tmp_path, max_steps=2),
        train_dataset=rows.remove_columns("flipped"),
        losses=[CrossEntropy(), Distillation(lambda batch: sure[batch["example_id"]], has_seen_labels=False)],
        method=of_tokens(amal()),
        meta_dataset=tagged_rows(8).remove_columns("flipped"),
    )
    told = []
    note = trainer.method.policy.note_labels
    trainer.method.policy.note_labels = lambda *known: (told.append([len(part) for part in known]), note(*known))
    trainer.mixture.show_labels([trainer.data_collator([trainer.train_dataset[n] for n in range(4)])], 7)
    trainer.train()
    assert told == [[7, 7], [360, 360]]
    found = trainer.state.log_history[0]["wrong_labels_by_teacher"]
    assert abs(found - float(flipped.float().mean())) < 0.08


def test_the_initial_mixture_stays_where_nothing_is_known():
    """Before labels were shown, and of rows without one: what `loss_weights` say, and not half and half."""
    initial = (0.9, 0.1)
    for told, labels in ((False, LABELS), (True, torch.full_like(LABELS, -100))):
        policy = begun(LossNetwork(normalisation=Convex()), initial=initial, told=told)
        weights = policy.weights(seen(policy, labels)).detach()
        torch.testing.assert_close(weights, torch.tensor(initial).expand_as(weights), atol=1e-5, rtol=0)
