"""Learned per-example mixing of losses for the Hugging Face `Trainer`. Names and nothing else."""

from amal_hf.arguments import AMALArguments
from amal_hf.batch_policies.batch_policy import BatchPolicy
from amal_hf.batch_policies.label_blend import LabelBlend
from amal_hf.directions import AdamDirection, Direction, NeumannDirection, SGDDirection
from amal_hf.last_layer import LastLayer
from amal_hf.losses import (
    CrossEntropy,
    CustomLoss,
    Distillation,
    Loss,
    forward_kl,
    jensen_shannon,
    logit_mse,
    reverse_kl,
)
from amal_hf.meta import Method
from amal_hf.methods import amal, amal_as_published, random_weights
from amal_hf.policies.bounds import Convex, ConvexOrNone, MeanOne, clamp, convex
from amal_hf.policies.commentary_network import CommentaryNetwork, embed_texts
from amal_hf.policies.example_table import ExampleTable
from amal_hf.policies.fixed_weights import FixedWeights, RandomWeights
from amal_hf.policies.loss_network import LossNetwork
from amal_hf.policies.policy import Policy
from amal_hf.students import student_from_teacher
from amal_hf.tangents import DoubleBackward, FiniteDifference, ForwardMode, Tangent
from amal_hf.trainer import AMALTrainer


__all__ = [
    "AMALArguments",
    "AMALTrainer",
    "AdamDirection",
    "BatchPolicy",
    "CommentaryNetwork",
    "Convex",
    "ConvexOrNone",
    "CrossEntropy",
    "CustomLoss",
    "Direction",
    "Distillation",
    "DoubleBackward",
    "ExampleTable",
    "FiniteDifference",
    "FixedWeights",
    "ForwardMode",
    "LabelBlend",
    "LastLayer",
    "Loss",
    "LossNetwork",
    "MeanOne",
    "Method",
    "NeumannDirection",
    "Policy",
    "RandomWeights",
    "SGDDirection",
    "Tangent",
    "amal",
    "amal_as_published",
    "clamp",
    "convex",
    "embed_texts",
    "forward_kl",
    "jensen_shannon",
    "logit_mse",
    "random_weights",
    "reverse_kl",
    "student_from_teacher",
]
