"""CAGE: a graphical model of which rules fire for which class.

    P(y, m, s)  ∝  Π_j exp(θ_jy m_j) · Beta(s_j; r_jy e^{π_jy}, (1 − r_jy) e^{π_jy})^{m_j}      j: rules, m_j: j fired

Every rule votes for one class k_j; `s_j` is how sure it is, where rules say so. The Beta densities integrate to one,
so the normaliser is `Σ_y Π_j (1 + e^{θ_jy})`, in log-space, as with hundreds of rules the product overflows fp32.

References:
    Chatterjee et al. 2020, "Data Programming using Continuous and Quality-Guided Labeling Functions",
    arXiv:1911.09860; inside SPEAR's joint objective, Maheshwari et al. 2021, arXiv:2008.09887.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Beta

from amal_hf.shapes import ABSTAIN


class Cage(nn.Module):
    """The model, over m rules and C classes.

    Args:
        rule_classes: k_j, the class that each rule votes for.
        classes: C.
        quality: q, how often a rule is taken to be right before anything is known; 0.9 in SPEAR's code.
        score_quality: expected score of a rule on its own class; one minus it on others. 0.85 in SPEAR's code.

    Raises:
        ValueError: a class outside the range, or a quality outside (0, 1).

    References:
        Chatterjee et al. 2020, arXiv:1911.09860.
    """

    rule_classes: Tensor

    def __init__(
        self, rule_classes: Sequence[int], classes: int, quality: float = 0.9, score_quality: float = 0.85
    ) -> None:
        super().__init__()
        wrong = [k for k in rule_classes if not 0 <= k < classes]
        if not len(rule_classes) or wrong:
            raise ValueError(
                f"Cage: every rule votes for one class from 0 to {classes - 1}; got {list(rule_classes)}."
            )
        if not 0 < quality < 1 or not 0 < score_quality < 1:
            raise ValueError(f"Cage: qualities must lie between 0 and 1, got {quality} and {score_quality}.")
        self.quality = quality
        self.score_quality = score_quality
        self.register_buffer("rule_classes", torch.tensor(list(rule_classes)))
        self.theta = nn.Parameter(torch.ones(classes, len(rule_classes)))
        self.pi = nn.Parameter(torch.ones(classes, len(rule_classes)))

    @torch.no_grad()
    def reset(self) -> None:
        """Forget everything."""
        self.theta.fill_(1.0)
        self.pi.fill_(1.0)

    def fired(self, votes: Tensor) -> Tensor:
        """`(B, m)` of bool from votes.

        Raises:
            ValueError: a rule voted for another class than its own.
        """
        fired = votes != ABSTAIN
        if bool((fired & (votes != self.rule_classes)).any()):
            raise ValueError(
                f"Cage: every rule votes for one class, {self.rule_classes.tolist()}; some voted otherwise. Make one "
                f"rule for each class that a rule votes for: split_rules()."
            )
        return fired

    def log_joint(self, fired: Tensor, scores: Tensor | None = None) -> Tensor:
        """`log P(y, m, s)` for every class, `(B, C)`.

        Args:
            fired: `(B, m)`, bool.
            scores: `(B, m)` in (0, 1), how sure the rules are; `None` if they do not say.
        """
        counted = fired.to(self.theta)
        total = counted @ self.theta.T
        if scores is not None:
            own = F.one_hot(self.rule_classes, len(self.theta)).T.bool()
            mean = torch.where(own, self.score_quality, 1 - self.score_quality)
            sharpness = self.pi.exp()
            density = Beta(mean * sharpness, (1 - mean) * sharpness)
            inside = scores.clamp(1e-4, 1 - 1e-4)[:, None, :]
            total = total + (density.log_prob(inside) * counted[:, None, :]).sum(-1)
        return total - F.softplus(self.theta).sum(1).logsumexp(0)

    def posterior(self, fired: Tensor, scores: Tensor | None = None) -> Tensor:
        """`log P(y | m, s)`, `(B, C)`."""
        return self.log_joint(fired, scores).log_softmax(-1)

    def guide(self) -> Tensor:
        """How far the rules' precisions in the model are from the quality they are taken to have; a scalar.

        `−Σ_j q log P(y = k_j | m_j = 1) + (1 − q) log(1 − P)`.
        """
        others = F.softplus(self.theta).sum(1, keepdim=True) - F.softplus(self.theta)
        log_p = (self.theta + others).log_softmax(0).gather(0, self.rule_classes[None])[0]
        # Rounding may make a probability one, whose complement has no logarithm.
        log_rest = torch.log1p(-log_p.exp().clamp(max=1 - torch.finfo(log_p.dtype).eps))
        return -(self.quality * log_p + (1 - self.quality) * log_rest).sum()


def split_rules(votes: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """Rules that vote for several classes as one rule for each.

    Args:
        votes: `(n, m)`, class numbers, -1 for abstaining.

    Returns:
        Votes `(n, m')`, which rule each column was, and which class it votes for.

    Raises:
        ValueError: all rules abstain everywhere.
    """
    if not bool((votes != ABSTAIN).any()):
        raise ValueError(
            f"split_rules: all {votes.shape[1]} rules abstain on all {len(votes)} rows. Look at what they read."
        )
    pairs = [(j, int(k)) for j in range(votes.shape[1]) for k in votes[:, j].unique() if k != ABSTAIN]
    columns = [torch.where(votes[:, j] == k, k, ABSTAIN) for j, k in pairs]
    return torch.stack(columns, 1), [j for j, _ in pairs], [k for _, k in pairs]
