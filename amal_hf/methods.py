"""The papers, each as a few lines that combine the families."""

from amal_hf.batch_policies.batch_policy import BatchPolicy
from amal_hf.directions import AdamDirection, Direction, NeumannDirection, SGDDirection
from amal_hf.last_layer import LastLayer
from amal_hf.method import Method
from amal_hf.policies.bayes_mixture import BayesMixture
from amal_hf.policies.commentary_network import CommentaryNetwork
from amal_hf.policies.example_table import ExampleTable
from amal_hf.policies.fixed_weights import FixedWeights, RandomWeights
from amal_hf.policies.loss_network import LossNetwork
from amal_hf.policies.meta_weight_net import MetaWeightNet
from amal_hf.policies.policy import Policy
from amal_hf.policies.rectified_slopes import RectifiedSlopes
from amal_hf.policies.state_network import StateNetwork
from amal_hf.policies.teacher_belief import TeacherBelief
from amal_hf.robust_losses import GeneralizedCrossEntropy
from amal_hf.tangents import FiniteDifference, Tangent
from amal_hf.trajectories import Trajectory


AMAL_CITATION = """@inproceedings{amal2023,
  title = {Adaptive Mixing of Auxiliary Losses in Supervised Learning},
  author = {Sivasubramanian, Durga and Maheshwari, Ayush and Shenoy, Pradeep and AP, Prathosh
            and Ramakrishnan, Ganesh},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year = {2023},
  pages = {9855--9863},
  eprint = {2202.03250},
}"""

LEARNING_TO_REWEIGHT_CITATION = """@inproceedings{ren2018learning,
  title = {Learning to Reweight Examples for Robust Deep Learning},
  author = {Ren, Mengye and Zeng, Wenyuan and Yang, Bin and Urtasun, Raquel},
  booktitle = {Proceedings of the 35th International Conference on Machine Learning},
  year = {2018},
  eprint = {1803.09050},
}"""

DEEP_INTERACTIONS_CITATION = """@inproceedings{fan2021learning,
  title = {Learning to Reweight with Deep Interactions},
  author = {Fan, Yang and Xia, Yingce and Wu, Lijun and Xie, Shufang and Liu, Weiqing and Bian, Jiang and Qin, Tao
            and Li, Xiang-Yang},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year = {2021},
  pages = {7385--7393},
  eprint = {2007.04649},
}"""

COMMENTARIES_CITATION = """@inproceedings{raghu2021teaching,
  title = {Teaching with Commentaries},
  author = {Raghu, Aniruddh and Raghu, Maithra and Kornblith, Simon and Duvenaud, David and Hinton, Geoffrey},
  booktitle = {International Conference on Learning Representations},
  year = {2021},
  eprint = {2011.03037},
}"""

META_WEIGHT_NET_CITATION = """@inproceedings{shu2019meta,
  title = {Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting},
  author = {Shu, Jun and Xie, Qi and Yi, Lixuan and Zhao, Qian and Zhou, Sanping and Xu, Zongben and Meng, Deyu},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2019},
  eprint = {1902.07379},
}"""


def amal(
    policy: Policy | None = None, *, direction: Direction | None = None, tangent: Tangent | None = None
) -> Method:
    """Adaptive Mixing of Auxiliary Losses (arXiv:2202.03250) with this library's defaults.

    Per-example weights of several losses that lower a loss on clean held-out data, as in the paper. What is computed
    differs where measurements spoke for it (see `amal_as_published` for the paper's own choices). That loss is
    `GeneralizedCrossEntropy(0.5)`, half way between the task loss, which few clean rows that the student gets badly
    wrong decide, and the share of answers that are wrong (`benchmarks/LOG.md`). Beside a teacher that has not seen the
    labels, `Distillation(..., has_seen_labels=False)`, weights start at the mixture of Bayes' rule (`LossNetwork`).

    Args:
        policy: `LossNetwork()` by default: it carries what it learns on one example over to all that look alike, so
            that it is enough if every 4th training step is judged: 2 of 8, along one meta gradient (as good as two,
            `benchmarks/LOG.md`). `ExampleTable()` gives every example free weights, with a meta step at every step.
        direction: `AdamDirection()` by default, since `Trainer` trains with AdamW; `SGDDirection()` for SGD.
        tangent: `FiniteDifference()` by default: all layers, two forward passes, nothing switched off. `LastLayer()`
            is cheapest: with it the default policy learns at every 16th step, which keeps the cost below 5 %.
    """
    cheapest = policy is None and tangent is not None and tangent.head_alone
    policy = LossNetwork() if policy is None else policy
    return Method(
        name="amal",
        policy=policy,
        direction=AdamDirection() if direction is None else direction,
        tangent=FiniteDifference() if tangent is None else tangent,
        interval=16 if cheapest else None,
        window=1 if cheapest or policy.interval == 1 else 2,
        objective=GeneralizedCrossEntropy(0.5),
        citation=AMAL_CITATION,
    )


def amal_as_published(
    teachers: int = 1, teacher_weight: float = 0.9, phase_epochs: int = 10, repeats: int = 5
) -> Method:
    """AMAL (arXiv:2202.03250) as its official code has it: a free table, the last layer, phases between epochs.

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


def learning_to_reweight(
    *, direction: Direction | None = None, tangent: Tangent | None = None, skip_empty: bool = True
) -> Method:
    """Learning to Reweight Examples (arXiv:1803.09050): weights are the positive slopes of this very step.

    There is nothing to tune and nothing to remember; a meta step comes at every training step.

    Args:
        direction: `AdamDirection()` by default: for a student trained by SGD, as in the paper, the same as
            `SGDDirection()`; for AdamW the direction in which it really moves.
        tangent: `FiniteDifference()` by default; the paper differentiates twice (`DoubleBackward()`), to the same
            numbers.
        skip_empty: leave the student alone at a step where no example helps. False is the form of the official code,
            in which momentum and weight decay still act. (fp16 with a gradient scaler always takes this form.)
    """
    return Method(
        name="learning_to_reweight",
        policy=RectifiedSlopes(skip_empty),
        direction=AdamDirection() if direction is None else direction,
        tangent=FiniteDifference() if tangent is None else tangent,
        citation=LEARNING_TO_REWEIGHT_CITATION,
    )


def meta_weight_net(*, direction: Direction | None = None, tangent: Tangent | None = None) -> Method:
    """Meta-Weight-Net (arXiv:1902.07379): a small network from an example's losses to its weights, never normalised.

    Args:
        direction: `AdamDirection()` by default; the paper's students are trained by SGD.
        tangent: `FiniteDifference()` by default.
    """
    return Method(
        name="meta_weight_net",
        policy=MetaWeightNet(),
        direction=AdamDirection() if direction is None else direction,
        tangent=FiniteDifference() if tangent is None else tangent,
        citation=META_WEIGHT_NET_CITATION,
    )


def deep_interactions(
    policy: Policy | None = None, *, trajectory: Trajectory | None = None, window: int = 1
) -> Method:
    """Learning to Reweight with Deep Interactions (arXiv:2007.04649): a network that reads the student's states.

    Args:
        policy: `StateNetwork()` by default; `StateNetwork(layers=())` and `StateNetwork(layers=(-1,))` are the paper's
            ablation.
        trajectory: how many student steps the gradient goes back through; `Trajectory(steps=5)` by default. The paper
            runs momentum SGD backwards, `Trajectory(rewind=Reversal())`; the default works with AdamW too. All steps
            are gone back through, as in the paper; with `AMALArguments(meta_interval=20)` the last 5 of every 20, for
            a quarter of the cost.
        window: above 1, no trajectory: the examples of so many steps are each judged just before their step (the
            paper's B = 1), along one meta gradient.

    Raises:
        ValueError: a trajectory and a window.
    """
    return Method(
        name="deep_interactions",
        policy=StateNetwork() if policy is None else policy,
        trajectory=Trajectory() if trajectory is None and window == 1 else trajectory,
        window=window,
        citation=DEEP_INTERACTIONS_CITATION,
    )


def commentaries(commentary: CommentaryNetwork | BatchPolicy, *, short_runs: int = 0) -> Method:
    """Teaching with Commentaries (arXiv:2011.03037): what is learned belongs to the dataset, for students to come.

    Args:
        commentary: `CommentaryNetwork(embed_texts(...), labels)` for weights over training time,
            `LabelBlend(labels)` for blended pairs, `TokenMask(vectors, special_ids)` for soft masks over tokens.
        short_runs: learn weights through whole runs of so many steps, each from the same beginning (the paper's
            algorithm 1; its code takes 100 steps). 0: along one run, by implicit differentiation with two terms of
            the Neumann series at every step (algorithm 2; its code does not warm up, `AMALArguments.meta_warmup_steps`
            can).

    Raises:
        ValueError: short runs with a commentary that changes batches.
    """
    changes = commentary if isinstance(commentary, BatchPolicy) else None
    return Method(
        name="commentaries",
        policy=FixedWeights() if isinstance(commentary, BatchPolicy) else commentary,
        batch_policy=changes,
        direction=NeumannDirection(),
        trajectory=Trajectory(steps=short_runs) if short_runs else None,
        restart_every=short_runs,
        citation=COMMENTARIES_CITATION,
    )


def bayes_mixture() -> Method:
    """Noisy labels beside a teacher that has not seen them, each with the share that Bayes' rule gives it.

    For `losses=[CrossEntropy(), Distillation(teacher, has_seen_labels=False)]`. Needs no meta set, and learns nothing
    while training. `amal()` begins with such shares and learns where they are wrong: students of layers were level
    with either (`benchmarks/README.md`).

    Raises:
        ValueError: other losses, classes, labels or training sets than these; see `BayesMixture`.

    References: Khetan et al. 2018, "Learning From Noisy Singly-labeled Data", arXiv:1712.04577.
    """
    return Method("bayes_mixture", BayesMixture())


def teacher_belief() -> Method:
    """Votes of rules beside a teacher that knows the clean rows, each as far as the teacher believes it.

    For `losses=[CrossEntropy(), RuleLosses(names), Distillation(teacher)]`. Needs no meta set, and learns nothing: a
    rule of thumb. Over three sets, with 2 layers, no learned weights had a better mean (`benchmarks/README.md`).

    Raises:
        ValueError: other than one teacher; see `TeacherBelief`.
    """
    return Method("teacher_belief", TeacherBelief())


def random_weights(seed: int = 0) -> Method:
    """Convex weights drawn at random for every example and kept: a control, not a method. Needs no meta set.

    Args:
        seed: of the draws; the same gives the same weights to the same examples.
    """
    return Method(name="random_weights", policy=RandomWeights(seed))
