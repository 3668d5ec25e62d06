"""What a mixture of experts adds to its own loss, so that all of its experts are used."""

from typing import Any

from torch import Tensor

from amal_hf.generators import without_adapters


_PARTS = {
    ("aux_loss", "encoder_aux_loss", "decoder_aux_loss"): ("router_aux_loss_coef", "aux_loss_coef"),
    ("encoder_z_loss", "decoder_z_loss"): ("router_z_loss_coef",),
}
"""Losses of routers among a student's outputs, and what their coefficient is called."""


def router_loss(outputs: Any, model: Any) -> Tensor | float:
    """The losses of a student's routers times their coefficients; 0 for a student without.

    Students of `transformers` add them where they see labels, which they do not here.

    Args:
        outputs: of the student; with `output_router_logits` of its configuration they have such losses.
        model: the student, which knows the coefficients, or its configuration does.
    """
    student = without_adapters(model)
    added: Tensor | float = 0.0
    for names, coefficients in _PARTS.items():
        for balance in (getattr(outputs, name, None) for name in names):
            if isinstance(balance, Tensor):
                added = added + balance * _first(student, coefficients)
    return added


def _first(model: Any, names: tuple[str, ...]) -> float:
    places = (model, model.config.get_text_config())
    found = (getattr(place, name, None) for place in places for name in names)
    return next((value for value in found if value is not None), 0.0)
