"""Each loss as far as a teacher believes what it asks for: a rule of thumb for the votes of rules."""

from collections.abc import Sequence

import torch
from torch import Tensor

from amal_hf.policies.policy import Observation, Policy, Signals, Sizes, among_present, sharing
from amal_hf.shapes import Features, LossTable
from amal_hf.top_logits import TopLogits


class TeacherBelief(Policy):
    """The initial mixture, each loss times `exp(−loss)` of the teacher: of a vote the probability that it gives it.

    Trusted labels count in full, and so does what a teacher cannot be asked, as itself. The weights of an example keep
    the sum of the mixture, over what it has. Nothing is learned, and no meta set is needed.

    Args:
        trusted: names of the losses that are right whatever the teacher says. By default the labels, which are few
            and clean where rules vote.

    Raises:
        TypeError: one name in the place of several.
        ValueError: when a trainer is made, other than one teacher, or a name that no loss has.

    References: none; measured in `benchmarks/README.md`, where rules vote.
    """

    learns = False
    mixture: Tensor
    doubted: Tensor

    def __init__(self, trusted: Sequence[str] = ("labels",)) -> None:
        super().__init__()
        if isinstance(trusted, str):
            raise TypeError(f"TeacherBelief: trusted must be several names, got {trusted!r}. Write ({trusted!r},).")
        self.trusted = tuple(trusted)

    def reset(self, sizes: Sizes, initial: Tensor) -> None:
        """Take over the mixture.

        Raises:
            ValueError: losses it is not for.
        """
        if len(sizes.teachers) != 1:
            raise ValueError(
                f"TeacherBelief: needs one teacher to ask about the other losses, got {len(sizes.teachers)} among "
                f"{list(sizes.names)}. Add a Distillation(teacher), or leave all but one out."
            )
        # Where all rows are unlabelled there may be no loss of the labels.
        unknown = sorted(set(self.trusted) - {*sizes.names, "labels"})
        if unknown:
            raise ValueError(f"TeacherBelief: trusted {unknown} are not among the losses {list(sizes.names)}.")
        doubted = torch.tensor([name not in self.trusted for name in sizes.names])
        self.register_buffer("doubted", doubted, persistent=False)
        self.register_buffer("mixture", initial.clone())

    def observe(self, signals: Signals) -> Features:
        """What each loss would cost the teacher, `(B, K)`.

        Raises:
            ValueError: only the largest logits of the teacher are known.
        """
        (teacher,) = signals.teacher_logits
        if isinstance(teacher, TopLogits):
            raise ValueError(
                "TeacherBelief: a teacher of which only the largest logits are kept does not say how far it believes "
                "another class. Leave top_k out of its Distillation."
            )
        return signals.ask(teacher)

    def weights(self, observation: Observation) -> LossTable:
        """`(B, K)`; none where an example has no loss."""
        self.to(observation.features.device)  # once: a GPU would be waited for at every step
        mixture, costs = among_present(self.mixture, observation), observation.features * self.doubted
        # Against the least: where a teacher finds everything next to impossible, nothing would be left to compare.
        least = costs.masked_fill(mixture == 0, torch.inf).amin(1, keepdim=True).nan_to_num(posinf=0.0)
        return sharing(mixture * (least - costs).exp().clamp(max=1), mixture)

    def describe(self) -> str:
        """And what is trusted."""
        return f"TeacherBelief, {', '.join(self.trusted) or 'nothing'} trusted"
