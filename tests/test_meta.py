"""The bilevel step on its own, without a trainer."""

import pytest
import torch
from conftest import tiny_bert
from torch import nn

from amal_hf import ExampleTable, FixedWeights, LabelBlend, LossNetwork, Method, SGDDirection
from amal_hf.meta import Problem, meta_gradient, meta_step, scaled
from amal_hf.policies.policy import Sizes
from amal_hf.shapes import Evaluation
from amal_hf.undisturbed import undisturbed


def linear_problem(**changes):
    """A linear student and two examples that pull either way."""
    student = nn.Linear(2, 1, bias=False).double()
    inputs = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    fields = {
        "module": student,
        "optimizer": torch.optim.SGD(student.parameters(), lr=0.1),
        "learning_rate": 0.1,
        "evaluate": lambda: Evaluation(student(inputs), torch.zeros(2, 3)),
        "ids": torch.tensor([0, 1]),
        "examples": 2,
        "present": None,
        "progress": 0.5,
        "dtype": torch.float64,
    }
    return Problem(**{**fields, **changes})


def first_output(problem):
    """A meta loss that one of the two examples of `linear_problem` lowers."""
    return lambda: problem.module(torch.tensor([[1.0, 0.0]], dtype=torch.float64)).sum()


def table(rate=0.25, **options):
    policy = ExampleTable(learning_rate=rate)
    policy.reset(Sizes(losses=1, teachers=(), examples=2), torch.tensor([1.0]))
    return Method("test", policy, direction=SGDDirection(), **options)


def test_weight_goes_to_what_lowers_the_meta_loss():
    """Slopes are +1 and -1 by hand, scaled to mean magnitude one, so a table at rate 0.25 must move by that."""
    method, problem = table(), linear_problem()
    _, report = meta_step(method, problem, first_output(problem))
    torch.testing.assert_close(method.policy.store.table, torch.tensor([[1.25], [0.75]]))
    assert report.skipped == 0


def test_a_step_does_not_depend_on_the_learning_rate():
    """At a learning rate of 2e-5 the official constant would move nothing."""
    for rate in (1e-6, 10.0):
        method, problem = table(lookahead=False), linear_problem(learning_rate=rate)
        meta_step(method, problem, first_output(problem))
        torch.testing.assert_close(method.policy.store.table, torch.tensor([[1.25], [0.75]]))


def test_lookahead_measures_the_meta_gradient_one_step_ahead():
    """With V = θ², the gradient after the step `θ − lr · mean(w ℓ')` is 2θ' and not 2θ.

    Here the step overshoots and turns its sign.
    """
    signs = []
    for ahead in (False, True):
        problem = linear_problem(learning_rate=3.0)
        student = problem.module
        student.weight.data.fill_(1.0)
        square = linear_problem(
            module=student,
            optimizer=problem.optimizer,
            learning_rate=3.0,
            evaluate=lambda s=student: Evaluation(
                torch.stack([s.weight.sum(), -0.2 * s.weight.sum()])[:, None], torch.zeros(2, 3)
            ),
        )
        method = table(lookahead=ahead)
        meta_step(method, square, lambda s=student: s.weight.square().sum())
        signs.append((method.policy.store.table[0] - 1).sign().item())
        assert torch.equal(student.weight, torch.ones_like(student.weight)), "the student must be put back"
    assert signs == [1.0, -1.0]


def test_the_step_ahead_is_one_of_the_optimizer_with_the_present_weights():
    """Each group at its own rate, each example at its weight: where SGD would take the same student."""

    def student_and_optimizer():
        student = nn.Linear(2, 1).double()
        with torch.no_grad():
            student.weight.copy_(torch.tensor([[0.5, -1.0]]))
            student.bias.fill_(0.2)
        groups = [{"params": [student.weight], "lr": 0.3}, {"params": [student.bias], "lr": 0.03}]
        return student, torch.optim.SGD(groups)

    def losses(student):
        return student(torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)).square()

    method, weights, seen = table(lookahead=True), torch.tensor([[1.5], [0.25]]), {}
    method.policy.store.write(torch.tensor([0, 1]), weights)
    student, optimizer = student_and_optimizer()

    def meta_loss():
        seen.update({name: p.detach().clone() for name, p in student.named_parameters()})
        return student.weight.sum()

    problem = linear_problem(
        module=student,
        optimizer=optimizer,
        learning_rate=0.3,
        evaluate=lambda: Evaluation(losses(student), torch.zeros(2, 3)),
    )
    meta_step(method, problem, meta_loss)
    twin, of_twin = student_and_optimizer()
    (weights * losses(twin)).mean().backward()
    of_twin.step()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(seen[name], parameter.detach())


def test_examples_with_slopes_that_are_not_finite_are_left_alone_and_counted():
    """One overflowing example must neither stop the run nor poison the weights of the others."""
    student = nn.Linear(2, 1, bias=False).double()

    def evaluate():
        values = student(torch.ones(2, 2, dtype=torch.float64))
        return Evaluation(torch.cat([values[:1], values[1:] * float("nan")]), torch.full((2, 7), float("nan")))

    problem = linear_problem(module=student, evaluate=evaluate)
    network = LossNetwork()
    network.reset(Sizes(losses=1, teachers=(), examples=2), torch.tensor([1.0]))
    for method in (table(), Method("test", network, direction=SGDDirection())):
        _, report = meta_step(method, problem, lambda: student.weight.sum())
        assert report.skipped == 1
        assert all(torch.isfinite(value).all() for value in network.parameters())
        if method.policy is not network:
            assert method.policy.store.table[1] == 1.0 != method.policy.store.table[0]


def test_what_changes_batches_is_not_lost_to_losses_that_are_no_numbers():
    """Adam would carry one NaN through all later steps: such an entry stays, the others learn."""
    student, blend, weights = nn.Linear(2, 1, bias=False).double(), LabelBlend(2), FixedWeights()
    blend.reset(2)
    weights.reset(Sizes(losses=1, teachers=(), examples=2), torch.tensor([1.0]))

    def evaluate():
        values = student(torch.ones(2, 2, dtype=torch.float64)) * blend.shares().double()[:1].T
        return Evaluation(values * torch.tensor([[1.0], [float("nan")]]), torch.zeros(2, 0))

    method = Method("test", weights, direction=SGDDirection(), batch_policy=blend)
    meta_step(method, linear_problem(module=student, evaluate=evaluate), lambda: student.weight.sum())
    assert blend.matrix[0, 0] != blend.initial and blend.matrix[0, 1] == blend.initial


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_meta_batch_is_used_as_often_as_asked(repeats):
    """Each time from the same student, as in AMAL's code."""
    method, problem = table(repeats=repeats, lookahead=True), linear_problem()
    meta_step(method, problem, first_output(problem))
    expected = torch.tensor([[1 + 0.25 * repeats], [1 - 0.25 * repeats]])
    torch.testing.assert_close(method.policy.store.table, expected)


def test_scaled_slopes_have_mean_magnitude_one():
    """The unit in which a policy's learning rate is given; all-zero slopes stay zero rather than become NaN."""
    slopes, finite = scaled(torch.tensor([[1.0, -3.0], [float("inf"), 0.0]]))
    torch.testing.assert_close(slopes, torch.tensor([[0.5, -1.5], [0.0, 0.0]]))
    assert finite.tolist() == [True, False]
    assert scaled(torch.zeros(3, 2))[0].abs().sum() == 0


def test_meta_gradient_touches_no_grad():
    """An accumulated gradient must survive, or the student's update would be another one."""
    student = nn.Linear(2, 1)
    student(torch.ones(1, 2)).sum().backward()
    before = student.weight.grad.clone()
    _, gradient = meta_gradient(dict(student.named_parameters()), lambda: student(torch.ones(1, 2)).square().sum())
    assert torch.equal(student.weight.grad, before)
    assert gradient["weight"].abs().sum() > 0


def test_undisturbed_puts_modes_and_random_numbers_back():
    """Also after an error, and for a student of which a part is in evaluation mode."""
    model = tiny_bert().train()
    model.bert.encoder.layer[0].eval()
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    with pytest.raises(MemoryError), undisturbed(model):
        assert not any(m.training for m in model.modules() if isinstance(m, nn.Dropout))
        torch.rand(3)
        raise MemoryError
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
