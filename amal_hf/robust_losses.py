"""A loss that wrong labels cannot pull as hard as the plain one."""

import torch
from torch import Tensor

from amal_hf.cross_entropy import CrossEntropy
from amal_hf.shapes import Logits, PerExample


CITATION = """@inproceedings{zhang2018generalized,
  title = {Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels},
  author = {Zhang, Zhilu and Sabuncu, Mert R.},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2018},
  eprint = {1805.07836},
}"""


class GeneralizedCrossEntropy(CrossEntropy):
    """`(1 − p_y^q) / q` of the probability `p_y` of the label: cross-entropy for q → 0, absolute error for q = 1.

    Its gradient is that of cross-entropy times `p_y^q`, so that labels that the student does not believe pull less.
    Computed as `(1 − e^(−q ℓ)) / q` from the task's own loss ℓ, which for one class an example is the same; for tokens
    `p_y` is then the geometric mean over an example's labelled tokens. Where numbers are to be hit there is no
    probability, and the error stays squared. Evaluation stays plain.

    Args:
        q: in (0, 1]; 0.7 as in the paper.
        name: column name.
        column: where the labels are, as for `CrossEntropy`.

    Raises:
        ValueError: a q outside (0, 1].

    References:
        Zhang and Sabuncu 2018, arXiv:1805.07836.
    """

    citation = CITATION

    def __init__(self, q: float = 0.7, name: str = "labels", column: str = "labels") -> None:
        if not 0 < q <= 1:
            raise ValueError(f"GeneralizedCrossEntropy: q must lie in (0, 1], got {q}. CrossEntropy() is the limit 0.")
        super().__init__(name, column)
        self.exponent = q

    def describe(self) -> str:
        """The exponent."""
        return f"GeneralizedCrossEntropy, q {self.exponent:g}"

    def of_logits(self, logits: Logits, labels: Tensor) -> PerExample:
        """`(B,)`, at most 1/q but for regression; 0 without a label."""
        value = super().of_logits(logits, labels)
        return value if self.task.is_regression(logits) else -torch.expm1(-self.exponent * value) / self.exponent
