"""All ways of measuring slopes give the derivative that one unrolled step of the student has."""

import pytest
import torch
from conftest import exported, tiny_bert, toy_rows
from reference import slopes_by_unrolling
from transformers.modeling_outputs import SequenceClassifierOutput

from amal_hf import AdamDirection, DoubleBackward, FiniteDifference, ForwardMode, LastLayer, SGDDirection, Tangent
from amal_hf.central_differences import movable
from amal_hf.directions import adam_denominators
from amal_hf.last_layer import frozen_body, output_layer
from amal_hf.meta import meta_gradient
from amal_hf.shapes import Evaluation
from amal_hf.tangents import movable_parameters


TANGENTS = [FiniteDifference(), ForwardMode(), DoubleBackward(), LastLayer()]
DIRECTIONS = [SGDDirection(), AdamDirection()]


@pytest.fixture
def setting():
    """A student in float64 that AdamW has already trained a little, a batch and a meta batch."""
    model = tiny_bert(attn_implementation="eager").double()
    batch, meta = (toy_rows(6, seed).with_format("torch")[:] for seed in (1, 2))
    teacher = torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval(), batch, meta, teacher, optimizer


def test_none_is_left_out():
    """A new way of measuring slopes has to be compared with the unrolled step too."""
    assert exported(Tangent) == {type(tangent).__name__ for tangent in TANGENTS}


def no_product(vector):
    raise RuntimeError("this direction asks for no Hessian")


def two_losses(student, batch, teacher):
    """Cross-entropy and a distance to a teacher, `(B, 2)`."""
    logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    return torch.stack([labels, (logits - teacher).square().sum(1)], 1)


def mean_loss(student, batch):
    return two_losses(student, batch, torch.zeros(1, dtype=torch.float64))[:, 0].mean()


def measure(setting, tangent, direction):
    """Slopes as the package measures them, and the losses as features."""
    model, batch, meta, teacher, optimizer = setting
    module = tangent.scope(model)
    params = dict(module.named_parameters())
    _, gradient = meta_gradient(params, lambda: mean_loss(model, meta))

    def evaluate():
        losses = two_losses(model, batch, teacher)
        return Evaluation(losses, losses)

    return tangent(module, direction(gradient, params, optimizer, no_product), evaluate, torch.float64)


def unroll(setting, tangent, direction):
    """The same slopes by differentiating through one step of the parameters that the tangent sees."""
    model, batch, meta, teacher, optimizer = setting
    seen = {id(p) for p in tangent.scope(model).parameters()}
    params = {name: p for name, p in model.named_parameters() if id(p) in seen}
    adam = {name: 1 / scale for name, scale in adam_denominators(params, optimizer).items()}
    scales = adam if isinstance(direction, AdamDirection) else {name: torch.ones_like(p) for name, p in params.items()}
    return slopes_by_unrolling(
        model, lambda student: two_losses(student, batch, teacher), lambda student: mean_loss(student, meta), scales
    )


@pytest.mark.parametrize("direction", DIRECTIONS, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("tangent", TANGENTS, ids=lambda t: type(t).__name__)
def test_slopes_are_those_of_an_unrolled_step(setting, tangent, direction):
    """Every tangent with every direction must give the unrolled derivative, or weights would learn something else.

    `LastLayer` is compared with a step of the output layer alone.
    """
    measured, exact = measure(setting, tangent, direction), unroll(setting, tangent, direction)
    assert exact.abs().min() > 1e-6, "a vacuous comparison"
    assert (measured.slopes - exact).norm() / exact.norm() < 1e-6


@pytest.mark.parametrize("tangent", TANGENTS, ids=lambda t: type(t).__name__)
def test_features_are_those_where_the_student_stands(setting, tangent):
    """Policies see the features that come with the slopes, so these must be of the parameters themselves."""
    measured = measure(setting, tangent, SGDDirection())
    model, batch, _, teacher, _ = setting
    torch.testing.assert_close(measured.features, two_losses(model, batch, teacher).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tangent", TANGENTS, ids=lambda t: type(t).__name__)
def test_the_student_is_left_as_it_was(setting, tangent):
    """Measuring must not train: parameters come back bit for bit and no gradient is left behind."""
    before = {name: p.clone() for name, p in setting[0].named_parameters()}
    measure(setting, tangent, AdamDirection())
    assert all(torch.equal(p, before[name]) for name, p in setting[0].named_parameters())
    assert all(p.grad is None for p in setting[0].parameters())


def test_parameters_come_back_after_an_error(setting):
    """Running out of memory inside a measurement must not leave the student displaced."""
    params = dict(setting[0].named_parameters())
    before = {name: p.clone() for name, p in params.items()}
    with pytest.raises(MemoryError), movable(params, before) as move:
        move(torch.tensor(0.3))
        assert not torch.equal(params["classifier.weight"], before["classifier.weight"])
        raise MemoryError
    assert all(torch.equal(p, before[name]) for name, p in params.items())


def test_finite_differences_work_under_fused_attention(setting):
    """The default keeps scaled-dot-product attention on, where exact second derivatives fail."""
    fused = tiny_bert(attn_implementation="sdpa").double()
    fused.load_state_dict(setting[0].state_dict())
    measured = measure((fused.eval(), *setting[1:]), FiniteDifference(), SGDDirection())
    exact = unroll(setting, FiniteDifference(), SGDDirection())
    assert (measured.slopes - exact).norm() / exact.norm() < 1e-6


def test_adam_direction_before_the_first_step_is_the_gradient(setting):
    """Without a second moment there is nothing to divide by."""
    params = dict(setting[0].named_parameters())
    fresh = torch.optim.AdamW(setting[0].parameters())
    assert AdamDirection()(params, params, fresh, no_product) is params


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan")])
def test_a_radius_that_is_not_a_length_is_refused(radius):
    """A zero radius would divide zero by zero in every slope."""
    with pytest.raises(ValueError, match="radius must be positive"):
        FiniteDifference(radius)


def test_logits_that_are_not_those_of_the_last_layer_are_refused():
    """Its slopes would be those of other losses; and there may be a narrower linear layer after it, or none."""
    model = tiny_bert()
    batch = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    frozen_body(model, output_layer(model), batch)
    model.other = torch.nn.Linear(16, 7)
    assert output_layer(model) is model.classifier
    forward = model.forward
    model.forward = lambda **given: SequenceClassifierOutput(logits=2 * forward(**given).logits)
    with pytest.raises(ValueError, match="are not the output of its last linear layer"):
        frozen_body(model, output_layer(model), batch)
    model.classifier = torch.nn.Identity()
    with pytest.raises(ValueError, match="has no nn.Linear with 3 outputs"):
        output_layer(model)


def test_embedding_tables_stay_where_they_are():
    """They are most of a small student, and moving them costs a forward pass; unless nothing else trains."""
    model = tiny_bert()
    moved = movable_parameters(model)
    assert not any("embeddings.weight" in name for name in moved)
    assert "bert.embeddings.LayerNorm.weight" in moved
    for parameter in moved.values():
        parameter.requires_grad_(False)
    assert set(movable_parameters(model)) == {
        f"bert.embeddings.{part}_embeddings.weight" for part in ("word", "position", "token_type")
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_parameters_move_as_far_as_they_are_told(dtype):
    """A step shorter than the spacing of bf16 numbers moves the right share of them, so that on average it is not lost
    to rounding; zeros move too, and all come back, without a global random number.
    """
    generator = torch.Generator().manual_seed(11)
    start = (0.05 * torch.randn(1_000_000, generator=generator)).to(dtype)
    start[:1000] = 0
    direction = {"w": torch.randn(1_000_000, generator=generator).to(dtype)}
    params, drawn = {"w": start.clone()}, torch.get_rng_state()
    step = torch.tensor(0.02) / direction["w"].float().norm()
    with movable(params, direction) as move:
        move(step)
        plus = params["w"].double()
        move(-step)
        moved = (plus - params["w"].double()) / (2 * step)
    for part in (slice(None), slice(1000)):
        wanted = direction["w"].double()[part]
        assert (moved[part] @ wanted / (wanted @ wanted)).item() == pytest.approx(1, abs=0.05)
    assert params["w"].equal(start)
    assert torch.get_rng_state().equal(drawn)
