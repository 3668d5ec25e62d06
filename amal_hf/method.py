"""A method: one of each family, and the timing."""

from dataclasses import dataclass, field

from amal_hf.batch_policies.batch_policy import BatchPolicy
from amal_hf.cross_entropy import CrossEntropy
from amal_hf.directions import AdamDirection, Direction
from amal_hf.policies.policy import Policy
from amal_hf.tangents import FiniteDifference, Tangent
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
        for check in (_check_tokens, _check_window, _check_policy, _check_batch_policy, _check_trajectory):
            check(self)


def _check_tokens(method: Method) -> None:
    if method.per_token and (method.policy.needs_ids or method.batch_policy is not None):
        raise ValueError(
            f"Method '{method.name}': per_token=True is for weights that are computed from what a token looks like; "
            f"{type(method.batch_policy or method.policy).__name__} goes by example. Use LossNetwork(), or "
            f"StateNetwork() without memory."
        )


def _check_window(method: Method) -> None:
    if method.window < 1 or (method.window > 1 and method.trajectory is not None):
        raise ValueError(
            f"Method '{method.name}': window must be a whole number from 1, and 1 beside a trajectory, which has "
            f"steps of its own; got {method.window}."
        )
    if method.window > 1 and (method.phase_epochs or method.repeats > 1):
        raise ValueError(
            f"Method '{method.name}': a window of {method.window} steps is judged while training and each step once; "
            f"with phase_epochs={method.phase_epochs} and repeats={method.repeats} leave it at 1."
        )


def _check_policy(method: Method) -> None:
    if method.policy.holds_for_one_step and (method.lookahead or method.direction.needs_product):
        needy = "lookahead" if method.lookahead else f"{type(method.direction).__name__}()"
        raise ValueError(
            f"Method '{method.name}': the weights of {type(method.policy).__name__} are those of one step and are not "
            f"known before its slopes, and {needy} needs them before. Use AdamDirection() or SGDDirection() without "
            f"lookahead."
        )


def _check_batch_policy(method: Method) -> None:
    if method.batch_policy is not None and (method.trajectory is not None or method.phase_epochs):
        raise ValueError(
            f"Method '{method.name}': {type(method.batch_policy).__name__} learns from the step that its batch is "
            f"trained on, by a direction, and neither through a trajectory nor in phases. Leave these out; "
            f"NeumannDirection() looks further than one step."
        )


def _check_trajectory(method: Method) -> None:
    if method.trajectory is not None and (method.policy.holds_for_one_step or method.phase_epochs):
        raise ValueError(
            f"Method '{method.name}': a trajectory teaches the weights of later steps, which neither weights that "
            f"hold for one step ({type(method.policy).__name__}) nor phases between epochs can use. Leave it out."
        )
    if method.restart_every and (method.trajectory is None or method.trajectory.steps != method.restart_every):
        steps = None if method.trajectory is None else method.trajectory.steps
        raise ValueError(
            f"Method '{method.name}': with restart_every={method.restart_every} the trajectory must cover the whole "
            f"short run, Trajectory(steps={method.restart_every}); it has {steps} steps."
        )
