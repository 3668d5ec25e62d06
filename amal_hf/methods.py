"""The papers, each as a few lines that combine the families."""

from amal_hf.directions import AdamDirection, Direction, SGDDirection
from amal_hf.last_layer import LastLayer
from amal_hf.meta import Method
from amal_hf.policies.example_table import ExampleTable
from amal_hf.policies.fixed_weights import RandomWeights
from amal_hf.policies.loss_network import LossNetwork
from amal_hf.policies.policy import Policy
from amal_hf.tangents import FiniteDifference, Tangent


AMAL_CITATION = """@inproceedings{amal2023,
  title = {Adaptive Mixing of Auxiliary Losses in Supervised Learning},
  author = {Sivasubramanian, Durga and Maheshwari, Ayush and Shenoy, Pradeep and AP, Prathosh
            and Ramakrishnan, Ganesh},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year = {2023},
  pages = {9855--9863},
  eprint = {2202.03250},
}"""


def amal(
    policy: Policy | None = None, *, direction: Direction | None = None, tangent: Tangent | None = None
) -> Method:
    """Adaptive Mixing of Auxiliary Losses (arXiv:2202.03250) with this library's defaults.

    The objective is the paper's: per-example weights of several losses that lower the task loss on clean held-out
    data. What is computed differs where measurements spoke for it (see `amal_as_published` for the paper's own
    choices).

    Args:
        policy: `LossNetwork()` by default: it carries what it learns on one example over to all that look alike, so
            that a meta step every 4th training step is enough. `ExampleTable()` gives every example free weights and
            takes a meta step at every step.
        direction: `AdamDirection()` by default, since `Trainer` trains with AdamW; `SGDDirection()` for SGD.
        tangent: `FiniteDifference()` by default: all layers, two forward passes, nothing switched off. `LastLayer()`
            is cheapest: with it the default policy learns at every 12th step, which keeps its cost near 5 %.
    """
    mostly_cheap = policy is None and isinstance(tangent, LastLayer)
    return Method(
        name="amal",
        policy=LossNetwork() if policy is None else policy,
        direction=AdamDirection() if direction is None else direction,
        tangent=FiniteDifference() if tangent is None else tangent,
        interval=12 if mostly_cheap else None,
        citation=AMAL_CITATION,
    )


def amal_as_published(
    teachers: int = 1, teacher_weight: float = 0.9, phase_epochs: int = 10, repeats: int = 5
) -> Method:
    """AMAL in the form of its official code: a free table, the last layer, learned in phases between epochs.

    Args:
        teachers: how many `Distillation` losses follow `CrossEntropy`; the code uses temperature 4 for them.
        teacher_weight: first weight of every teacher; the labels start at one minus it. The code's `--lam` is 0.9 by
            default.
        phase_epochs: epochs from one phase to the next; the code's `select_every` is 10, with the first phase at epoch
            10.
        repeats: updates from one meta batch; 5 in the code.

    The one deviation: the code multiplies the weights' gradient by 1500 whatever the student's learning rate and batch
    size, so that its step is 1500·lr/B of a slope. Here slopes are scaled to mean magnitude one and `ExampleTable`'s
    learning rate (or `AMALArguments.meta_learning_rate`) sets the step.
    """
    return Method(
        name="amal_as_published",
        policy=ExampleTable(initial=[1 - teacher_weight] + [teacher_weight] * teachers),
        direction=SGDDirection(),
        tangent=LastLayer(),
        repeats=repeats,
        lookahead=True,
        phase_epochs=phase_epochs,
        citation=AMAL_CITATION,
    )


def random_weights(seed: int = 0) -> Method:
    """Convex weights drawn at random for every example and kept: a control, not a method. Needs no meta set."""
    return Method(name="random_weights", policy=RandomWeights(seed))
