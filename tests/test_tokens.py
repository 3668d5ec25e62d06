"""Means over tokens in chunks: the same numbers as at once, with far less memory."""

import pytest
import torch
import torch.nn.functional as F
from conftest import VOCABULARY
from generation import tiny_generator
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.trainer_pt_utils import LabelSmoother

from amal_hf.cross_entropy import CrossEntropy, masked_mean
from amal_hf.distillation import Distillation
from amal_hf.divergences import forward_kl, jensen_shannon, logit_mse, reverse_kl
from amal_hf.losses import CustomLoss
from amal_hf.mixture import Mixture
from amal_hf.policies.fixed_weights import FixedWeights
from amal_hf.policies.loss_network import LossNetwork
from amal_hf.policies.policy import Signals
from amal_hf.task import Task, distilled_tokens, entropy
from amal_hf.teachers import LiveTeacher
from amal_hf.tokens import ON_A_GPU, _chunk_size, token_means
from amal_hf.top_logits import TopK


B, T, V = 3, 7, VOCABULARY
DIVERGENCES = (forward_kl, reverse_kl, jensen_shannon, logit_mse)


def random(seed, *shape):
    return torch.randn(shape or (B, T, V), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def batch_with(labels=None):
    """Labels of 7, 4 and 1 tokens, the first of all ignored as in a prompt."""
    labels = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(5)) if labels is None else labels
    for row, end in enumerate((7, 4, 2)):
        labels[row, end:] = -100
    labels[0, 0] = -100
    return {"labels": labels, "attention_mask": (labels != -100).long()}


def distillation(teacher, task, **options):
    loss = Distillation(lambda batch: teacher, **options)
    loss.teacher = loss.source
    loss.bind(task)
    return loss


def value(loss, logits, batch):
    return loss(Seq2SeqLMOutput(logits=logits), {**batch, **loss.prepare(batch)})


def at_once(divergence, logits, teacher, batch, task, temperature=2.0):
    """The formula on all tokens together, as plain autograd has it."""
    return masked_mean(divergence(logits, teacher, temperature), distilled_tokens(batch, task))


chunks = pytest.mark.parametrize("chunk", [V, 3 * V, 10**9], ids=["a token", "three tokens", "all"])
tasks = pytest.mark.parametrize("task", [Task(), Task(shifted=True)], ids=["aligned", "shifted"])
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


@chunks
@tasks
@every_divergence
def test_chunks_give_value_gradient_and_second_derivative(monkeypatch, chunk, task, divergence):
    """Neither how many tokens are taken at once nor their recomputation may show, not even in a second derivative."""
    monkeypatch.setattr("amal_hf.tokens.CHUNK", chunk)
    teacher, batch, found = random(2), batch_with(), []
    loss = distillation(teacher, task, divergence=divergence)
    for of_logits in (
        lambda logits: value(loss, logits, batch),
        lambda logits: at_once(divergence, logits, teacher, batch, task),
    ):
        logits = random(1).requires_grad_()
        values = of_logits(logits)
        (first,) = torch.autograd.grad((values * torch.tensor([1.0, 2.0, 3.0])).sum(), logits, create_graph=True)
        (second,) = torch.autograd.grad((first * random(3)).sum(), logits)
        plain = random(1).requires_grad_()  # the way of a training step, without a graph of the gradient
        (once,) = torch.autograd.grad((of_logits(plain) * torch.tensor([1.0, 2.0, 3.0])).sum(), plain)
        found.append((values, first, second, once))
    assert found[0][1].abs().max() > 1e-3
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@chunks
def test_chunks_carry_dual_numbers(monkeypatch, chunk):
    """Forward-mode slopes pass through."""
    monkeypatch.setattr("amal_hf.tokens.CHUNK", chunk)
    loss, batch = distillation(random(2), Task(shifted=True)), batch_with()
    _, ours = torch.func.jvp(lambda logits: value(loss, logits, batch), (random(1),), (random(3),))
    expected = lambda logits: at_once(forward_kl, logits, random(2), batch, Task(shifted=True))  # noqa: E731
    torch.testing.assert_close(ours, torch.func.jvp(expected, (random(1),), (random(3),))[1])


@tasks
def test_labels_are_smoothed_as_transformers_does(task):
    """For one sentence it is the `LabelSmoother` of `Trainer`."""
    loss, batch = CrossEntropy(), batch_with()
    loss.bind(Task(label_smoothing=0.1, shifted=task.shifted))
    for row in range(B):
        logits, labels = random(1)[row : row + 1], batch["labels"][row : row + 1]
        theirs = LabelSmoother(0.1)({"logits": logits}, labels.clone(), shift_labels=task.shifted)
        torch.testing.assert_close(loss.of_logits(logits, labels)[0], theirs)


@tasks
@every_divergence
def test_all_classes_as_top_k_are_the_full_divergence(task, divergence):
    """k = V leaves nothing over."""
    batch = batch_with()
    full = value(distillation(random(2), task, divergence=divergence), random(1), batch)
    top = value(distillation(random(2), task, divergence=divergence, top_k=V), random(1), batch)
    torch.testing.assert_close(top, full)


def test_top_k_comes_closer_with_k():
    """Merging classes can only hide differences, so that the divergence grows with k towards the full one."""
    batch = batch_with()
    values = [value(distillation(random(2), Task(), top_k=k), random(1), batch) for k in (1, 4, 16, V - 1, V)]
    assert all((more >= less - 1e-12).all() for less, more in zip(values, values[1:], strict=False))
    assert (values[0] < 0.9 * values[-1]).all()


def test_the_merged_class_holds_what_is_left():
    """k probabilities are the teacher's own, and the last is one minus their sum."""
    p = (random(2) / 2.0).softmax(-1)
    top = TopK(4, 2.0)(random(2))
    q = (top.logits / 2.0).softmax(-1)
    torch.testing.assert_close(q[..., :4], p.gather(-1, top.classes))
    torch.testing.assert_close(q[..., 4], 1 - q[..., :4].sum(-1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_largest_logits_are_found_in_chunks(monkeypatch, dtype):
    """The same ones, and nothing as large as the teacher's logits is made for them."""
    teacher = random(2).to(dtype)
    at_once = TopK(4, 2.0)(teacher)
    monkeypatch.setattr("amal_hf.tokens.CHUNK", 2 * V)
    with _Peak() as peak:
        in_chunks = TopK(4, 2.0)(teacher)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(in_chunks, at_once, strict=True))
    assert max(size for size, _ in peak.largest) < teacher.numel()
    assert in_chunks.logits.dtype == torch.promote_types(dtype, torch.float32)


def test_a_gpu_is_given_more_at_a_time():
    """Small chunks keep it waiting for the next call."""
    sizes = [_chunk_size(torch.empty(1, V, device=device)) for device in ("cpu", "meta")]
    assert sizes[1] // sizes[0] == ON_A_GPU


@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize("scale", [1e4, 1e30])
@every_divergence
def test_extreme_logits_stay_finite(divergence, scale, top_k):
    """A confident teacher or student must not put NaN into the gradient."""
    if divergence is logit_mse and scale > 1e10:
        pytest.skip("its square is beyond fp32")
    logits = (random(1).float() * scale).requires_grad_()
    loss = distillation(random(2).float() * scale, Task(), divergence=divergence, top_k=top_k)
    values = value(loss, logits, batch_with())
    values.sum().backward()
    assert values.isfinite().all()
    assert logits.grad.isfinite().all()


@tasks
def test_what_a_policy_sees_of_a_teacher_is_the_same_from_its_top_logits(monkeypatch, task):
    """Fit and entropy of student and teacher, in chunks; with k = V the merged teacher is the teacher."""
    monkeypatch.setattr("amal_hf.tokens.CHUNK", 2 * V)
    batch, seen = batch_with(), []
    for teacher in (random(2), TopK(V, 2.0)(random(2))):
        seen.append(LossNetwork(probe=False).observe(Signals(torch.ones(B, 1), random(1), (teacher,), batch, task)))
    torch.testing.assert_close(*seen)
    assert seen[0].shape == (B, 6)
    log_p = F.log_softmax(random(1), -1)
    expected = masked_mean(-(log_p.exp() * log_p).sum(-1) / torch.tensor(V).log(), distilled_tokens(batch, task))
    torch.testing.assert_close(entropy(random(1), task, batch), expected)
    torch.testing.assert_close(seen[0][:, 2].double(), expected)


class _Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest tensor that any operation makes, in elements."""

    def __init__(self):
        super().__init__()
        self.largest = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        fresh = isinstance(result, torch.Tensor) and "view" not in str(function) and "detach" not in str(function)
        if fresh:
            self.largest.append((result.numel(), str(function)))
        return result


def table(losses, logits, batch):
    """All losses of a mixture, each with its own teacher."""
    mixture = Mixture(losses, FixedWeights(), Task(shifted=True))
    prepared = {**batch, **{key: found for loss in losses for key, found in loss.prepare(batch).items()}}
    return mixture._table(Seq2SeqLMOutput(logits=logits), prepared)


def several_losses():
    first, second = (distillation(random(seed), Task(), name=f"teacher {seed}") for seed in (2, 3))
    return [CrossEntropy(), first, second]


def test_nothing_as_large_as_the_logits_is_made_but_one_gradient(monkeypatch):
    """Of size B·T·V there are the logits and their gradient, whatever and how many the losses are."""
    monkeypatch.setattr("amal_hf.tokens.CHUNK", 2 * V)
    logits, losses, batch = random(1).requires_grad_(), several_losses(), batch_with()
    with _Peak() as peak:
        table(losses, logits, batch).sum().backward()
    whole = [name for size, name in peak.largest if size >= logits.numel()]
    assert all("zeros_like" in name or "index_copy" in name for name in whole), whole
    assert sum("zeros_like" in name for name in whole) == 1


@chunks
def test_losses_that_share_a_gradient_have_that_of_their_sum(monkeypatch, chunk):
    """To the bit what each has by itself, added up; also a second time, of one loss alone, beside one that is not
    taken in chunks, and differentiated twice.
    """
    monkeypatch.setattr("amal_hf.tokens.CHUNK", chunk)
    losses, batch, logits = several_losses(), batch_with(), random(1).requires_grad_()
    losses.append(CustomLoss(lambda outputs, batch: outputs.logits.square().sum((1, 2)), "squares"))
    values = table(losses, logits, batch)
    of_one = [torch.autograd.grad(column.sum(), logits, retain_graph=True)[0] for column in values.unbind(1)]
    alone = [torch.autograd.grad(table([loss], logits, batch).sum(), logits)[0] for loss in losses]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(of_one, alone, strict=True))
    for again in (False, True):
        (all_of_them,) = torch.autograd.grad(values.sum(), logits, retain_graph=True, create_graph=again)
        torch.testing.assert_close(all_of_them, sum(alone), rtol=1e-12, atol=1e-14)
    (second,) = torch.autograd.grad((all_of_them * random(4)).sum(), logits)
    assert second.isfinite().all() and second.abs().max() > 1e-3


def test_a_second_derivative_takes_as_many_steps_as_there_are_chunks(monkeypatch):
    """And none of them makes all of the gradient anew."""
    monkeypatch.setattr("amal_hf.tokens.CHUNK", V)
    logits, batch = random(1).requires_grad_(), batch_with()
    loss = distillation(random(2), Task())
    with _Peak() as peak:
        (first,) = torch.autograd.grad(value(loss, logits, batch).sum(), logits, create_graph=True)
        (first * random(3)).sum().backward()
    whole = [name for size, name in peak.largest if size >= logits.numel()]
    assert sum("index_put" in name for name in whole) == 2, whole


@every_divergence
def test_rows_of_many_classes_are_taken_in_chunks(monkeypatch, divergence):
    """As tokens that are weighed one by one are: nothing changes but how much memory it takes."""
    few, labels = random(1).flatten(0, 1), torch.arange(B * T)
    found = []
    for chunk in (10**9, 2 * V):
        monkeypatch.setattr("amal_hf.tokens.CHUNK", chunk)
        rows = few.clone().requires_grad_()
        losses = [CrossEntropy(), distillation(random(2).flatten(0, 1), Task(), divergence=divergence)]
        with _Peak() as peak:
            values = table(losses, rows, {"labels": labels})
            values.sum().backward()
        whole = [name for size, name in peak.largest if size >= rows.numel()]
        found.append((values, rows.grad, entropy(few, Task(), {"labels": labels})))
    assert all("zeros_like" in name or "index_copy" in name for name in whole), whole
    for at_once, in_chunks in zip(*found, strict=True):
        torch.testing.assert_close(at_once, in_chunks, rtol=1e-12, atol=1e-14)


def test_a_teacher_in_half_precision_is_not_copied(monkeypatch):
    """Its logits of tokens stay as they are, and cost to the bit what a copy in fp32 does."""
    monkeypatch.setattr("amal_hf.tokens.CHUNK", 2 * V)
    batch = {"input_ids": torch.arange(5, 5 + B * T).view(B, T) % V, **batch_with()}
    teacher = LiveTeacher(tiny_generator("llama").bfloat16())
    found = teacher(batch)
    assert found.dtype == torch.bfloat16
    for top_k in (None, 4):
        values = [
            value(distillation(t, Task(), top_k=top_k), random(1).float(), batch) for t in (found, found.float())
        ]
        assert torch.equal(*values)


def test_an_example_without_tokens_is_zero():
    """No division by nothing."""
    values = token_means(lambda rows, _: rows.sum(1), random(1), torch.zeros(B, T, dtype=torch.bool))
    assert torch.equal(values, torch.zeros(B, dtype=torch.float64))
