"""SPEAR: the student and a graphical model of the rules trained together, each on what the other says.

    L2  unlabelled   entropy of the student                        a column, its weight can be learned
    L3  unlabelled   cross-entropy to the model's likeliest class  a column
    L6  both         KL(student ‖ model)                           a column
    L4  labelled     −log P(y | m, s)                              no student in it: weight 1
    L5  unlabelled   −log Σ_y P(y, m, s)                           no student in it: weight 1
    R   rules        the quality guide                             no student in it: weight 1

L1, the student's cross-entropy on labelled rows, is `CrossEntropy()`. Rows on which no rule fired have neither L3 nor
L6. The weight of a term counts how much the *student* follows it, so terms without the student have none to learn.

References:
    Maheshwari et al. 2021, "Semi-Supervised Data Programming with Subset Selection", arXiv:2008.09887.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amal_hf.cage import Cage
from amal_hf.losses import JointLoss
from amal_hf.own_adam import check_learning_rate, follow_to
from amal_hf.processes import average_gradients
from amal_hf.rule_losses import votes_of
from amal_hf.shapes import ABSTAIN, IGNORED, VOTES, Batch, LossTable, PerExample
from amal_hf.task import Task, at_least_fp32


CITATION = """@inproceedings{maheshwari2021semi,
  title = {Semi-Supervised Data Programming with Subset Selection},
  author = {Maheshwari, Ayush and Chatterjee, Oishik and Killamsetty, Krishnateja and Ramakrishnan, Ganesh
            and Iyer, Rishabh},
  booktitle = {Findings of the Association for Computational Linguistics: ACL-IJCNLP},
  year = {2021},
  eprint = {2008.09887},
}"""


class Spear(JointLoss):
    """L2, L3 and L6 as columns; L4, L5 and the guide train the graphical model.

    Args:
        cage: over the same rules and classes.
        learning_rate: of the model's own Adam; 1e-2 in SPEAR's code.
        name: of the loss as a whole.
        column: of votes, `(m,)` a row, each rule for its own class or -1.
        scores: column of how sure the rules are, `(m,)` a row; `None` if they do not say.

    Raises:
        ValueError: a learning rate that is not positive and finite.

    References:
        Maheshwari et al. 2021, arXiv:2008.09887.
    """

    citation = CITATION

    def __init__(
        self,
        cage: Cage,
        learning_rate: float = 1e-2,
        name: str = "spear",
        column: str = VOTES,
        scores: str | None = None,
    ) -> None:
        check_learning_rate(self, learning_rate)
        self.cage = cage
        self.learning_rate = learning_rate
        self.name = name
        self.column = column
        self.scores = scores
        self.columns = (column,) if scores is None else (column, scores)
        self.reset()

    @property
    def names(self) -> tuple[str, ...]:
        """L2, L3 and L6."""
        return tuple(f"{self.name}/{term}" for term in ("entropy", "pseudo_label", "agreement"))

    def bind(self, task: Task) -> None:
        """One class for each row.

        Raises:
            ValueError: several labels at once, or numbers.
        """
        super().bind(task)
        if task.problem_type not in (None, "single_label_classification"):
            raise ValueError(f"Spear '{self.name}': it is for one class a row, and the task is {task.problem_type}.")

    def check(self, rows: Any, classes: int) -> None:
        """Votes of these rules, each for the one class of its rule, labels or -100, and scores where rules fired.

        Raises:
            ValueError: says what is not so.
        """
        known = self.cage.theta.shape[0]
        if known != classes:
            raise ValueError(f"Spear '{self.name}': its Cage was made for {known} classes, the student has {classes}.")
        names = getattr(rows, "column_names", None)
        if names is not None and not {"label", "labels"} & set(names):
            raise ValueError(
                f"Spear '{self.name}' tells labelled rows from others by their label, and the training set has "
                f"{names}. Add a column 'label', of -100 where there is none."
            )
        if names is not None and self.scores is not None:
            self._check_scores(rows, names)
        votes = votes_of(rows, self.column, self.cage.theta.shape[1], classes)
        if votes is not None:
            self.cage.fired(torch.as_tensor(votes))

    def _check_scores(self, rows: Any, names: list[str]) -> None:
        if self.scores not in names:
            raise ValueError(f"Spear '{self.name}': the training set has no column '{self.scores}': {names}.")
        scores = np.array(rows[self.scores][:], dtype=np.float64) if hasattr(rows, "__len__") else np.zeros(0)
        if not np.isfinite(scores).all():
            raise ValueError(
                f"Spear '{self.name}': column '{self.scores}' has scores that are missing or not finite. Use 0 where "
                f"a rule abstains."
            )

    def present(self, batch: Batch) -> Tensor:
        """`(B, 3)`: the first two on unlabelled rows, the last two where a rule fired."""
        unlabelled = ~self._labelled(batch)
        voted = self._fired(batch).any(1)
        return torch.stack([unlabelled, unlabelled & voted, voted], 1)

    def __call__(self, outputs: Any, batch: Batch) -> LossTable:
        """`(B, 3)`."""
        log_f = at_least_fp32(outputs.logits).log_softmax(-1)
        log_g = self._posterior(batch)
        terms = [
            -(log_f.exp() * log_f).sum(-1),
            F.nll_loss(log_f, log_g.argmax(-1), reduction="none"),
            (log_f.exp() * (log_f - log_g.to(log_f))).sum(-1),
        ]
        return torch.where(self.present(batch), torch.stack(terms, 1), 0.0)

    def own_objective(self, batch: Batch) -> PerExample:
        """L4 on labelled rows and L5 on others where a rule fired, with the guide; `(B,)`."""
        fired, labels = self._fired(batch), batch["labels"]
        joint = self.cage.log_joint(fired, self._scores(batch))
        of_label = joint.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
        values = torch.where(self._labelled(batch), of_label, joint.logsumexp(-1))
        return torch.where(fired.any(1), -values, 0.0) + self.cage.guide()

    def finish_step(self) -> None:
        """One Adam step of the graphical model, the same on all processes."""
        average_gradients(self.cage.parameters())
        for parameter in self.cage.parameters():  # one batch without numbers would be the end of the model
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def reset(self) -> None:
        """A model that knows nothing."""
        self.cage.reset()
        self.optimizer = torch.optim.Adam(self.cage.parameters(), lr=self.learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """The graphical model and its Adam."""
        return {"cage": self.cage.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.cage.load_state_dict(state["cage"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _posterior(self, batch: Batch) -> Tensor:
        fired = self._fired(batch)
        return self.cage.posterior(fired, self._scores(batch))

    def _fired(self, batch: Batch) -> Tensor:
        votes = batch[self.column]
        follow_to(votes.device, self.cage, self.optimizer)
        return votes != ABSTAIN  # that they are for the rules' own classes was checked once: asking would wait

    def _scores(self, batch: Batch) -> Tensor | None:
        return None if self.scores is None else batch[self.scores]

    def _labelled(self, batch: Batch) -> Tensor:
        labelled: Tensor = batch["labels"] != IGNORED
        return labelled
