"""What a mixture of experts adds to its own loss, so that all of its experts are used."""

from typing import Any

from torch import Tensor


def router_loss(outputs: Any, config: Any) -> Tensor | None:
    """The balancing loss of a student's router times its coefficient; `None` for a student without.

    Students of `transformers` add it where they see labels, which they do not here.

    Args:
        outputs: of the student; with `output_router_logits` of its configuration they have an `aux_loss`.
        config: of the student, with `router_aux_loss_coef`.
    """
    balance: Tensor | None = getattr(outputs, "aux_loss", None)
    return None if balance is None else balance * getattr(config, "router_aux_loss_coef", 0.0)
