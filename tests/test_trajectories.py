"""The walk back through several student steps gives the derivative of the unrolled training."""

import pytest
import torch
from conftest import exported
from reference import trajectory_slopes_by_unrolling
from torch import nn
from torch.func import functional_call

from amal_hf.adjoints import step_adjoint
from amal_hf.meta import meta_gradient
from amal_hf.policies.policy import Observation
from amal_hf.rewinds import Reversal, Rewind, Snapshots
from amal_hf.shapes import Evaluation
from amal_hf.steps import Step, joined, put, snapshot
from amal_hf.trajectories import ExactProduct, FiniteProduct, Product, Trajectory, check_optimizer, walk_back


EXAMPLES, RATE = 4, 0.05


def rate(number):
    """Falling from step to step, as `Trainer`'s does."""
    return RATE * (1 - number / 30)


class Setting:
    """A small smooth student, different examples and weights at every step, and a meta set."""

    def __init__(self, steps, last=EXAMPLES):
        torch.manual_seed(0)
        self.sizes = [EXAMPLES] * (steps - 1) + [last]
        self.student = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        self.inputs = [torch.randn(size, 3, dtype=torch.float64) for size in self.sizes]
        self.targets = [torch.randn(size, 2, dtype=torch.float64) for size in self.sizes]
        self.weights = [torch.rand(size, 2, dtype=torch.float64) for size in self.sizes]
        self.meta = torch.randn(6, 3, dtype=torch.float64)
        self.params = dict(self.student.named_parameters())

    def losses(self, params, number):
        outputs = functional_call(self.student, dict(params), (self.inputs[number],))
        return torch.stack([(outputs - self.targets[number]).square().sum(1), torch.logsumexp(outputs, 1)], 1)

    def meta_loss(self, params):
        return functional_call(self.student, dict(params), (self.meta,)).square().mean()

    def steps(self):
        return [
            Step(
                lambda number=number, size=size: Evaluation(self.losses(self.params, number), torch.zeros(size, 0)),
                weights,
                Observation(torch.arange(size) + number * EXAMPLES, torch.zeros(size, 0), number / 10),
                [rate(number)],
                size,
            )
            for number, (weights, size) in enumerate(zip(self.weights, self.sizes, strict=True))
        ]

    def train(self, optimizer, trajectory, max_grad_norm=0.0):
        """Take the steps, as a trainer would; gives what the walk back finds."""
        steps = self.steps()
        check_optimizer(optimizer, trajectory)
        for number, step in enumerate(steps):
            optimizer.param_groups[0]["lr"] = rate(number)
            trajectory.rewind.record(optimizer, number, len(steps))
            optimizer.zero_grad()
            step.total()[0].backward()
            if max_grad_norm:
                nn.utils.clip_grad_norm_(self.student.parameters(), max_grad_norm)
            optimizer.step()
        optimizer.zero_grad()
        _, gradient = meta_gradient(self.params, lambda: self.meta_loss(self.params))
        return walk_back(trajectory, optimizer, self.params, steps, gradient, torch.float64, max_grad_norm)


def sgd(momentum=0.0, nesterov=False, decay=0.0):
    """One step of SGD as its documentation has it."""

    def step(params, gradients, state, number):
        buffers = {}
        moved = {}
        for name, p in params.items():
            g = gradients[name] + decay * p
            buffers[name] = momentum * state[name] + g if name in state else g
            moved[name] = p - rate(number) * (g + momentum * buffers[name] if nesterov else buffers[name])
        return moved, buffers

    return step


def adam(decay=0.0, decoupled=True, frozen=False, amsgrad=False):
    """One step of Adam or AdamW; `frozen` treats the second moment as a constant."""

    def step(params, gradients, state, number):
        after, moved = {}, {}
        for name, p in params.items():
            g = gradients[name] if decoupled else gradients[name] + decay * p
            zero = torch.zeros_like(p)
            first = 0.9 * state.get("m" + name, zero) + 0.1 * g
            square = (g.detach() if frozen else g).square()
            second = 0.999 * state.get("v" + name, zero) + 0.001 * square
            after |= {"m" + name: first, "v" + name: second}
            if amsgrad:
                second = torch.maximum(second, state.get("most" + name, zero))
                after["most" + name] = second
            update = first / (1 - 0.9 ** (number + 1)) / ((second / (1 - 0.999 ** (number + 1))).sqrt() + 1e-8)
            moved[name] = p * (1 - rate(number) * decay if decoupled else 1) - rate(number) * update
        return moved, after

    return step


SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIMIZERS = {
    "sgd": (lambda p: SGD(p, lr=RATE), sgd(), True),
    "momentum": (lambda p: SGD(p, lr=RATE, momentum=0.9, weight_decay=0.1), sgd(0.9, decay=0.1), True),
    "nesterov": (lambda p: SGD(p, lr=RATE, momentum=0.9, nesterov=True), sgd(0.9, True), True),
    "adamw": (lambda p: AdamW(p, lr=RATE, weight_decay=0.1), adam(0.1, frozen=True), True),
    "amsgrad": (
        lambda p: AdamW(p, lr=RATE, weight_decay=0.1, amsgrad=True),
        adam(0.1, frozen=True, amsgrad=True),
        True,
    ),
    "adam": (lambda p: Adam(p, lr=RATE, weight_decay=0.1), adam(0.1, False, frozen=True), True),
    "adamw, exact": (lambda p: AdamW(p, lr=RATE, weight_decay=0.1), adam(0.1), False),
    "adam, exact": (lambda p: Adam(p, lr=RATE, weight_decay=0.1), adam(0.1, False), False),
}
every_optimizer = pytest.mark.parametrize(("make", "rule", "frozen"), OPTIMIZERS.values(), ids=OPTIMIZERS)


@pytest.mark.parametrize(
    "kind", [torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam, torch.optim.RAdam, AdamW]
)
def test_parameters_that_nothing_reaches_do_not_matter(kind):
    """Rows of words that no text has: their second moment is 0, and its root has no derivative there."""
    p = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer, g = kind([p], lr=RATE), torch.tensor([0.5, 0.0], dtype=torch.float64)
    ones = {"p": torch.ones_like(p)}
    alone = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    single = kind([alone], lr=RATE)
    both = step_adjoint(optimizer, {"p": p}, {"p": g}, ones, {}, [RATE], False)
    one = step_adjoint(single, {"p": alone}, {"p": g[:1]}, {"p": torch.ones_like(alone)}, {}, [RATE], False)
    for found, expected in ((both[0], one[0]), (both[2], one[2])):
        assert found["p"].isfinite().all()
        torch.testing.assert_close(found["p"][:1], expected["p"])


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@every_optimizer
@pytest.mark.parametrize(("steps", "bound"), [(1, 1e-6), (5, 1e-6), (20, 1e-5)])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_exact_products_equal_unrolling(make, rule, frozen, steps, bound, clip):
    """Slopes of all steps are the derivative of the whole training, to rounding; clipped gradients included."""
    setting = Setting(steps)
    start = {name: p.detach().clone() for name, p in setting.params.items()}
    trajectory = Trajectory(steps, ExactProduct(), Snapshots(), frozen)
    _, slopes = setting.train(make(setting.student.parameters()), trajectory, clip)
    expected = trajectory_slopes_by_unrolling(start, setting.losses, setting.meta_loss, setting.weights, rule, clip)
    assert error(slopes, expected) < bound


def test_slopes_of_a_shorter_step_are_in_the_unit_of_the_others():
    """An epoch ends with fewer examples, and each moves the student further: slopes are in proportion to dV/dw."""
    setting = Setting(3, last=1)
    start = {name: p.detach().clone() for name, p in setting.params.items()}
    optimizer = SGD(setting.student.parameters(), lr=RATE)
    _, slopes = setting.train(optimizer, Trajectory(3, ExactProduct()))
    by_step = trajectory_slopes_by_unrolling(start, setting.losses, setting.meta_loss, setting.weights, sgd())
    of_weights = torch.cat([part / len(part) for part in by_step.split(setting.sizes)])
    assert error(slopes, 3 * of_weights) < 1e-6  # nine examples in three steps


@every_optimizer
def test_finite_products_are_close(make, rule, frozen):
    """Without any second derivative the error stays below a thousandth."""
    setting = Setting(20)
    start = {name: p.detach().clone() for name, p in setting.params.items()}
    _, slopes = setting.train(make(setting.student.parameters()), Trajectory(20, FiniteProduct(), Snapshots(), frozen))
    expected = trajectory_slopes_by_unrolling(start, setting.losses, setting.meta_loss, setting.weights, rule)
    assert error(slopes, expected) < 1e-3


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("every", [1, 3, 20])
def test_ways_back_agree(every, clip):
    """Running SGD backwards, and copies at any distance, find the same steps; of clipped gradients too."""
    results = []
    for rewind in (Reversal(), Snapshots(every)):
        setting = Setting(20)
        optimizer = SGD(setting.student.parameters(), lr=RATE, momentum=0.9, weight_decay=0.01)
        results.append(setting.train(optimizer, Trajectory(20, ExactProduct(), rewind), clip))
    (_, reversed_), (_, copied) = results
    assert error(reversed_, copied) < 1e-6


REWINDS, PRODUCTS = [Snapshots(), Snapshots(2), Reversal()], [FiniteProduct(), ExactProduct()]


def test_none_is_left_out():
    """A new way back, or a new product, has to be put into the tables above."""
    assert exported(Rewind) == {type(rewind).__name__ for rewind in REWINDS}
    assert exported(Product) == {type(product).__name__ for product in PRODUCTS}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("rewind", REWINDS)
def test_the_student_does_not_notice(rewind, product):
    """Parameters, optimizer states, learning rates and gradients are as before, bit for bit."""
    setting = Setting(5)
    optimizer = SGD(setting.student.parameters(), lr=RATE, momentum=0.9)
    trajectory = Trajectory(5, product, rewind)
    setting.train(optimizer, trajectory)
    before = snapshot(optimizer)
    steps = [step._replace(learning_rates=[0.01]) for step in setting.steps()]
    setting.student[0].weight.grad = torch.ones_like(setting.student[0].weight)
    gradient = {name: torch.ones_like(p) for name, p in setting.params.items()}
    walk_back(trajectory, optimizer, setting.params, steps, gradient, torch.float64)
    after = snapshot(optimizer)
    for ours, theirs in zip(
        [*after.params, *(s["momentum_buffer"] for s in after.states)],
        [*before.params, *(s["momentum_buffer"] for s in before.states)],
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    assert optimizer.param_groups[0]["lr"] == rate(4)
    assert torch.equal(setting.student[0].weight.grad, torch.ones_like(setting.student[0].weight))


def test_observations_keep_their_order_and_progress():
    """Slopes belong to the examples that they are of."""
    setting = Setting(3)
    seen, slopes = setting.train(SGD(setting.student.parameters(), lr=RATE), Trajectory(3))
    assert seen.ids.tolist() == list(range(12))
    assert seen.progress.tolist() == pytest.approx([0.0] * 4 + [0.1] * 4 + [0.2] * 4)
    assert slopes.shape == (12, 2)


def test_put_forgets_what_a_later_step_made():
    """Before its first step an optimizer has no state; going back there must leave none."""
    setting = Setting(1)
    optimizer = AdamW(setting.student.parameters(), lr=RATE)
    before = snapshot(optimizer)
    setting.steps()[0].total()[0].backward()
    optimizer.step()
    put(optimizer, before)
    assert not any(optimizer.state.values())


def test_what_cannot_be_walked_back_is_refused():
    """Each with the reason and with what to use."""
    student = nn.Linear(2, 2)
    momentum = SGD(student.parameters(), lr=RATE, momentum=0.9)
    cases = [
        (momentum, Trajectory(51, rewind=Reversal()), "51 steps are more than 50"),
        (SGD(student.parameters(), lr=RATE), Trajectory(rewind=Reversal()), "only torch.optim.SGD with momentum"),
        (AdamW(student.parameters()), Trajectory(rewind=Reversal()), "this is AdamW"),
        (
            SGD(nn.Linear(2, 2).bfloat16().parameters(), lr=RATE, momentum=0.9),
            Trajectory(rewind=Reversal()),
            "fp32 or fp64",
        ),
        *(
            (SGD(student.parameters(), lr=RATE, momentum=0.9, **other), Trajectory(rewind=Reversal()), "not Nesterov")
            for other in ({"nesterov": True}, {"dampening": 0.1})
        ),
        (torch.optim.LBFGS(student.parameters()), Trajectory(), "LBFGS cannot be differentiated"),
        (torch.optim.AdamW(student.parameters(), maximize=True), Trajectory(), "maximize=True"),
    ]
    for optimizer, trajectory, message in cases:
        with pytest.raises(ValueError, match=message):
            check_optimizer(optimizer, trajectory)
    with pytest.raises(ValueError, match="got 0"):
        Trajectory(0)
    with pytest.raises(ValueError, match="got 0"):
        Snapshots(0)
    with pytest.raises(ValueError, match="FiniteProduct: radius must be positive and finite, got -1"):
        FiniteProduct(-1.0)


def test_steps_of_which_examples_lack_losses_are_joined():
    """What is missing stays missing, example by example."""
    masks = [torch.tensor([[True, False], [True, True]]), torch.tensor([[False, True]])]
    steps = [Observation(torch.arange(len(mask)), torch.zeros(len(mask), 0), 0.5, mask) for mask in masks]
    assert torch.equal(joined(steps).present, torch.cat(masks))
