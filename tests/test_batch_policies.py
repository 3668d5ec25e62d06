"""What changes the batch: the change itself, and its gradient against a fully unrolled step in float64."""

import copy

import pytest
import torch
from conftest import tiny_bert, toy_rows
from torch.func import functional_call

from amal_hf.batch_policies.batch_policy import batch_gradient
from amal_hf.batch_policies.label_blend import LabelBlend


@pytest.fixture
def batch():
    rows = toy_rows(6).with_format("torch")[:]
    rows["attention_mask"][0, 7:] = 0
    return {**rows, "teacher_logits": torch.arange(18.0).view(6, 3)}


def blended_loss(model, policy, batch, step=3):
    """The mean blended cross-entropy of a callable student."""
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    changed = policy.change(embeddings, batch, step)

    def loss(student):
        logits = student(inputs_embeds=changed.embeddings, attention_mask=changed.attention_mask).logits
        parts = [
            share * torch.nn.functional.cross_entropy(logits, target["labels"], reduction="none")
            for target, share in changed.targets
        ]
        return sum(parts).mean()

    return loss


def test_blend_mixes_inputs_targets_and_masks(batch):
    """λ = 1 − 0.5 sigmoid(−1) = 0.866 at first; the partner brings its labels, teacher logits and mask."""
    policy = LabelBlend(3)
    embeddings = torch.randn(6, 10, 4)
    changed = policy.change(embeddings, batch, step=0)
    (own, share), (other, rest) = changed.targets
    torch.testing.assert_close(share, torch.full((6,), 1 - 0.5 / (1 + torch.e)))
    torch.testing.assert_close(share + rest, torch.ones(6))
    partner = other["teacher_logits"][:, 0].div(3).long()
    torch.testing.assert_close(other["labels"], batch["labels"][partner])
    mixed = share[:, None, None] * embeddings + rest[:, None, None] * embeddings[partner]
    torch.testing.assert_close(changed.embeddings, mixed)
    both = batch["attention_mask"].bool() | batch["attention_mask"][partner].bool()
    assert torch.equal(changed.attention_mask.bool(), both)
    assert own is batch


def test_partners_depend_on_seed_and_step_alone(batch):
    """A resumed run must pair as the first one did, and nobody else's random numbers may change."""
    embeddings, state = torch.randn(6, 10, 4), torch.get_rng_state()
    first = LabelBlend(3, seed=1).change(embeddings, batch, 5).targets[1][0]["teacher_logits"]
    again = LabelBlend(3, seed=1).change(embeddings, batch, 5).targets[1][0]["teacher_logits"]
    later = LabelBlend(3, seed=1).change(embeddings, batch, 6).targets[1][0]["teacher_logits"]
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_is_that_of_an_unrolled_step(batch):
    """dV/dφ through one student step, by autograd through the step and by two passes, in float64."""
    model = tiny_bert(attn_implementation="eager").double().eval()
    policy = LabelBlend(3).double()
    meta = toy_rows(8, 4).with_format("torch")[:]
    params = {n: p for n, p in model.named_parameters() if "embeddings" not in n}
    loss, rate = blended_loss(model, policy, batch), 0.1
    gradient = torch.autograd.grad(loss(model), list(params.values()), create_graph=True)
    stepped = {name: p - rate * g for (name, p), g in zip(params.items(), gradient, strict=True)}
    value = functional_call(model, stepped, (), meta).loss
    (exact,) = torch.autograd.grad(value, policy.matrix, retain_graph=True)
    direction = dict(zip(params, torch.autograd.grad(value, list(stepped.values())), strict=True))

    before = {name: p.clone() for name, p in params.items()}
    (measured,) = batch_gradient(
        policy, params, direction, lambda: blended_loss(model, policy, batch)(model), torch.float64
    )
    assert all(torch.equal(p, before[name]) for name, p in params.items())
    assert all(p.grad is None for p in [*model.parameters(), *policy.parameters()])
    assert exact.norm() > 1e-6, "a vacuous comparison"
    assert (rate * measured - exact).norm() / exact.norm() < 1e-6


def test_state_goes_on_where_it_stopped():
    """Adam's moments are saved with the matrix: the next update is bit-equal."""
    one, two = LabelBlend(3), LabelBlend(3)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 3, generator=generator) for _ in range(2))
    one.update([first])
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for policy in (one, two):
        policy.update([second])
    assert torch.equal(one.matrix, two.matrix)
    assert one.matrix.grad is None


def test_bad_input():
    """Said at construction, with what came."""
    with pytest.raises(ValueError, match="at least 2, got 1"):
        LabelBlend(1)
    with pytest.raises(ValueError, match="LabelBlend: learning_rate"):
        LabelBlend(3, learning_rate=0.0)
