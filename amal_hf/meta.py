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
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from amal_hf.batch_policies.batch_policy import BatchPolicy, batch_gradient
from amal_hf.directions import AdamDirection, Direction, NeumannDirection, Product
from amal_hf.losses import CrossEntropy
from amal_hf.policies.policy import Observation, Policy, of_unit_magnitude, weights_of
from amal_hf.processes import summed_gradients, total, totals
from amal_hf.shapes import Evaluate, Evaluation, ExampleIds, Features, LossTable, Params
from amal_hf.sharded import Differentiate, cut_again
from amal_hf.tangents import FiniteDifference, Tangent, global_norm, movable, movable_parameters, radius_for
from amal_hf.trajectories import Trajectory


@dataclass(frozen=True)
class Method:
    """How weights are learned: one of each family, and the timing.

    Attributes:
        name: for logs, checkpoints and cards.
        policy: where the weights come from.
        batch_policy: what changes the examples themselves, if anything does.
        direction: which way the meta loss improves.
        tangent: how slopes are measured.
        repeats: updates from one and the same meta batch (AMAL: 5). More than one only makes sense with `lookahead`.
        lookahead: measure the meta gradient one student step ahead, with the present weights, as AMAL does; otherwise
            where the student stands, as in Learning to Reweight.
        phase_epochs: learn in a separate pass over the training set at the start of every so many epochs (AMAL: 10)
            rather than while training; 0 is off.
        interval: optimizer steps from one meta gradient to the next; `None` takes the policy's own times the window,
            or the trajectory's length.
        trajectory: learn through the last B student steps, in place of `direction`, `tangent`, `repeats` and
            `lookahead`. After every B steps as in the paper, or at a longer interval, which costs less.
        window: optimizer steps whose examples are judged along one and the same direction, each just before its step:
            that of the meta gradient and the next ones. Many examples then share one meta gradient, which costs less
            or can be taken over more clean ones; the direction, as large as the student, is kept meanwhile. All steps
            where the interval is shorter.
        objective: what weights are to lower on clean rows: the task loss by default, or `GeneralizedCrossEntropy(q)`,
            at q = 1 the share that the student would get wrong if it drew its answers. No label is smoothed: clean
            ones are meant as they stand.
        per_token: weigh tokens instead of whole examples, where students label or generate them.
        restart_every: optimizer steps after which the student and its optimizer begin again where they began (Teaching
            with Commentaries: whole short runs); 0 is off. The trajectory then covers a whole short run.
        citation: BibTeX of the source.

    Raises:
        TypeError: a class in the place of an object.
        ValueError: parts that do not go together, with what to do instead.
    """

    name: str
    policy: Policy
    direction: Direction = field(default_factory=AdamDirection)
    tangent: Tangent = field(default_factory=FiniteDifference)
    repeats: int = 1
    lookahead: bool = False
    phase_epochs: int = 0
    interval: int | None = None
    trajectory: Trajectory | None = None
    restart_every: int = 0
    batch_policy: BatchPolicy | None = None
    window: int = 1
    objective: CrossEntropy = field(default_factory=CrossEntropy)
    per_token: bool = False
    citation: str = ""

    @property
    def learns(self) -> bool:
        """Whether anything is learned, so that a meta set is needed."""
        return self.policy.learns or (self.batch_policy is not None and self.batch_policy.learns)

    @property
    def usual_interval(self) -> int:
        """Optimizer steps from one meta gradient to the next, where the run's arguments do not say otherwise."""
        if self.trajectory is not None:
            return self.interval or self.trajectory.steps
        return self.interval or self.window * self.policy.interval

    def learns_at(self, progress: float) -> bool:
        """Whether anything is still learned when this share of training is done."""
        return self.policy.learns_at(progress) or (self.batch_policy is not None and self.batch_policy.learns)

    def __post_init__(self) -> None:
        for part in (self.policy, self.direction, self.tangent, self.objective):
            if isinstance(part, type):
                raise TypeError(f"Method '{self.name}': {part.__name__} is a class. Write {part.__name__}().")
        if self.per_token and (self.policy.needs_ids or self.batch_policy is not None):
            raise ValueError(
                f"Method '{self.name}': per_token=True is for weights that are computed from what a token looks like; "
                f"{type(self.batch_policy or self.policy).__name__} goes by example. Use LossNetwork or StateNetwork."
            )
        if self.window < 1 or (self.window > 1 and self.trajectory is not None):
            raise ValueError(
                f"Method '{self.name}': window must be a whole number from 1, and 1 beside a trajectory, which has "
                f"steps of its own; got {self.window}."
            )
        if self.policy.holds_for_one_step and (self.lookahead or isinstance(self.direction, NeumannDirection)):
            raise ValueError(
                f"Method '{self.name}': the weights of {type(self.policy).__name__} are those of one step and are not "
                f"known before its slopes, which lookahead and NeumannDirection() need. Use AdamDirection() or "
                f"SGDDirection() without lookahead."
            )
        if self.batch_policy is not None and (self.trajectory is not None or self.phase_epochs):
            raise ValueError(
                f"Method '{self.name}': {type(self.batch_policy).__name__} learns from the step that its batch is "
                f"trained on, by a direction, and neither through a trajectory nor in phases. Leave these out; "
                f"NeumannDirection() looks further than one step."
            )
        if self.trajectory is not None and (self.policy.holds_for_one_step or self.phase_epochs):
            raise ValueError(
                f"Method '{self.name}': a trajectory teaches the weights of later steps, which neither weights that "
                f"hold for one step ({type(self.policy).__name__}) nor phases between epochs can use. Leave it out."
            )
        if self.window > 1 and (self.phase_epochs or self.repeats > 1):
            raise ValueError(
                f"Method '{self.name}': a window of {self.window} steps is judged while training and each step once; "
                f"with phase_epochs={self.phase_epochs} and repeats={self.repeats} leave it at 1."
            )
        if self.restart_every and (self.trajectory is None or self.trajectory.steps != self.restart_every):
            steps = None if self.trajectory is None else self.trajectory.steps
            raise ValueError(
                f"Method '{self.name}': with restart_every={self.restart_every} the trajectory must cover the whole "
                f"short run, Trajectory(steps={self.restart_every}); it has {steps} steps."
            )


@dataclass(frozen=True)
class Problem:
    """What a bilevel step has to know of the student and of the examples of one optimizer step.

    Attributes:
        module: the part of the student that moves.
        optimizer: the student's; only read.
        learning_rate: of the student's next step, for the lookahead.
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

    def mean() -> Tensor:
        losses = problem.evaluate().losses
        return (weights * losses).sum() / problem.examples

    gradients = totals(batch_gradient(batch_policy, params, direction, mean, problem.dtype))
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


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within the block the student runs without dropout; afterwards modes and random generators are as before."""
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(), differentiable_checkpointing(model):
        cut_again(model)
        model.eval()
        for module, training in modes:
            # Activation checkpointing only acts on a layer in training mode. The flag of the layer itself switches no
            # dropout; its parts hold those.
            if getattr(module, "gradient_checkpointing", False):
                module.training = training
        try:
            yield
        finally:
            cut_again(model)
            for module, training in modes:
                module.training = training


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Within the block the student may run in training mode; running statistics are as before afterwards."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


@contextmanager
def differentiable_checkpointing(model: nn.Module) -> Iterator[None]:
    """Within the block no layer uses reentrant activation checkpointing, which refuses `torch.autograd.grad`.

    The other kind recomputes the same numbers.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "_gradient_checkpointing_func")]
    given = [layer._gradient_checkpointing_func for layer in layers]
    for layer, function in zip(layers, given, strict=True):
        layer._gradient_checkpointing_func = _not_reentrant(function)
    try:
        yield
    finally:
        for layer, function in zip(layers, given, strict=True):
            layer._gradient_checkpointing_func = function


@cache
def _not_reentrant(function: Any) -> Any:
    """One and the same for one function: compiled layers would be compiled anew for another."""
    return partial(function, use_reentrant=False)


def hessian_product(policy: Policy, params: Params, problem: Problem) -> Product:
    """Hessian-vector products of the weighed training loss, by central differences of its gradient.

    Two backward passes a product. Nothing is differentiated twice, so fused attention stays on. The weights are those
    of the student where it stands, and are held fixed.
    """
    weights: list[LossTable] = []

    def product(vector: Params) -> Params:
        if not weights:
            with torch.no_grad():
                weights.append(_present_weights(policy, problem, problem.evaluate()))
        step = radius_for(problem.dtype) / global_norm(vector).clamp(min=torch.finfo(torch.float32).tiny)
        with movable(params, vector) as move:
            move(step)
            plus = _training_gradient(params, problem, weights[0])
            move(-step)
            minus = _training_gradient(params, problem, weights[0])
        return {name: (plus[name] - minus[name]) / (2 * step) for name in vector}

    return product


def _present_weights(policy: Policy, problem: Problem, evaluation: Evaluation) -> LossTable:
    return weights_of(policy, _observation(problem, evaluation.features))


def _observation(problem: Problem, features: Features) -> Observation:
    return Observation(problem.ids, torch.nan_to_num(features), problem.progress, problem.present)


def _training_gradient(params: Params, problem: Problem, weights: LossTable) -> Params:
    """Gradient of the training loss at the present parameters for given weights; zero where it does not reach."""

    def mean() -> Tensor:
        losses = problem.evaluate().losses
        return (weights * losses).sum() / problem.examples

    return meta_gradient(params, mean, problem.differentiate)[1]


@contextmanager
def _one_step_ahead(policy: Policy, params: Params, problem: Problem) -> Iterator[None]:
    """Within the block the parameters stand where one gradient step on the weighed losses would take them."""
    with torch.enable_grad():
        evaluation = problem.evaluate()
        weights = _present_weights(policy, problem, evaluation)
        mean = (weights * evaluation.losses).sum() / problem.examples
        gradient = problem.differentiate(mean, params)
    with movable(params, gradient) as move:
        move(-torch.tensor(problem.learning_rate, device=mean.device))
        yield
