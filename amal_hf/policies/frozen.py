"""A policy that was learned before, applied to a new student as it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amal_hf.policies.policy import Observation, Policy, Signals, Sizes
from amal_hf.shapes import Features, LossTable


def save_policy(policy: Policy, file: str | Path) -> None:
    """Write what a policy has learned as safetensors, without the state of its own optimizer.

    Args:
        policy: that of a run, `trainer.mixture.policy`.
        file: `.safetensors`; folders that it lies in are made.

    Raises:
        ValueError: a table that is a file or of a stream, or a policy that reads clean rows.
    """
    _check_reusable(policy)
    rows = policy.rows()
    if rows is not None and rows.size is None:
        raise ValueError(
            f"save_policy: the rows of {type(policy).__name__} go by the ids of a stream, which another run does not "
            f"have. Save trainer.example_weights() instead."
        )
    if rows is not None and not rows.in_memory:
        raise ValueError(
            f"save_policy: the rows of {type(policy).__name__} are a file. Save trainer.example_weights() instead."
        )
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors_of(policy), str(file), metadata={"policy": policy.describe()})


class Frozen(Policy):
    """Weights of a policy that no longer learns. Needs no meta set.

    Args:
        policy: made as the one that was saved, as `StateNetwork(layers=(-1,))`.
        saved: the file that `save_policy` wrote, or the tensors themselves.
        losses: names of the losses that it was learned with, in their order; not compared by default.

    Raises:
        ValueError: a policy that reads clean rows: a new run has none, and what it would read instead says nothing.

    Example:
        >>> save_policy(trainer.mixture.policy, "states.safetensors")            # doctest: +SKIP
        >>> Method("reused", Frozen(StateNetwork(), "states.safetensors"))       # doctest: +SKIP
    """

    learns = False

    def __init__(
        self, policy: Policy, saved: str | Path | Mapping[str, Tensor], losses: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        _check_reusable(policy)
        self.losses = None if losses is None else tuple(losses)
        self.policy = policy
        self.saved = saved if isinstance(saved, Mapping) else Path(saved)
        self.needs_ids = policy.needs_ids
        self.needs_hidden_states = policy.needs_hidden_states
        self.needs_source_gain = policy.needs_source_gain
        self.needs_one_class = policy.needs_one_class

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """Take over what was saved.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no safetensors file, or was learned for other losses, labels or hidden sizes.
        """
        if self.losses is not None and sizes.names and self.losses != sizes.names:
            raise ValueError(
                f"Frozen: the weights were learned for the losses {list(self.losses)}, in this order, and the run has "
                f"{list(sizes.names)}. Give it the same losses, under the same names."
            )
        self.policy.reset(sizes, initial)
        saved = self._read(self.saved) if isinstance(self.saved, Path) else self.saved
        what = self.saved if isinstance(self.saved, Path) else type(self.policy).__name__
        advice = "Losses, labels and hidden sizes must be those of the student that it was learned with."
        fill(self.policy, saved, f"Frozen: {what} does not fit this student.", advice)

    def _read(self, file: Path) -> dict[str, Tensor]:
        if not file.is_file():
            raise FileNotFoundError(f"Frozen: there is no file {file}. Write one with save_policy.")
        try:
            with safe_open(file, "pt") as opened:
                kind = (opened.metadata() or {}).get("policy")
            saved = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"Frozen: {file} is not a safetensors file: {error}.") from error
        if kind != self.policy.describe():
            raise ValueError(
                f"Frozen: {file} holds another policy ({kind}) than the one to be used ({self.policy.describe()}). "
                f"Make it with the same arguments."
            )
        return saved

    def observe(self, signals: Signals) -> Features:
        """As the policy does."""
        return self.policy.observe(signals)

    def weights(self, observation: Observation) -> LossTable:
        """As the policy gives them."""
        return self.policy.weights(observation)


def _check_reusable(policy: Policy) -> None:
    if policy.reads_clean_states:
        kind = type(policy).__name__
        raise ValueError(
            f"{kind}: it reads what the clean rows of its own run say of an example, and cannot be used again without "
            f"them. Learn it without: {kind}(probe=False)."
        )


def fill(policy: nn.Module, saved: Mapping[str, Tensor], misfit: str, advice: str) -> None:
    """Put what was saved into a policy of the same kind.

    Args:
        policy: made and reset as the one that was saved.
        saved: tensors by name.
        misfit, advice: what is said where shapes differ, and what to do about it.

    Raises:
        ValueError: shapes differ.
    """
    own = tensors_of(policy)
    kept, needed = ({name: tuple(value.shape) for name, value in some.items()} for some in (saved, own))
    differing = [name for name in sorted(kept | needed) if kept.get(name) != needed.get(name)]
    if differing:
        shapes = {name: (kept.get(name), needed.get(name)) for name in differing}
        raise ValueError(f"{misfit} Saved and needed shapes: {shapes}. {advice}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(saved[name])


def tensors_of(policy: nn.Module) -> dict[str, Tensor]:
    """What a policy has learned, without the state of its own optimizer."""
    return {name: value for name, value in policy.state_dict().items() if isinstance(value, Tensor)}
