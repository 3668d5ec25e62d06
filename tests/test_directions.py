"""The Neumann direction is the truncated series it claims to be; the Hessian-vector product behind it is right.

Adam's direction reads the second moment of every optimizer that keeps one, and says so where none can be read.
"""

import logging

import pytest
import torch
from conftest import exported, tiny_bert, toy_rows
from transformers.optimization import Adafactor

from amal_hf import AdamDirection, Direction, FixedWeights, NeumannDirection, SGDDirection
from amal_hf.directions import adam_denominators
from amal_hf.meta import Problem, hessian_product
from amal_hf.policies.policy import Sizes
from amal_hf.shapes import Evaluation


@pytest.fixture
def quadratic():
    """A gradient and a positive definite Hessian with eigenvalues from 0.5 to 2."""
    torch.manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    hessian = basis @ torch.diag(torch.linspace(0.5, 2, 5, dtype=torch.float64)) @ basis.T
    return torch.randn(5, dtype=torch.float64), hessian


def neumann(quadratic, terms, scale=0.4):
    gradient, hessian = quadratic
    params = {"x": torch.zeros(5, requires_grad=True)}
    direction = NeumannDirection(terms, scale)
    along = direction(
        {"x": gradient}, params, torch.optim.SGD([params["x"]], lr=0.4), lambda u: {"x": hessian @ u["x"]}
    )
    return along["x"]


@pytest.mark.parametrize("scale", [0.4, None])
@pytest.mark.parametrize("terms", [0, 1, 5])
def test_neumann_is_the_truncated_series(quadratic, terms, scale):
    """J terms after the first, each one power more of I − αH; α is the learning rate if none is given."""
    gradient, hessian = quadratic
    factor = torch.eye(5, dtype=torch.float64) - 0.4 * hessian
    series = 0.4 * sum(torch.linalg.matrix_power(factor, j) for j in range(terms + 1)) @ gradient
    torch.testing.assert_close(neumann(quadratic, terms, scale), series, rtol=1e-12, atol=1e-12)


def test_neumann_tends_to_the_inverse(quadratic):
    """On a quadratic the series ends at H⁻¹∇V, and more terms come closer."""
    gradient, hessian = quadratic
    inverse = torch.linalg.solve(hessian, gradient)
    errors = [(neumann(quadratic, terms) - inverse).norm() / inverse.norm() for terms in (1, 10, 200)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-12


@pytest.mark.parametrize("scale", [0.4, None])
@pytest.mark.parametrize("terms", [0, 3, 400])
def test_neumann_has_a_scale_for_each_group(quadratic, terms, scale):
    """In proportion to the learning rates; what the optimizer was not given, or moves at rate 0, has no direction.

    Many terms tend to the inverse of the part that is moved.
    """
    gradient, hessian = quadratic
    params = {name: torch.zeros(1, dtype=torch.float64, requires_grad=True) for name in "abcde"}
    rates = {"a": 0.4, "b": 0.1, "c": 0.2, "d": 0.0}
    groups = [{"params": [params[name]], "lr": rate} for name, rate in rates.items()]

    def product(u):
        return dict(zip(params, (hessian @ torch.cat([*u.values()])).split(1), strict=True))

    optimizer = torch.optim.SGD(groups, lr=0.1)
    found = NeumannDirection(terms, scale)(
        dict(zip(params, gradient.split(1), strict=True)), params, optimizer, product
    )
    alpha = torch.diag(torch.tensor([*rates.values(), 0.0], dtype=torch.float64))
    factor = torch.eye(5, dtype=torch.float64) - alpha @ hessian
    series = sum(torch.linalg.matrix_power(factor, j) for j in range(terms + 1)) @ alpha @ gradient
    torch.testing.assert_close(torch.cat([*found.values()]), series, rtol=1e-12, atol=1e-12)
    if terms == 400:
        torch.testing.assert_close(series[:3], torch.linalg.solve(hessian[:3, :3], gradient[:3]))


DIRECTIONS = [SGDDirection(), AdamDirection(), NeumannDirection()]


def test_none_is_left_out():
    """A new direction has to be put into the table above."""
    assert exported(Direction) == {type(direction).__name__ for direction in DIRECTIONS}


@pytest.mark.parametrize("direction", [*DIRECTIONS, NeumannDirection(terms=0)], ids=lambda d: type(d).__name__)
def test_a_direction_says_whether_it_asks_for_products(quadratic, direction):
    """A product costs two backward passes, which nobody else must pay; and where it is asked for, weights are needed
    that some policies only have afterwards.
    """
    gradient, hessian = quadratic
    parameter, asked = torch.zeros(5, requires_grad=True), []
    optimizer = torch.optim.SGD([parameter], lr=1.0)

    def product(vector):
        asked.append(vector)
        return {"x": hessian @ vector["x"]}

    found = direction({"x": gradient}, {"x": parameter}, optimizer, product)["x"]
    assert len(asked) == getattr(direction, "terms", 0) and (direction.needs_product or not asked)
    assert asked or torch.equal(found, gradient)


class AdamW8bit(torch.optim.Optimizer):
    """Keeps moments as 8-bit optimizers do: whole numbers, and where they stand for what."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8})

    def step(self):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {"step": 1, "state2": torch.zeros(parameter.shape, dtype=torch.uint8)}


class AdamWOfBytes(AdamW8bit):
    """Keeps them under torch's own name: as large as the parameter, and no numbers to divide by."""

    def step(self):
        for parameter in self.param_groups[0]["params"]:
            moment = torch.full(parameter.shape, 100, dtype=torch.uint8)
            self.state[parameter] = {"step": 1, "exp_avg_sq": moment}


class AdamWScheduleFree(AdamW8bit):
    """Keeps a second moment for each parameter, and counts its steps in the group."""

    def step(self):
        self.param_groups[0]["k"] = 3
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {"z": parameter, "exp_avg_sq": torch.full_like(parameter, 4.0)}


def adafactor(params):
    """Has a moment for each number of a vector, and for rows and columns of a matrix only."""
    return Adafactor(params, lr=1e-3, relative_step=False, scale_parameter=False)


def directions_of(make):
    """The direction for a gradient of ones before and after the first optimizer step."""
    params = {"matrix": torch.zeros(3, 2, requires_grad=True), "vector": torch.zeros(3, requires_grad=True)}
    optimizer = make(list(params.values()))
    ones = {name: torch.ones_like(p) for name, p in params.items()}
    for _ in range(2):
        yield AdamDirection()(ones, params, optimizer, None)
        for name, parameter in params.items():
            parameter.grad = ones[name].clone()
        optimizer.step()


@pytest.mark.parametrize("make", [AdamW8bit, AdamWOfBytes, adafactor])
def test_without_a_readable_second_moment_the_gradient_is_used_and_that_is_said_once(caplog, make):
    """8-bit and factored moments must neither fail nor leave parameters out in silence; SGD, where the gradient is
    right, and a run that has not begun are told nothing.
    """
    with caplog.at_level(logging.WARNING):
        for make_one in (torch.optim.SGD, make):
            before, after = directions_of(make_one)
            assert all(torch.equal(g, torch.ones_like(g)) for g in [*before.values(), *after.values()])
        assert len(list(directions_of(make))) == 2
    (notice,) = [record.getMessage() for record in caplog.records if "second moment" in record.getMessage()]
    assert "SGDDirection" in notice


def test_a_schedule_free_second_moment_is_read():
    """Its steps are counted elsewhere; the direction divides by √(4 / (1 − 0.999³))."""
    _, after = directions_of(AdamWScheduleFree)
    for direction in after.values():
        torch.testing.assert_close(direction, torch.full_like(direction, ((1 - 0.999**3) / 4) ** 0.5))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hessian_product_is_that_of_double_backward(attention):
    """Central differences of gradients, fused attention on or off, against exact second derivatives in float64."""
    exact_model = tiny_bert(attn_implementation="eager").double().eval()
    model = tiny_bert(attn_implementation=attention).double().eval()
    batch = toy_rows(6).with_format("torch")[:]
    params = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(1)
    vector = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in params.items()}

    def losses(student):
        logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")[:, None]

    policy = FixedWeights()
    policy.reset(Sizes(1, (), 6), torch.tensor([0.7]))
    problem = Problem(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        learning_rate=0.1,
        evaluate=lambda: Evaluation(losses(model), torch.zeros(6, 0)),
        ids=torch.arange(6),
        examples=6,
        present=None,
        progress=0.0,
        dtype=torch.float64,
    )
    before = {name: p.clone() for name, p in params.items()}
    measured = hessian_product(policy, params, problem)(vector)
    assert all(torch.equal(p, before[name]) for name, p in params.items()), "parameters come back bit for bit"

    exact = dict(exact_model.named_parameters())
    gradient = torch.autograd.grad(0.7 * losses(exact_model).mean(), list(exact.values()), create_graph=True)
    along = sum((g * v).sum() for g, v in zip(gradient, vector.values(), strict=True))
    expected = torch.autograd.grad(along, list(exact.values()))
    error = sum((measured[n] - e).square().sum() for n, e in zip(exact, expected, strict=True)).sqrt()
    norm = sum(e.square().sum() for e in expected).sqrt()
    assert norm > 1e-3, "a vacuous comparison"
    assert error / norm < 1e-6


@pytest.mark.parametrize("direction", [SGDDirection(), AdamDirection()])
def test_groups_move_at_their_own_rates(direction):
    """A head at ten times the rate of the body decides ten times as much; a group at rate 0, and what is in no group,
    nothing: the direction is what a step of the optimizer does. Of one rate, or none at all, nothing changes.
    """
    params = {name: torch.ones(2, requires_grad=True) for name in ("head", "body", "still")}
    ones = {name: torch.ones(2) for name in (*params, "apart")}
    apart = {"apart": torch.ones(2, requires_grad=True)}

    def along(*rates):
        groups = [{"params": [p], "lr": rate} for p, rate in zip(params.values(), rates, strict=True)]
        kind = torch.optim.AdamW if isinstance(direction, AdamDirection) else torch.optim.SGD
        optimizer = kind(groups, lr=0.1, weight_decay=0.0)
        for number, p in enumerate(params.values()):
            p.grad = torch.full((2,), 1.0 + number)
        before = [p.detach().clone() for p in params.values()]
        optimizer.step()
        moved = [(old - p.detach()) / p.grad for old, p in zip(before, params.values(), strict=True)]
        return direction(ones, {**params, **apart}, optimizer, None), dict(zip(params, moved, strict=True))

    found, moved = along(0.1, 0.01, 0.0)
    assert not found["apart"].any()
    for name in params:
        torch.testing.assert_close(found[name] * 0.1, moved[name], rtol=1e-3, atol=1e-6)
    same, none = along(0.1, 0.1, 0.1)[0], along(0.0, 0.0, 0.0)[0]
    assert all(torch.equal(same[name], none[name]) for name in params)


@pytest.mark.parametrize("direction", [SGDDirection(), AdamDirection(), NeumannDirection(0, 1.0)])
@pytest.mark.parametrize("rate", [0.1, 0.0])
def test_what_the_optimizer_was_not_given_has_no_direction(direction, rate):
    """Where it trains the head alone, at one rate or at none yet, slopes are those of the head, at its first step too.

    One that moves copies of the parameters knows none of them, and moves all.
    """
    params = {name: torch.ones(2, requires_grad=True) for name in ("head", "body")}
    ones = {name: torch.ones(2) for name in params}
    found = direction(ones, params, torch.optim.SGD([params["head"]], lr=rate), None)
    assert torch.equal(found["head"], ones["head"]) and not found["body"].any()
    copies = torch.optim.SGD([p.detach().clone() for p in params.values()], lr=rate)
    assert all(torch.equal(part, ones[name]) for name, part in direction(ones, params, copies, None).items())


def test_bad_input():
    """A series of negative length or a scale of zero says what was expected."""
    with pytest.raises(ValueError, match="terms"):
        NeumannDirection(terms=-1)
    with pytest.raises(ValueError, match="scale"):
        NeumannDirection(scale=0.0)


def test_a_parameter_that_is_never_moved_has_no_direction():
    """What AdamW leaves alone, as a frozen layer, it will not move along the meta gradient either."""
    params = {name: torch.ones(2, requires_grad=True) for name in "ab"}
    optimizer = torch.optim.AdamW([params["a"]], lr=0.1)
    params["a"].sum().backward()
    optimizer.step()
    direction = AdamDirection()({name: torch.ones(2) for name in params}, params, optimizer, None)
    assert (direction["a"] > 0).all() and (direction["b"] == 0).all()


def test_amsgrad_divides_by_the_largest_second_moment():
    """Which the gradients of late steps no longer show."""
    parameter = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.AdamW([parameter], lr=0.0, weight_decay=0.0, amsgrad=True)
    for gradient in (1.0, *[0.0] * 50):
        parameter.grad = torch.full((2,), gradient)
        optimizer.step()
    state = optimizer.state[parameter]
    assert (state["max_exp_avg_sq"] > state["exp_avg_sq"]).all()
    scale = (state["max_exp_avg_sq"] / (1 - 0.999**51)).sqrt() + 1e-8
    found = AdamDirection()({"a": torch.ones(2)}, {"a": parameter}, optimizer, None)["a"]
    torch.testing.assert_close(found / found[0], torch.ones(2))
    torch.testing.assert_close(adam_denominators({"a": parameter}, optimizer)["a"], scale)
