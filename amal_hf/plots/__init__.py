"""Pictures of learned weights, one file a picture. Needs matplotlib (`pip install 'amal_hf[plots]'`).

Not imported by `amal_hf` itself. Every function takes plain data, returns a matplotlib `Figure`, and writes it where
it is given a path, whose suffix (.png, .pdf, .svg) decides the format.
"""

from amal_hf.plots.accuracy_against_seconds import Curve, plot_accuracy_against_seconds
from amal_hf.plots.blends import plot_blends
from amal_hf.plots.clean_against_flipped import plot_clean_against_flipped
from amal_hf.plots.masks import plot_masks
from amal_hf.plots.rule_weights import plot_rule_weights
from amal_hf.plots.style import OKABE_ITO
from amal_hf.plots.weight_against import plot_weight_against_agreement, plot_weight_against_loss
from amal_hf.plots.weight_history import plot_weight_history


__all__ = [
    "OKABE_ITO",
    "Curve",
    "plot_accuracy_against_seconds",
    "plot_blends",
    "plot_clean_against_flipped",
    "plot_masks",
    "plot_rule_weights",
    "plot_weight_against_agreement",
    "plot_weight_against_loss",
    "plot_weight_history",
]
