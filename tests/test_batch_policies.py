"""What changes the batch: the change itself, and its gradient against a fully unrolled step in float64."""

import copy
import itertools

import pytest
import torch
from conftest import exported, tiny_bert, toy_rows
from torch.func import functional_call

from amal_hf.batch_policies.batch_policy import BatchPolicy, batch_gradient
from amal_hf.batch_policies.label_blend import LabelBlend
from amal_hf.batch_policies.token_mask import AttentionMask, TokenMask, within_budget


VECTORS = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
POLICIES = {
    "label blend": lambda: LabelBlend(3),
    "token mask": lambda: TokenMask(VECTORS, [0, 5]),
    "attention mask": lambda: AttentionMask(VECTORS, [0, 5]),
}
"""Everything that changes batches."""
all_policies = pytest.mark.parametrize("new_policy", POLICIES.values(), ids=POLICIES.keys())


def test_none_is_left_out():
    """A new one has to be put into the table above."""
    assert exported(BatchPolicy) == {type(new()).__name__ for new in POLICIES.values()}


def stirred(policy):
    """With parameters that are not those of the start, where many derivatives vanish."""
    generator = torch.Generator().manual_seed(2)
    for parameter in policy.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return policy


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


@all_policies
def test_gradient_is_that_of_an_unrolled_step(batch, new_policy):
    """dV/dφ through one student step, by autograd through the step and by two passes, in float64."""
    # Wide enough for attention to matter.
    model = tiny_bert(attn_implementation="eager", initializer_range=0.3).double().eval()
    policy = stirred(new_policy().double())
    meta = toy_rows(8, 4).with_format("torch")[:]
    params = {n: p for n, p in model.named_parameters() if "embeddings" not in n}
    loss, rate = blended_loss(model, policy, batch), 0.1
    gradient = torch.autograd.grad(loss(model), list(params.values()), create_graph=True)
    stepped = {name: p - rate * g for (name, p), g in zip(params.items(), gradient, strict=True)}
    value = functional_call(model, stepped, (), meta).loss
    exact = torch.autograd.grad(value, list(policy.parameters()), retain_graph=True)
    direction = dict(zip(params, torch.autograd.grad(value, list(stepped.values())), strict=True))

    before = {name: p.clone() for name, p in params.items()}
    measured = batch_gradient(
        policy, params, direction, lambda: blended_loss(model, policy, batch)(model), torch.float64
    )
    assert all(torch.equal(p, before[name]) for name, p in params.items())
    assert all(p.grad is None for p in [*model.parameters(), *policy.parameters()])
    exact, measured = (torch.cat([g.flatten() for g in parts]) for parts in (exact, measured))
    assert exact.norm() > 1e-6, "a vacuous comparison"
    assert (rate * measured - exact).norm() / exact.norm() < 1e-6


@all_policies
def test_state_goes_on_where_it_stopped(new_policy):
    """Adam's moments are saved with the parameters: the next update is bit-equal. Tables of vectors are not saved."""
    one, two = new_policy(), new_policy()
    generator = torch.Generator().manual_seed(0)
    updates = [[torch.randn(p.shape, generator=generator) for p in one.parameters()] for _ in range(2)]
    one.update(updates[0])
    state = copy.deepcopy(one.state_dict())
    two.load_state_dict(state)
    for policy in (one, two):
        policy.update(updates[1])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert all(p.grad is None for p in one.parameters())
    assert "vectors" not in state


@all_policies
def test_reset_forgets_unless_frozen(new_policy):
    """A second run starts anew; what was frozen stays."""
    fresh, used = new_policy(), stirred(new_policy())
    used.reset(3)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), used.parameters(), strict=True))
    kept = stirred(new_policy())
    before = [p.clone() for p in kept.parameters()]
    kept.freeze()
    kept.reset(3)
    assert all(torch.equal(a, b) for a, b in zip(before, kept.parameters(), strict=True))
    assert not kept.learns and not any(p.requires_grad for p in kept.parameters())


def test_rows_without_a_label_are_not_blended(batch):
    """-100 is no row of the matrix; such a row, and one that it would be mixed into, keeps its own input, and sees
    nothing of its padding.
    """
    batch["labels"][2] = -100
    batch["attention_mask"][2, 5:] = 0
    embeddings = torch.randn(6, 10, 4)
    changed = LabelBlend(3).change(embeddings, batch, 0)
    (_, share), (other, _) = changed.targets
    alone = (batch["labels"] < 0) | (other["labels"] < 0)
    assert alone.any() and torch.equal(share[alone], torch.ones(int(alone.sum())))
    torch.testing.assert_close(changed.embeddings[alone], embeddings[alone])
    assert torch.equal(changed.attention_mask[alone], batch["attention_mask"][alone])


@pytest.mark.parametrize("new_policy", POLICIES.values(), ids=POLICIES.keys())
def test_rows_of_one_length_need_no_attention_mask(batch, new_policy):
    """Without one every token counts."""
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    embeddings = torch.randn(6, 10, 4)
    with_mask, without = (
        new_policy().change(embeddings, {name: batch[name] for name in names}, 0)
        for names in (("input_ids", "labels", "attention_mask"), ("input_ids", "labels"))
    )
    assert torch.equal(with_mask.embeddings, without.embeddings)
    assert torch.equal(with_mask.attention_mask, without.attention_mask)


@pytest.mark.parametrize("labels", [torch.zeros(6, 3), torch.zeros(6, 10, dtype=torch.long)])
def test_blends_of_other_labels_are_refused(batch, labels):
    """Several labels at once, and labels of tokens, are no rows of the matrix."""
    with pytest.raises(ValueError, match="LabelBlend is for examples of one class each"):
        LabelBlend(3).change(torch.randn(6, 10, 4), {**batch, "labels": labels}, 0)


def test_masks_keep_special_tokens_and_the_budget(batch):
    """1 for special tokens and padding; over the others the mean of each row is the budget."""
    policy = stirred(TokenMask(VECTORS, [0, 5], budget=0.3))
    batch["input_ids"][:, 0] = 5
    keep = policy.keep(batch["input_ids"], batch["attention_mask"])
    special = (batch["input_ids"] == 5) | (batch["input_ids"] == 0)
    padding = batch["attention_mask"] == 0
    assert torch.equal(keep[special | padding], torch.ones(int((special | padding).sum())))
    ordinary = ~special & ~padding
    means = (keep * ordinary).sum(1) / ordinary.sum(1)
    torch.testing.assert_close(means, torch.full_like(means, 0.3))
    assert keep[ordinary].std() > 0.01 and (keep >= 0).all() and (keep <= 1).all()


def test_masks_get_sharper_with_every_update(batch):
    """The same scores after 200 updates: further from the budget; a run that begins anew is soft again."""
    policy = stirred(TokenMask(VECTORS, [0, 5], learning_rate=1e-12))
    for parameter in policy.parameters():
        parameter.data *= 0.2
    soft = policy.keep(batch["input_ids"], batch["attention_mask"])
    for _ in range(200):
        policy.update([torch.zeros_like(parameter) for parameter in policy.parameters()])
    sharp = policy.keep(batch["input_ids"], batch["attention_mask"])
    assert sharp.detach().std() > 1.2 * soft.detach().std()
    policy.reset(3)
    assert policy.updates == 0


@pytest.mark.parametrize("budget", [0.1, 0.5, 0.9, 1.0])
def test_masks_are_nearest_to_their_scores(budget):
    """No mask of the same sum is nearer: against all guesses which entries are 0 and which are 1."""
    generator = torch.Generator().manual_seed(0)
    for spread in (0.1, 1.0, 10.0):
        scores = spread * torch.randn(1, 5, generator=generator, dtype=torch.float64)
        found = within_budget(scores, torch.ones(1, 5, dtype=torch.bool), budget)[0]
        distances = []
        for guess in itertools.product((0.0, 1.0, None), repeat=5):
            free = torch.tensor([value is None for value in guess])
            mask = torch.tensor([value or 0.0 for value in guess], dtype=torch.float64)
            if free.any():
                mask[free] = scores[0, free] + (5 * budget - mask.sum() - scores[0, free].sum()) / free.sum()
            if abs(mask.sum() - 5 * budget) < 1e-9 and (mask >= 0).all() and (mask <= 1).all():
                distances.append((mask - scores[0]).square().sum())
        torch.testing.assert_close((found - scores[0]).square().sum(), min(distances))


def test_slopes_of_masks_are_those_of_the_projection():
    """Against differences in float64, beside a row of special tokens only, whose slopes are zero."""
    scores = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    counted = torch.tensor([[1, 1, 1, 1, 1, 0], [1] * 6, [0] * 6], dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda s: torch.where(counted, within_budget(s, counted, 0.4), 1.0), scores)


def test_an_attention_mask_of_ones_is_the_plain_one(batch):
    """log 1 = 0: with everything kept, the student gives what it gives for the plain mask, padding included, in fp64
    as well.
    """
    for model in (tiny_bert().eval(), tiny_bert().eval().double()):
        policy = AttentionMask(VECTORS, list(range(60)))
        embeddings = model.get_input_embeddings()(batch["input_ids"])
        changed = policy.change(embeddings, batch, 0)
        ours = model(inputs_embeds=changed.embeddings, attention_mask=changed.attention_mask).logits
        plain = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)


def test_bad_input():
    """Said at construction, with what came."""
    with pytest.raises(ValueError, match="at least 2, got 1"):
        LabelBlend(1)
    with pytest.raises(ValueError, match="LabelBlend: learning_rate"):
        LabelBlend(3, learning_rate=0.0)
    with pytest.raises(ValueError, match="made for 3 labels, and the student has 4"):
        LabelBlend(3).reset(4)
    with pytest.raises(ValueError, match="budget must be in"):
        TokenMask(VECTORS, [0], budget=0.0)
    with pytest.raises(ValueError, match="finite matrix"):
        TokenMask(VECTORS[0], [0])
