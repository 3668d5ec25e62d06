"""Learned per-example mixing of losses for the Hugging Face `Trainer`. Names and nothing else."""

from amal_hf.answered_rows import answered_rows
from amal_hf.arguments import AMALArguments, AMALSeq2SeqArguments
from amal_hf.batch_policies.batch_policy import BatchPolicy
from amal_hf.batch_policies.label_blend import LabelBlend
from amal_hf.batch_policies.token_mask import AttentionMask, TokenMask
from amal_hf.cage import Cage, split_rules
from amal_hf.calibration import calibrated_temperature
from amal_hf.card_facts import CardDetails, Comparison, Contender
from amal_hf.checkpoints import last_checkpoint
from amal_hf.commentary import Commentary
from amal_hf.corrected_loss import CorrectedCrossEntropy
from amal_hf.cross_entropy import CrossEntropy
from amal_hf.directions import AdamDirection, Direction, NeumannDirection, SGDDirection
from amal_hf.distillation import Distillation
from amal_hf.divergences import forward_kl, jensen_shannon, logit_mse, reverse_kl
from amal_hf.kept_rows import kept_rows
from amal_hf.label_weights import label_weights
from amal_hf.last_layer import LastLayer
from amal_hf.losses import CustomLoss, JointLoss, Loss
from amal_hf.method import Method
from amal_hf.methods import (
    amal,
    amal_as_published,
    bayes_mixture,
    commentaries,
    deep_interactions,
    learning_to_reweight,
    meta_weight_net,
    random_weights,
    teacher_belief,
)
from amal_hf.noisy_labels import label_posterior
from amal_hf.out_of_fold import out_of_fold_logits
from amal_hf.policies.bayes_mixture import BayesMixture
from amal_hf.policies.bounds import (
    AboveAverage,
    Convex,
    ConvexOrNone,
    GatedConvex,
    MeanOne,
    TwiceSigmoid,
    clamp,
    convex,
)
from amal_hf.policies.commentary_network import CommentaryNetwork, embed_texts
from amal_hf.policies.delayed import Delayed
from amal_hf.policies.example_table import ExampleTable
from amal_hf.policies.fixed_weights import AnnealedWeights, FixedWeights, RandomWeights
from amal_hf.policies.frozen import Frozen, save_policy
from amal_hf.policies.heuristics import ClassProportional, HardMining, RandomRectified, SmallLoss
from amal_hf.policies.loss_network import LossNetwork
from amal_hf.policies.meta_weight_net import MetaWeightNet
from amal_hf.policies.network_policy import NetworkPolicy
from amal_hf.policies.per_loss_network import PerLossNetwork
from amal_hf.policies.policy import Policy
from amal_hf.policies.rectified_slopes import RectifiedSlopes
from amal_hf.policies.shared_weights import SharedWeights
from amal_hf.policies.source_gain import SourceGain
from amal_hf.policies.state_network import StateNetwork
from amal_hf.policies.teacher_belief import TeacherBelief
from amal_hf.portable import checkpoint_from_hub
from amal_hf.probably_right import LabelWeights
from amal_hf.rewinds import Reversal, Snapshots
from amal_hf.robust_losses import GeneralizedCrossEntropy
from amal_hf.rule_losses import RuleLosses
from amal_hf.seq2seq import AMALSeq2SeqTrainer
from amal_hf.spear import Spear
from amal_hf.students import student_from_teacher
from amal_hf.tangents import DoubleBackward, FiniteDifference, ForwardMode, Tangent
from amal_hf.trainer import AMALTrainer
from amal_hf.trajectories import ExactProduct, FiniteProduct, Trajectory
from amal_hf.translation import translation_metrics


__all__ = [
    "AMALArguments",
    "AMALSeq2SeqArguments",
    "AMALSeq2SeqTrainer",
    "AMALTrainer",
    "AboveAverage",
    "AdamDirection",
    "AnnealedWeights",
    "AttentionMask",
    "BatchPolicy",
    "BayesMixture",
    "Cage",
    "CardDetails",
    "ClassProportional",
    "Commentary",
    "CommentaryNetwork",
    "Comparison",
    "Contender",
    "Convex",
    "ConvexOrNone",
    "CorrectedCrossEntropy",
    "CrossEntropy",
    "CustomLoss",
    "Delayed",
    "Direction",
    "Distillation",
    "DoubleBackward",
    "ExactProduct",
    "ExampleTable",
    "FiniteDifference",
    "FiniteProduct",
    "FixedWeights",
    "ForwardMode",
    "Frozen",
    "GatedConvex",
    "GeneralizedCrossEntropy",
    "HardMining",
    "JointLoss",
    "LabelBlend",
    "LabelWeights",
    "LastLayer",
    "Loss",
    "LossNetwork",
    "MeanOne",
    "MetaWeightNet",
    "Method",
    "NetworkPolicy",
    "NeumannDirection",
    "PerLossNetwork",
    "Policy",
    "RandomRectified",
    "RandomWeights",
    "RectifiedSlopes",
    "Reversal",
    "RuleLosses",
    "SGDDirection",
    "SharedWeights",
    "SmallLoss",
    "Snapshots",
    "SourceGain",
    "Spear",
    "StateNetwork",
    "Tangent",
    "TeacherBelief",
    "TokenMask",
    "Trajectory",
    "TwiceSigmoid",
    "amal",
    "amal_as_published",
    "answered_rows",
    "bayes_mixture",
    "calibrated_temperature",
    "checkpoint_from_hub",
    "clamp",
    "commentaries",
    "convex",
    "deep_interactions",
    "embed_texts",
    "forward_kl",
    "jensen_shannon",
    "kept_rows",
    "label_posterior",
    "label_weights",
    "last_checkpoint",
    "learning_to_reweight",
    "logit_mse",
    "meta_weight_net",
    "out_of_fold_logits",
    "random_weights",
    "reverse_kl",
    "save_policy",
    "split_rules",
    "student_from_teacher",
    "teacher_belief",
    "translation_metrics",
]
