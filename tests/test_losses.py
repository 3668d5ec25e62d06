"""Every loss is one value an example, equal to its textbook formula and to what `transformers` computes, finite
wherever logits go.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import exported, tiny_bert
from transformers import BertForSequenceClassification, BertForTokenClassification
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import LabelSmoother

from amal_hf import divergences
from amal_hf.corrected_loss import CorrectedCrossEntropy
from amal_hf.cross_entropy import CrossEntropy
from amal_hf.distillation import Distillation
from amal_hf.divergences import forward_kl, jensen_shannon, logit_mse, reverse_kl
from amal_hf.losses import CustomLoss, Loss
from amal_hf.policies.policy import Signals
from amal_hf.policies.surface import fit_and_entropy
from amal_hf.robust_losses import GeneralizedCrossEntropy
from amal_hf.task import Task, distilled_tokens, entropy


B, T, C = 5, 4, 3
CONFUSIONS = [[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]]
PROBABILITIES, SEVERAL, NUMBERS = "single_label_classification", "multi_label_classification", "regression"


# ---- the formulas, one example at a time, in numpy ----


def log_p(z, temperature=1.0):
    z = z / temperature
    return z - z.max() - np.log(np.exp(z - z.max()).sum())


def class_loss(z, y, smoothing=0.0):
    """`y` a class or probabilities."""
    target = np.eye(len(z))[int(y)] if np.ndim(y) == 0 else y
    return -((1 - smoothing) * target + smoothing / len(z)) @ log_p(z)


def yes_no_loss(z, y):
    p = 1 / (1 + np.exp(-z))
    return -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()


def token_mean(of_token):
    """The mean over the tokens that carry a label."""
    return lambda z, row: np.mean([of_token(z[t], row, t) for t in range(len(z)) if row["labels"][t] != -100])


def kl(a, b):
    return np.exp(a) @ (a - b)


def half_way(a, b):
    middle = np.log((np.exp(a) + np.exp(b)) / 2)
    return (kl(a, middle) + kl(b, middle)) / 2


BY_HAND = {
    forward_kl: lambda s, t, temperature: temperature**2 * kl(log_p(t, temperature), log_p(s, temperature)),
    reverse_kl: lambda s, t, temperature: temperature**2 * kl(log_p(s, temperature), log_p(t, temperature)),
    jensen_shannon: lambda s, t, temperature: temperature**2 * half_way(log_p(s, temperature), log_p(t, temperature)),
    logit_mse: lambda s, t, temperature: ((s - t) ** 2).mean(),
}


# ---- the table ----


class Case(NamedTuple):
    """A loss, the task it is bound to, a batch, and its formula for one example: `(logits, that example's row) ->
    value`.
    """

    loss: Loss
    task: Task
    logits: torch.Tensor
    batch: dict[str, torch.Tensor]
    formula: Callable[[np.ndarray, dict[str, np.ndarray]], float]


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def labels_for(kind):
    tokens = torch.tensor([[0, 2, -100, 1], [-100, 1, 1, 0], [2, -100, -100, -100], [0, 0, 0, 0], [1, 2, 1, -100]])
    return {
        "class": torch.tensor([0, 2, 1, 1, 0]),
        "probabilities": random(B, C, seed=3).softmax(1),
        "several": (random(B, C, seed=4) > 0).float(),
        "number": random(B, seed=5),
        "numbers": random(B, C, seed=6),
        "tokens": tokens,
    }[kind]


def labels_case(kind, task, formula, *shape):
    return Case(CrossEntropy(), task, random(*shape, seed=1), {"labels": labels_for(kind)}, formula)


def robust_case(q):
    """`(1 − p^q) / q` of the label's probability."""
    return Case(
        GeneralizedCrossEntropy(q),
        Task(),
        random(B, C, seed=1),
        {"labels": labels_for("class")},
        lambda z, row: (1 - np.exp(log_p(z))[int(row["labels"])] ** q) / q,
    )


def corrected_case(kind, smoothing, formula, *shape, trusted=None):
    loss = CorrectedCrossEntropy(CONFUSIONS, trusted)
    batch = {"labels": labels_for(kind), "right": torch.tensor([False, True, False, True, False])}
    return Case(loss, Task(label_smoothing=smoothing), random(*shape, seed=1), batch, formula)


def corrected(z, label, smoothing=0.0):
    """What labels are expected to be where the student is believed."""
    cost = -np.log(np.exp(log_p(z)) @ np.array(CONFUSIONS)[:, int(label)])
    return (1 - smoothing) * cost - smoothing * log_p(z).mean()


def teacher_case(kind, task, formula, *shape, divergence=None, temperature=2.0):
    loss = Distillation(lambda batch: batch["seen"], temperature, divergence)
    loss.teacher = loss.source
    batch = {"labels": labels_for(kind), "seen": random(*shape, seed=2), "attention_mask": torch.ones(B, T)}
    return Case(loss, task, random(*shape, seed=1), batch, formula)


def divergence_case(divergence, temperature):
    def formula(z, row):
        return BY_HAND[divergence](z, row["seen"], temperature)

    return teacher_case("class", Task(), formula, B, C, divergence=divergence, temperature=temperature)


def two_class_mean(z, row):
    """A yes/no logit z is the pair (0, z)."""
    pairs = [(np.array([0, s]), np.array([0, t])) for s, t in zip(z, row["seen"], strict=True)]
    return np.mean([BY_HAND[forward_kl](s, t, 2.0) for s, t in pairs])


CASES = {
    "labels": labels_case("class", Task(), lambda z, row: class_loss(z, row["labels"]), B, C),
    "labels smoothed": labels_case(
        "class", Task(label_smoothing=0.1), lambda z, row: class_loss(z, row["labels"], 0.1), B, C
    ),
    "probabilities": labels_case(
        "probabilities", Task(PROBABILITIES), lambda z, row: class_loss(z, row["labels"]), B, C
    ),
    "several labels": labels_case("several", Task(), lambda z, row: yes_no_loss(z, row["labels"]), B, C),
    "regression": labels_case("number", Task(), lambda z, row: (z[0] - row["labels"]) ** 2, B, 1),
    "regression, several": labels_case(
        "numbers", Task(NUMBERS), lambda z, row: ((z - row["labels"]) ** 2).mean(), B, C
    ),
    "tokens": labels_case("tokens", Task(), token_mean(lambda z, row, t: class_loss(z, row["labels"][t])), B, T, C),
    "tokens smoothed": labels_case(
        "tokens",
        Task(label_smoothing=0.1),
        token_mean(lambda z, row, t: class_loss(z, row["labels"][t], 0.1)),
        B,
        T,
        C,
    ),
    **{f"{d.__name__} at {t}": divergence_case(d, t) for d in BY_HAND for t in (1.0, 4.0)},
    "teacher, several labels": teacher_case("several", Task(), two_class_mean, B, C),
    "teacher, regression": teacher_case("number", Task(), lambda z, row: ((z - row["seen"]) ** 2).mean(), B, 1),
    "teacher, tokens": teacher_case(
        "tokens", Task(), token_mean(lambda z, row, t: BY_HAND[forward_kl](z, row["seen"][t], 2.0)), B, T, C
    ),
    **{f"robust, q {q}": robust_case(q) for q in (0.3, 0.7, 1.0)},
    "corrected": corrected_case("class", 0.0, lambda z, row: corrected(z, row["labels"]), B, C),
    "corrected, smoothed": corrected_case("class", 0.1, lambda z, row: corrected(z, row["labels"], 0.1), B, C),
    "corrected, some trusted": corrected_case(
        "class",
        0.1,
        lambda z, row: class_loss(z, row["labels"], 0.1) if row["right"] else corrected(z, row["labels"], 0.1),
        B,
        C,
        trusted="right",
    ),
    "corrected, tokens": corrected_case(
        "tokens", 0.1, token_mean(lambda z, row, t: corrected(z, row["labels"][t], 0.1)), B, T, C
    ),
    "own": Case(
        CustomLoss(lambda outputs, batch: outputs.logits[:, 0] * batch["factor"], "own", ("factor",)),
        Task(),
        random(B, C, seed=1),
        {"factor": random(B, seed=7)},
        lambda z, row: z[0] * row["factor"],
    ),
}


def values_of(case: Case, logits=None, batch: dict[str, Any] | None = None):
    """The loss as a mixture computes it: bound, prepared, called."""
    batch = case.batch if batch is None else batch
    case.loss.bind(case.task)
    outputs = SequenceClassifierOutput(logits=case.logits if logits is None else logits)
    return case.loss(outputs, {**batch, **case.loss.prepare(batch)})


def test_none_is_left_out():
    """A new loss or divergence has to be put into the tables above; those of several columns have their own files."""
    assert exported(Loss) - {"RuleLosses", "Spear"} == {type(case.loss).__name__ for case in CASES.values()}
    public = {name for name, one in vars(divergences).items() if inspect.isfunction(one) and not name.startswith("_")}
    assert public == {divergence.__name__ for divergence in BY_HAND}


every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_loss
def test_a_loss_is_its_formula_for_every_example(case):
    """`(B,)` values, each equal to the formula written out for that example alone: nothing is averaged, nothing leaks
    from one example to the next.
    """
    values = values_of(case)
    rows = [{name: column[i].numpy().astype(float) for name, column in case.batch.items()} for i in range(B)]
    expected = [case.formula(z, row) for z, row in zip(case.logits.numpy().astype(float), rows, strict=True)]
    assert values.shape == (B,)
    assert values.std() > 0.01
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


@every_loss
def test_permuting_the_batch_permutes_the_values(case):
    """A weight belongs to an example, so the value must follow the example wherever it stands in the batch."""
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = values_of(case, case.logits[order], {name: column[order] for name, column in case.batch.items()})
    torch.testing.assert_close(moved, values_of(case)[order])


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_and_gradients_are_finite_at_extreme_logits(case, dtype):
    """Logits of ±10,000 from a student or a teacher, in half precision too, give no inf or NaN: one such value would
    end the training.
    """
    logits, batch = at_extremes(case, dtype)
    values = values_of(case, logits, batch)
    values.sum().backward()
    assert values.isfinite().all()
    assert logits.grad.isfinite().all()


@every_loss
def test_second_derivatives_are_finite_at_extreme_logits(case):
    """`ExactProduct` asks for these: one that is no number would be that of all parameters."""
    logits, batch = at_extremes(case, torch.float32)
    (gradient,) = torch.autograd.grad(values_of(case, logits, batch).sum(), logits, create_graph=True)
    along = (gradient * random(*gradient.shape, seed=9)).sum() + 0 * logits.sum()  # one loss is linear
    (product,) = torch.autograd.grad(along, logits)
    assert product.isfinite().all()


def at_extremes(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits of ±10,000, and a batch whose teacher is as sure of the opposite."""
    logits = (case.logits.sign() * 1e4).to(dtype).requires_grad_()
    teacher = {"seen": (-case.batch["seen"].sign() * 1e4).to(dtype)} if "seen" in case.batch else {}
    return logits, {**case.batch, **teacher}


def one_output(config):
    config.num_labels = 1
    return BertForSequenceClassification(config)


@pytest.mark.parametrize(
    ("divergence", "temperature", "task", "pull"),
    [
        (None, 1.0, Task(), 1.0),
        (None, 4.0, Task(), 4.0),
        (logit_mse, 4.0, Task(), 1.0),
        (None, 4.0, Task("regression"), 1.0),
    ],
)
def test_a_teacher_pulls_as_hard_as_its_temperature(divergence, temperature, task, pull):
    """Where student and teacher are sure of different classes, the gradient of T² KL is T times that of a label."""
    loss = Distillation(lambda batch: batch["seen"], temperature, divergence)
    loss.bind(task)
    assert loss.pull == pull
    if pull == temperature:
        logits = torch.tensor([[200.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
        outputs = SequenceClassifierOutput(logits=logits)
        sure = torch.tensor([[0.0, 200.0, 0.0]], dtype=torch.float64)
        of_teacher, of_label = (
            torch.autograd.grad(one(outputs, batch).sum(), logits)[0].norm()
            for one, batch in ((loss, {"teacher_logits": sure}), (CrossEntropy(), {"labels": torch.tensor([1])}))
        )
        torch.testing.assert_close(of_teacher, pull * of_label)


def test_a_bounded_loss_has_no_bound_where_numbers_are_to_be_hit():
    """There is no probability; squared error stays, as an objective that serves every task must be one for numbers."""
    logits, targets = random(B, 1, seed=1), torch.linspace(-3, 3, B)
    plain, bounded = CrossEntropy(), GeneralizedCrossEntropy(0.5)
    torch.testing.assert_close(bounded.of_logits(logits, targets), plain.of_logits(logits, targets), rtol=0, atol=0)


HEADS = [
    (BertForSequenceClassification, {}, "class"),
    (BertForSequenceClassification, {"problem_type": SEVERAL}, "several"),
    (one_output, {}, "number"),
    (BertForSequenceClassification, {"problem_type": NUMBERS}, "numbers"),
    (BertForTokenClassification, {}, "tokens"),
]


@pytest.mark.parametrize(("head", "config", "kind"), HEADS)
def test_the_task_loss_averages_to_the_models_own(head, config, kind):
    """With equal weights the training loss is that of `transformers`. For tokens this needs sentences of one length:
    here a sentence counts once, there each token.
    """
    model = tiny_bert(head=head, **config).eval()
    labels = labels_for(kind)
    if kind == "tokens":
        labels = torch.where(labels == -100, 0, labels).index_fill(1, torch.tensor([2]), -100)
    task = Task(model.config.problem_type)
    outputs = model(input_ids=torch.randint(5, 60, (B, T)), labels=labels)
    values = values_of(Case(CrossEntropy(), task, outputs.logits, {"labels": labels}, math.nan))
    torch.testing.assert_close(values.mean(), outputs.loss)


@pytest.mark.parametrize("name", ["labels smoothed", "tokens smoothed"])
def test_label_smoothing_is_that_of_transformers(name):
    """`label_smoothing_factor` means the same as in `Trainer`, whose smoother averages over labelled tokens."""
    case = CASES[name]
    counts = (case.batch["labels"].view(B, -1) != -100).sum(1)
    theirs = LabelSmoother(0.1)({"logits": case.logits}, case.batch["labels"])
    torch.testing.assert_close((values_of(case) * counts).sum() / counts.sum(), theirs)


IGNORING = [
    "labels",
    "labels smoothed",
    "several labels",
    "tokens",
    "tokens smoothed",
    pytest.param("probabilities"),
    pytest.param("regression"),
    "corrected, smoothed",
    "corrected, tokens",
]


@pytest.mark.parametrize("name", IGNORING)
def test_a_row_labelled_minus_100_costs_nothing(name):
    """Value and gradient are exactly zero, so an unlabelled row can be trained on its teacher alone."""
    case = CASES[name]
    labels = case.batch["labels"].clone()
    labels[1] = -100
    logits = case.logits.clone().requires_grad_()
    values = values_of(case, logits, {"labels": labels})
    values.sum().backward()
    others = torch.tensor([0, 2, 3, 4])
    assert values[1] == 0
    assert not logits.grad[1].any()
    torch.testing.assert_close(values[others], values_of(case)[others])


def test_a_teacher_is_compared_on_labelled_tokens_and_on_attended_ones_of_unlabelled_rows():
    """Padding and word pieces without a label carry no gradient; a row without any label still learns from the
    teacher.
    """
    case = CASES["teacher, tokens"]
    labels = case.batch["labels"].clone()
    labels[1] = -100
    mask = torch.ones(B, T)
    mask[1, 2:] = 0
    logits = case.logits.clone().requires_grad_()
    values_of(case, logits, {**case.batch, "labels": labels, "attention_mask": mask}).sum().backward()
    reached = logits.grad.abs().sum(2) > 0
    expected = labels != -100
    expected[1] = mask[1].bool()
    assert reached.equal(expected)


@pytest.mark.parametrize("labels", [None, torch.full((2, 5), -100)], ids=["no column", "no label"])
def test_padding_on_the_left_predicts_nothing(labels):
    """Of a text that is continued the first word is predicted by nothing, whatever side the padding is on."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    batch = {"attention_mask": mask} | ({} if labels is None else {"labels": labels})
    found = distilled_tokens(batch, Task(shifted=True))
    expected = torch.tensor([[0, 0, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("divergence", BY_HAND)
def test_a_divergence_is_zero_only_between_equals(divergence):
    """A student that equals its teacher has nothing left to learn from it: value 0 and gradient 0; any other has."""
    teacher = random(B, C, seed=2)
    student = teacher.clone().requires_grad_()
    same = divergence(student, teacher, 2.0)
    same.sum().backward()
    torch.testing.assert_close(same, torch.zeros(B))
    torch.testing.assert_close(student.grad, torch.zeros(B, C))
    assert (divergence(teacher.flip(1), teacher, 2.0) > 0.01).all()


@pytest.mark.parametrize("gap", [0.0, 80.0, 200.0, 1e4])
def test_jensen_shannon_is_symmetric_bounded_and_finite_where_probabilities_underflow(gap):
    """From a gap of about 104 on, exp(-gap) is 0 in fp32, where a careless 0·log 0 would be NaN."""
    student = torch.tensor([[0.0, -gap, -gap], [0.0, -gap, -gap]], requires_grad=True)
    teacher = torch.tensor([[0.0, -gap, -gap], [-gap, -gap, 0.0]])
    values = jensen_shannon(student, teacher, 1.0)
    values.sum().backward()
    torch.testing.assert_close(values, jensen_shannon(teacher, student, 1.0))
    torch.testing.assert_close(values[0], torch.tensor(0.0))
    assert student.grad.isfinite().all()
    assert (values <= math.log(2) + 1e-6).all()
    if gap:
        torch.testing.assert_close(values[1], torch.tensor(math.log(2)))
    assert jensen_shannon(student.half(), teacher.half(), 1.0).isfinite().all()


@pytest.mark.parametrize("divergence", [forward_kl, jensen_shannon])
def test_a_class_that_the_teacher_excludes_is_a_probability_of_zero(divergence):
    """A teacher of fewer classes says -inf for those it does not know: a target of 0, finite for the student."""
    values = divergence(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, -math.inf]]), 1.0)
    assert values.isfinite().all()


@pytest.mark.parametrize("divergence", [forward_kl, jensen_shannon])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_teacher_may_be_certain_of_yes_or_no(divergence, dtype):
    """Infinite logits are probabilities of 1 and 0, as large finite ones are, for the student and for policies."""
    loss, task = Distillation(lambda batch: batch["seen"], divergence=divergence), Task(SEVERAL)
    loss.bind(task)
    loss.teacher = loss.source
    outputs, found = SequenceClassifierOutput(logits=random(B, C, seed=1)), []
    for most in (math.inf, 1e4):
        batch = {
            "labels": torch.tensor([[1.0, 0.0, 1.0]] * B),
            "seen": torch.tensor([[most, -most, 0.5]] * B).to(dtype),
        }
        batch |= loss.prepare(batch)
        signals = Signals(torch.zeros(B, 1), outputs.logits, (), batch, task)
        found.append((loss(outputs, batch), fit_and_entropy(batch[loss.logits_key], signals)))
    torch.testing.assert_close(*found)
    assert found[0][0].isfinite().all()


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, jensen_shannon])
def test_a_class_that_both_exclude_has_no_gradient(divergence):
    """As the words that a vocabulary has only been filled up with."""
    student = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    divergence(student, torch.tensor([[1.0, 0.0, -math.inf]]), 1.0).sum().backward()
    assert student.grad.isfinite().all() and student.grad[0, 2] == 0 and student.grad[0, 0] != 0


ENTROPIES = {
    "uniform": (torch.zeros(1, C), Task(), {}, 1.0),
    "certain": (torch.tensor([[1e4, 0.0, 0.0]]), Task(), {}, 0.0),
    "a class excluded": (torch.tensor([[0.0, 0.0, -math.inf]]), Task(), {}, math.log(2) / math.log(3)),
    "regression": (torch.ones(1, 1), Task(), {}, 0.0),
    "several labels": (torch.tensor([[0.0, 1e4]]), Task(SEVERAL), {}, 0.5),
    "several labels, as many as tokens": (
        torch.tensor([[0.0, 1e4]]),
        Task(SEVERAL),
        {"labels": torch.tensor([[1.0, -100.0]]), "attention_mask": torch.ones(1, 2)},
        0.5,
    ),
    "tokens": (
        torch.tensor([[[0.0, 0.0], [1e4, 0.0], [0.0, 0.0]]]),
        Task(),
        {"labels": torch.tensor([[1, 0, -100]]), "attention_mask": torch.ones(1, 3)},
        0.5,
    ),
}


@pytest.mark.parametrize("name", ENTROPIES)
def test_entropy_is_a_share_of_the_largest(name):
    """From 0 (certain) to 1 (uniform) for every kind of task, so that policies see one scale; only tokens with a label
    count, and classes that a teacher excludes (-inf) have no share.
    """
    logits, task, batch, expected = ENTROPIES[name]
    torch.testing.assert_close(entropy(logits, task, batch), torch.tensor([expected]))


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_a_temperature_that_means_nothing_is_refused(temperature):
    """Dividing by it would give NaN or a teacher without any say, hours into a run."""
    with pytest.raises(ValueError, match=f"temperature must be positive and finite, got {temperature}.*Usual values"):
        Distillation(lambda batch: batch["seen"], temperature)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calibrated_at": 0.0, "has_seen_labels": False}, "calibrated_at must be a positive and finite"),
        ({"calibrated_at": math.nan, "has_seen_labels": False}, "calibrated_at must be a positive and finite"),
        ({"calibrated_at": 2.0}, "calibrated_at is for Bayes' rule.*Add has_seen_labels=False"),
    ],
)
def test_a_calibration_that_means_nothing_is_refused(options, words):
    """And one of a teacher that has seen the labels, which Bayes' rule does not ask."""
    with pytest.raises(ValueError, match=words):
        Distillation(lambda batch: batch["seen"], **options)


def test_a_teacher_of_other_classes_is_refused():
    """Broadcasting could hide the difference, so the message names both shapes."""
    case = CASES["forward_kl at 1.0"]
    with pytest.raises(ValueError, match=r"'teacher'.*\(5, 3\).*teacher's \(5, 1\).*same classes"):
        values_of(case, batch={**case.batch, "seen": torch.zeros(B, 1)})


def test_a_teacher_that_was_not_opened_says_so():
    """`AMALTrainer` opens teachers; whoever uses the loss alone is told what to set."""
    with pytest.raises(RuntimeError, match=r"not been opened.*loss\.teacher"):
        Distillation("a/folder").prepare({})


@pytest.mark.parametrize("reduce", [torch.Tensor.mean, lambda z: z, lambda z: z.mean(1, keepdim=True)])
def test_an_own_loss_that_is_not_one_value_an_example_is_refused(reduce):
    """A function that averages over the batch would train, but every example's weight would act on all of them."""
    loss = CustomLoss(lambda outputs, batch: reduce(outputs.logits), "rule")
    with pytest.raises(ValueError, match=r"'rule' must return one value for each of the 5 examples.*Do not average"):
        loss(SequenceClassifierOutput(logits=torch.zeros(B, C)), {})


def test_a_robust_loss_is_believed_less_where_the_student_does_not_believe_it():
    """Its gradient is that of cross-entropy times `p^q`; it never exceeds 1/q, and without a label it is nothing."""
    logits, labels = random(B, C, seed=1).requires_grad_(), torch.tensor([0, 2, 1, 1, -100])
    robust, plain = GeneralizedCrossEntropy(0.7), CrossEntropy()
    (ours,) = torch.autograd.grad(robust.of_logits(logits, labels).sum(), logits)
    (theirs,) = torch.autograd.grad(plain.of_logits(logits, labels).sum(), logits)
    trust = logits.detach().softmax(1).gather(1, labels.clamp(min=0)[:, None]) ** 0.7
    torch.testing.assert_close(ours, trust * theirs)
    assert robust.of_logits(logits.detach() * 1e4, labels).max() <= 1 / 0.7
    assert robust.of_logits(logits, labels)[-1] == 0
    for q in (0.0, 1.1):
        with pytest.raises(ValueError, match="q must lie"):
            GeneralizedCrossEntropy(q)


def test_a_corrected_loss_is_least_where_the_student_is_right():
    """Over labels that go wrong as the confusions say, the gradient is nothing at the true probabilities of classes,
    and that of cross-entropy is not; where labels are never wrong the two are one.
    """
    classes = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    logits = classes.log().expand(C, C).clone().requires_grad_()
    shares = classes @ torch.tensor(CONFUSIONS, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((shares * loss.of_logits(logits, torch.arange(C))).sum(), logits)[0].sum(0)
        for loss in (CorrectedCrossEntropy(CONFUSIONS), CrossEntropy())
    ]
    torch.testing.assert_close(gradients[0], torch.zeros_like(classes), atol=1e-7, rtol=0)
    assert gradients[1].abs().max() > 0.1
    case = CASES["corrected, smoothed"]
    never = CorrectedCrossEntropy(torch.eye(C))
    never.bind(case.task)
    torch.testing.assert_close(never.of_logits(case.logits, case.batch["labels"]), values_of(CASES["labels smoothed"]))


def test_a_label_that_no_class_is_given_costs_a_number():
    """Confusions may say that a label does not occur, and one may occur all the same."""
    logits = random(B, C, seed=1).requires_grad_()
    values = CorrectedCrossEntropy([[1.0, 0.0, 0.0]] * C).of_logits(logits, torch.tensor([0, 1, 2, -100, 1]))
    values.sum().backward()
    assert values.isfinite().all() and logits.grad.isfinite().all()
    shut = torch.tensor([[0.0, 1.0, -math.inf]])
    assert CorrectedCrossEntropy(torch.full((C, C), 1 / C)).of_logits(shut, torch.tensor([0])).isfinite().all()


@pytest.mark.parametrize(
    ("confusions", "message"),
    [
        (torch.ones(2, 3) / 3, r"must be \(C, C\).*shape \(2, 3\)"),
        (torch.ones(2), r"shape \(2,\)"),
        (torch.ones(1, 1), r"shape \(1, 1\)"),
        ([[2.0, 1.0], [0.0, 1.0]], r"add up to \[3.0, 1.0\]"),
        ([[1.5, -0.5], [0.0, 1.0]], r"below 0"),
        ([[float("nan"), 1.0], [0.0, 1.0]], r"add up to \[nan, 1.0\]"),
    ],
)
def test_confusions_that_are_no_probabilities_are_refused(confusions, message):
    """Counts instead of shares would train, on another loss."""
    with pytest.raises(ValueError, match=message):
        CorrectedCrossEntropy(confusions)


@pytest.mark.parametrize(
    ("task", "classes", "message"),
    [
        (Task(), 4, r"confusions are of 3 classes, and the student has 4"),
        (Task(SEVERAL), 3, r"one class a row.*'multi_label_classification'"),
        (Task("regression"), 1, r"one class a row.*'regression'"),
    ],
)
def test_confusions_of_another_task_are_refused(task, classes, message):
    """Before the first step."""
    loss = CorrectedCrossEntropy(CONFUSIONS)
    loss.bind(task)
    with pytest.raises(ValueError, match=message):
        loss.check(None, classes)


def test_confusions_do_not_go_with_soft_labels():
    """Of which class is the label, then?"""
    case = CASES["probabilities"]
    with pytest.raises(ValueError, match=r"'labels' holds torch.float32, and a label must be one class"):
        CorrectedCrossEntropy(CONFUSIONS)(SequenceClassifierOutput(logits=case.logits), case.batch)
