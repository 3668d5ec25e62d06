"""One loss a rule: what fires counts, what abstains has neither value, slope nor weight."""

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_bert, toy_arguments, toy_rows
from transformers import BertForTokenClassification

from amal_hf import (
    AMALTrainer,
    Convex,
    ConvexOrNone,
    CrossEntropy,
    Distillation,
    ExampleTable,
    LossNetwork,
    Method,
    PerLossNetwork,
    RuleLosses,
    SharedWeights,
    amal,
    learning_to_reweight,
)
from amal_hf.policies.fixed_weights import FixedWeights
from amal_hf.policies.policy import Observation, Sizes
from amal_hf.rules import keyword_rule
from amal_hf.task import Task


class Outputs:
    def __init__(self, logits):
        self.logits = logits


VOTES = torch.tensor([[0, -1, 2], [-1, -1, -1], [1, 1, 0]])


def test_one_cross_entropy_for_every_rule_that_fired():
    """Column by column the plain cross-entropy to the rule's vote; zero where it abstains."""
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    values = RuleLosses(3)(Outputs(logits), {"weak_labels": VOTES})
    for row in range(3):
        for rule in range(3):
            vote = VOTES[row, rule]
            expected = F.cross_entropy(logits[row], vote) if vote >= 0 else torch.tensor(0.0)
            torch.testing.assert_close(values[row, rule], expected)
    assert torch.equal(RuleLosses(3).present({"weak_labels": VOTES}), VOTES >= 0)


def test_rules_have_their_names():
    """Given themselves, as where they were written."""
    assert RuleLosses([keyword_rule(["free"], 1), "other"]).names == ("rules/keyword_free", "rules/other")


def test_rules_over_tokens():
    """The mean over the tokens that a rule votes on; a rule that is silent on a sentence is missing there."""
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    votes = torch.full((2, 4, 2), -1)
    votes[0, 1, 0], votes[0, 3, 0], votes[1, 2, 1] = 2, 0, 1
    loss, batch = RuleLosses(["a", "b"]), {"weak_labels": votes}
    values = loss(Outputs(logits), batch)
    first = (F.cross_entropy(logits[0, 1], torch.tensor(2)) + F.cross_entropy(logits[0, 3], torch.tensor(0))) / 2
    torch.testing.assert_close(values[0, 0], first)
    torch.testing.assert_close(values[1, 1], F.cross_entropy(logits[1, 2], torch.tensor(1)))
    assert loss.present(batch).tolist() == [[True, False], [False, True]]


def test_rules_for_several_answers_at_once():
    """In a multi-label task a vote is a yes to one question."""
    loss = RuleLosses(2)
    loss.bind(Task("multi_label_classification"))
    logits = torch.randn(1, 3)
    values = loss(Outputs(logits), {"weak_labels": torch.tensor([[2, -1]])})
    torch.testing.assert_close(values[0, 0], -F.logsigmoid(logits[0, 2]))


def test_soft_and_hard_labels_of_another_column():
    """An aggregated label stands beside the true one: classes or probabilities, -100 for none."""
    logits = torch.randn(3, 3)
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [-100.0, -100.0, -100.0]])
    hard = torch.tensor([1, 2, -100])
    for column, expected in ((soft, [True, True, False]), (hard, [True, True, False])):
        loss = CrossEntropy("majority", column="majority")
        loss.bind(Task())
        assert loss.columns == ("majority",)
        values = loss(Outputs(logits), {"majority": column})
        safe = column[:2]
        torch.testing.assert_close(values[:2], F.cross_entropy(logits[:2], safe, reduction="none"))
        assert values[2] == 0 and loss.present({"majority": column})[:, 0].tolist() == expected


def new_convex():
    return LossNetwork(normalisation=Convex())


POLICIES = {
    "fixed": FixedWeights,
    "table": ExampleTable,
    "network": LossNetwork,
    "network, convex": new_convex,
    "network or none": lambda: LossNetwork(normalisation=ConvexOrNone()),
    "per loss": PerLossNetwork,
    "per loss or none": lambda: PerLossNetwork(normalisation=ConvexOrNone()),
    "shared": SharedWeights,
}


def voted_rows(count, unlabelled=12):
    """The first rule is right, the second always says 0, the third is silent on most; few rows have labels."""
    rows = toy_rows(count)
    labels = rows["labels"][:]
    votes = [[label, 0 if i % 2 else -1, label if i % 7 == 0 else -1] for i, label in enumerate(labels)]
    given = [-100 if i < unlabelled else label for i, label in enumerate(labels)]
    return rows.remove_columns("labels").add_column("labels", given).add_column("weak_labels", votes)


def new_trainer(folder, method, losses=None, train=None, **options):
    return AMALTrainer(
        model=tiny_bert(),
        args=toy_arguments(folder, **options),
        train_dataset=voted_rows(24) if train is None else train,
        meta_dataset=toy_rows(10, 4) if method.learns else None,
        losses=[CrossEntropy(), RuleLosses(["good", "zero", "rare"])] if losses is None else losses,
        method=method,
    )


@pytest.mark.parametrize("new_policy", POLICIES.values(), ids=POLICIES.keys())
def test_what_is_missing_has_no_weight(tmp_path, new_policy):
    """After training, exactly the losses that an example has carry weights; a network shares them among these."""
    trainer = new_trainer(tmp_path, Method("m", new_policy()), max_steps=8)
    trainer.train()
    table = trainer.example_weights().to_pandas().drop(columns="example_id").to_numpy()
    votes = np.array(trainer.train_dataset["weak_labels"][:]) >= 0
    labelled = np.array(trainer.train_dataset["labels"][:]) >= 0
    present = np.column_stack([labelled, votes])
    if not isinstance(trainer.mixture.policy, ExampleTable):  # whose rows are kept, and masked when used
        assert (table[~present] == 0).all()
    assert (table[present] > 0).mean() > 0.9
    if new_policy in (FixedWeights, new_convex):
        np.testing.assert_allclose(table.sum(1), 1.0, rtol=1e-5)


def test_a_missing_loss_does_not_reach_the_student(tmp_path):
    """Whatever stands in a table's row for a rule that abstains, the training loss is over what is there."""
    trainer = new_trainer(tmp_path, Method("m", ExampleTable()))
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(6)])
    outputs = trainer.model.eval()(**trainer._inputs.plain(batch))
    weighed = trainer.mixture.weigh(outputs, trainer.mixture.prepare(batch), 0.0)
    present = weighed.observation.present
    assert (weighed.weights[~present] == 0).all() and (weighed.losses[~present] == 0).all()
    torch.testing.assert_close(weighed.total, (weighed.weights * weighed.losses).sum())


def test_shares_of_losses_with_columns(tmp_path):
    """`loss_weights` holds one share for each loss, which each of its columns has; what is missing leaves its own."""
    trainer = new_trainer(tmp_path, Method("m", FixedWeights()), loss_weights=[0.4, 0.6])
    batch = trainer.data_collator([trainer.train_dataset[row] for row in (0, 21)])
    outputs = trainer.model.eval()(**trainer._inputs.plain(batch))
    weights = trainer.mixture.weigh(outputs, batch, 0.0).weights
    torch.testing.assert_close(weights[0], torch.tensor([0.0, 0.5, 0.0, 0.5]))
    torch.testing.assert_close(weights[1], torch.tensor([0.4, 0.6, 0.6, 0.6]) / 2.2)


def test_shared_weights_move_along_the_mean_slope():
    """Of the examples on which it fired: a rule whose slopes are positive on average gains, for all examples; one that
    fired on few moves by no less, one that never fired stays.
    """
    policy = SharedWeights(learning_rate=0.1)
    policy.reset(Sizes(3, (), 4), torch.tensor([0.5, 0.25, 0.25]))
    seen = Observation(
        torch.arange(2), torch.zeros(2, 0), 0.0, torch.tensor([[True, True, False], [True, False, False]])
    )
    policy.update(seen, torch.tensor([[2.0, -3.0, 0.0], [0.5, 0.0, 0.0]]))
    torch.testing.assert_close(policy.factors, torch.tensor([1 + 0.125 / 2.125, 1 - 0.3 / 2.125, 1.0]))


def test_bad_rules_lose_their_weight(tmp_path):
    """Over examples, the rule that is always right ends above the one that always says the same."""
    train = voted_rows(200, unlabelled=200)
    trainer = new_trainer(
        tmp_path, Method("m", SharedWeights()), train=train, max_steps=150, learning_rate=3e-3, meta_batch_size=10
    )
    trainer.train()
    good, zero = trainer.mixture.policy.factors[1:3].tolist()
    assert good > zero + 0.3


def test_rules_mix_with_a_teacher_and_with_other_methods(tmp_path):
    """A teacher is one more voice; L2RW takes the same columns."""
    logits = torch.randn(24, 3, generator=torch.Generator().manual_seed(9))
    losses = [CrossEntropy(), RuleLosses(3), Distillation(lambda batch: logits[batch["example_id"]])]
    for method in (amal(), learning_to_reweight()):
        trainer = new_trainer(tmp_path, method, losses)
        trainer.train()
        names = set(trainer.example_weights().column_names)
        assert names == {"example_id", "labels", "rules/rule_0", "rules/rule_1", "rules/rule_2", "teacher"}


def test_token_votes_travel_with_their_tokens(tmp_path):
    """Sentences of several lengths: votes are filled up as tokens are, and training runs."""
    rows = toy_rows(12).to_list()
    for number, row in enumerate(rows):
        length = 6 + number % 4
        tokens = row["input_ids"][:length]
        row.update(input_ids=tokens, attention_mask=[1] * length, labels=[-100] * length)
        row["weak_labels"] = [[token % 3, -1 if token % 2 else 0] for token in tokens]
    train = datasets.Dataset.from_list(rows)
    meta = datasets.Dataset.from_list([{**row, "labels": [t % 3 for t in row["input_ids"]]} for row in rows])
    trainer = AMALTrainer(
        model=tiny_bert(head=BertForTokenClassification),
        args=toy_arguments(tmp_path),
        train_dataset=train,
        meta_dataset=meta.remove_columns("weak_labels"),
        data_collator=pad,
        losses=[RuleLosses(["value", "even"])],
        method=amal(),
    )
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in (0, 3)])
    assert batch["weak_labels"].shape == (2, 9, 2) and (batch["weak_labels"][0, 6:] == -1).all()


def pad(rows):
    length = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])
        for name, value in fill.items()
    }


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RuleLosses([]), "needs rules"),
        (lambda: RuleLosses(["a", "a"]), "a name of its own"),
        (lambda: RuleLosses([len]), "a list of names or rules"),
        (lambda: RuleLosses(2)(Outputs(torch.zeros(3, 3)), {"weak_labels": VOTES}), "holds votes of 3"),
        (lambda: SharedWeights(0.0), "positive and finite"),
    ],
)
def test_bad_input(build, message):
    """With what came and what to do."""
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([[0, -1, 3]] * 24, "row 0 has 3 by rule 2"),
        ([[0, 1]] * 24, "holds votes of \\[2\\] rules; the losses are made for 3"),
        ([[-1, -1, -1]] * 24, "All rules abstain"),
        ([[0, 1, 1]] * 20 + [None] * 4, "holds nothing for 4 of 24 rows.*a list of -1"),
        (None, "the training set has"),
    ],
    ids=["class", "rules", "silent", "some", "column"],
)
def test_votes_are_checked_before_training(tmp_path, votes, message):
    """Votes outside the classes, of other rules, or none at all: said when the trainer is made."""
    train = toy_rows(24) if votes is None else toy_rows(24).add_column("weak_labels", votes)
    with pytest.raises(ValueError, match=message):
        new_trainer(tmp_path, Method("m", FixedWeights()), train=train)


def test_votes_that_a_function_makes_are_read_as_they_come(tmp_path):
    """Rows under `with_transform` need not have the column."""
    train = toy_rows(24).with_transform(lambda rows: {**rows, "weak_labels": [[0, 1, -1]] * len(rows["labels"])})
    trainer = new_trainer(tmp_path, amal(), train=train, max_steps=2)
    trainer.train()
    seen = np.isfinite(trainer.example_weights()["labels"])
    assert seen.any() and (np.array(trainer.example_weights()["rules/zero"])[seen] > 0).all()
