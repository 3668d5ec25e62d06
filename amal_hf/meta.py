"""The bilevel step: how the weights learn from the clean meta set.

1. Meta gradient `g = ∇V(θ)` on a batch of the meta set (optionally at `θ̂`, one student step ahead).
2. Direction `v = P g`, the way the student's optimizer would really go.
3. Slopes `s_ik = ⟨v, ∇ℓ_ik⟩` of all losses of the examples of this optimizer step.
4. The policy moves weight to losses with positive slope: for a weight `dV/dw_ik = −(lr/B) s_ik`, for a policy's
   parameters `dV/dφ = −∇φ (1/B) Σ_ik w_ik(φ) s_ik`. Slopes are first scaled to mean magnitude one, so that a step does
   not depend on the learning rate or the batch size.

The student must not notice: parameters come back bit for bit, no `.grad` is touched, no global random number is drawn,
every module's mode is put back.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from amal_hf.batch_policies.batch_policy import BatchPolicy, batch_gradient
from amal_hf.central_differences import both_sides, movable
from amal_hf.directions import HessianProduct, at_their_rates
from amal_hf.method import Method
from amal_hf.policies.policy import Observation, Policy, of_unit_magnitude, weights_of
from amal_hf.processes import summed_gradients, total, totals
from amal_hf.shapes import Evaluate, Evaluation, ExampleIds, Features, LossTable, Params
from amal_hf.sharded import Differentiate
from amal_hf.tangents import movable_parameters


@dataclass(frozen=True)
class Problem:
    """What a bilevel step has to know of the student and of the examples of one optimizer step.

    Attributes:
        module: the part of the student that moves.
        optimizer: the student's; only read.
        learning_rate: of the student's next step, the largest of all groups; for the lookahead.
        evaluate: all losses of this process's examples of this optimizer step.
        ids: which examples these are.
        examples: how many the step has over all processes; fewer than rows where the rows are tokens.
        present: which losses they have; `None` for all.
        progress: share of training done.
        dtype: precision of the student's forward pass.
        differentiate: gives gradients of what all processes' parts add up to.
    """

    module: nn.Module
    optimizer: Optimizer
    learning_rate: float
    evaluate: Evaluate
    ids: ExampleIds
    examples: Tensor | int
    present: Tensor | None
    progress: float
    dtype: torch.dtype
    differentiate: Differentiate = summed_gradients

    def mean(self, weights: LossTable) -> Tensor:
        """This process's part of the training loss, for given weights."""
        return (weights * self.evaluate().losses).sum() / self.examples


class MetaReport(NamedTuple):
    """What a bilevel step has to say; scalars, on the device.

    Attributes:
        meta_loss: `V`; `None` where a direction was used that had been measured before.
        skipped: examples left out for slopes that are not finite.
    """

    meta_loss: Tensor | None
    skipped: Tensor


MetaLoss: TypeAlias = Callable[[], Tensor]
"""This process's part of the scalar `V` on the meta batch, with a graph; the parts of all add up."""


def meta_step(method: Method, problem: Problem, meta_loss: MetaLoss) -> tuple[Params, MetaReport]:
    """Update the policies once, or `method.repeats` times from the same two batches; also gives the last direction."""
    for _ in range(method.repeats):
        value, direction = measure_direction(method, problem, meta_loss)
        skipped = judge(method, problem, direction)
    return direction, MetaReport(value, skipped)


def measure_direction(method: Method, problem: Problem, meta_loss: MetaLoss) -> tuple[Tensor, Params]:
    """`V`, and the way in which the student's optimizer would go to lower it."""
    params = movable_parameters(problem.module)
    with _one_step_ahead(method.policy, params, problem) if method.lookahead else nullcontext():
        value, gradient = meta_gradient(params, meta_loss, problem.differentiate)
    product = hessian_product(method.policy, params, problem)
    return value, method.direction(gradient, params, problem.optimizer, product)


def judge(method: Method, problem: Problem, direction: Params) -> Tensor:
    """Update the policies from the examples' slopes; gives the number of those without finite ones."""
    skipped = torch.zeros((), dtype=torch.long)
    if method.policy.learns:
        skipped = _learn_weights(method, direction, problem)
    if method.batch_policy is not None and method.batch_policy.learns:
        params = movable_parameters(problem.module)
        _learn_changes(method.batch_policy, method.policy, params, direction, problem)
    return skipped


def _learn_weights(method: Method, direction: Params, problem: Problem) -> Tensor:
    """Slopes to the policy; gives the number of examples without finite ones."""
    measured = method.tangent(problem.module, direction, problem.evaluate, problem.dtype)
    slopes, finite = scaled(measured.slopes)
    method.policy.update(_observation(problem, measured.features), slopes)
    return total((~finite).sum())


def _learn_changes(
    batch_policy: BatchPolicy, policy: Policy, params: Params, direction: Params, problem: Problem
) -> None:
    """The gradient of what acts inside the losses, for the weights of the student where it stands."""
    with torch.no_grad():
        weights = _present_weights(policy, problem, problem.evaluate())

    gradients = totals(batch_gradient(batch_policy, params, direction, lambda: problem.mean(weights), problem.dtype))
    # Not asked whether any is: that would wait for the device.
    batch_policy.update([torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0) for g in gradients])


def meta_gradient(
    params: Params, meta_loss: MetaLoss, differentiate: Differentiate = summed_gradients
) -> tuple[Tensor, Params]:
    """`V` and `∇V` of what all processes' parts add up to; no `.grad` changes.

    Zero for parameters that `V` does not depend on.
    """
    with torch.enable_grad():
        value = meta_loss()
        gradient = differentiate(value, params)
    return total(value.detach()), gradient


def scaled(slopes: LossTable) -> tuple[LossTable, Tensor]:
    """Slopes `of_unit_magnitude`, and which examples are finite, `(B,)`; the others get 0."""
    finite = torch.isfinite(slopes).all(1)
    return of_unit_magnitude(torch.where(finite[:, None], slopes, 0.0)), finite


def hessian_product(policy: Policy, params: Params, problem: Problem) -> HessianProduct:
    """Hessian-vector products of the weighed training loss, by central differences of its gradient.

    Two backward passes a product. Nothing is differentiated twice, so fused attention stays on. The weights are those
    of the student where it stands, and are held fixed.
    """
    weights: list[LossTable] = []

    def product(vector: Params) -> Params:
        if not weights:
            with torch.no_grad():
                weights.append(_present_weights(policy, problem, problem.evaluate()))
        plus, minus, distance = both_sides(
            params, vector, lambda: _training_gradient(params, problem, weights[0]), problem.dtype
        )
        return {name: (plus[name] - minus[name]) / distance for name in vector}

    return product


def _present_weights(policy: Policy, problem: Problem, evaluation: Evaluation) -> LossTable:
    return weights_of(policy, _observation(problem, evaluation.features))


def _observation(problem: Problem, features: Features) -> Observation:
    return Observation(problem.ids, torch.nan_to_num(features), problem.progress, problem.present)


def _training_gradient(params: Params, problem: Problem, weights: LossTable) -> Params:
    """Gradient of the training loss at the present parameters for given weights; zero where it does not reach."""
    return meta_gradient(params, lambda: problem.mean(weights), problem.differentiate)[1]


@contextmanager
def _one_step_ahead(policy: Policy, params: Params, problem: Problem) -> Iterator[None]:
    """Within the block the parameters stand where one gradient step on the weighed losses would take them."""
    with torch.enable_grad():
        evaluation = problem.evaluate()
        weights = _present_weights(policy, problem, evaluation)
        mean = (weights * evaluation.losses).sum() / problem.examples
        gradient = at_their_rates(problem.differentiate(mean, params), params, problem.optimizer)
    with movable(params, gradient) as move:
        move(-torch.full((), problem.learning_rate, device=mean.device))
        yield
