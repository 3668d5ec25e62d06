"""Learned per-example mixing of losses for the Hugging Face `Trainer`. Names and nothing else."""

from amal_hf.arguments import AMALArguments, AMALSeq2SeqArguments
from amal_hf.directions import AdamDirection, Direction, SGDDirection
from amal_hf.divergences import forward_kl, jensen_shannon, logit_mse, reverse_kl
from amal_hf.last_layer import LastLayer
from amal_hf.losses import CrossEntropy, CustomLoss, Distillation, Loss
from amal_hf.meta import Method
from amal_hf.methods import amal, amal_as_published, random_weights
from amal_hf.policies.bounds import Convex, ConvexOrNone, MeanOne, clamp, convex
from amal_hf.policies.example_table import ExampleTable
from amal_hf.policies.fixed_weights import FixedWeights, RandomWeights
from amal_hf.policies.loss_network import LossNetwork
from amal_hf.policies.policy import Policy
from amal_hf.seq2seq import AMALSeq2SeqTrainer
from amal_hf.students import student_from_teacher
from amal_hf.tangents import DoubleBackward, FiniteDifference, ForwardMode, Tangent
from amal_hf.trainer import AMALTrainer
from amal_hf.translation import translation_metrics


__all__ = [
    "AMALArguments",
    "AMALSeq2SeqArguments",
    "AMALSeq2SeqTrainer",
    "AMALTrainer",
    "AdamDirection",
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
    "LastLayer",
    "Loss",
    "LossNetwork",
    "MeanOne",
    "Method",
    "Policy",
    "RandomWeights",
    "SGDDirection",
    "Tangent",
    "amal",
    "amal_as_published",
    "clamp",
    "convex",
    "forward_kl",
    "jensen_shannon",
    "logit_mse",
    "random_weights",
    "reverse_kl",
    "student_from_teacher",
    "translation_metrics",
]
