"""Central differences: what anything does when the parameters move a little along a vector.

    ⟨v, ∇f(θ)⟩ ≈ [f(θ + εv) − f(θ − εv)] / 2ε        with ε‖v‖ = the radius

The parameters are moved in place and put back bit for bit. Nothing is differentiated once more than `f` itself does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from amal_hf.processes import shard, whole
from amal_hf.shapes import Params


Seen = TypeVar("Seen")


def both_sides(
    params: Params, vector: Params, look: Callable[[], Seen], dtype: torch.dtype, radius: float | None = None
) -> tuple[Seen, Seen, Tensor]:
    """What `look` gives at `θ + εv` and at `θ − εv`, and the distance `2ε` between them.

    Args:
        params: θ, by name; those without an entry in `vector` stay where they are.
        vector: `v`.
        look: called with the parameters moved.
        dtype: the precision in which the student computes (the autocast type under mixed precision).
        radius: `ε‖v‖`; chosen by precision where it is `None` (`radius_for`).
    """
    length = radius_for(dtype) if radius is None else radius
    step = length / global_norm(vector).clamp(min=torch.finfo(torch.float32).tiny)
    with movable(params, vector) as move:
        move(step)
        plus = look()
        move(-step)
        minus = look()
    return plus, minus, 2 * step


def radius_for(dtype: torch.dtype) -> float:
    """Length of a step in parameter space, by the precision of the forward pass.

    0.01 in fp32 and 0.1 in bf16 or fp16, which on a MiniLM-L6 gave relative errors of 9e-5 and about 1e-2 (too small a
    radius drowns in rounding, too large a one in curvature; `benchmarks/precision.py`); 1e-4 in fp64.
    """
    return _RADIUS.get(dtype, 0.1)


def check_radius(owner: object, radius: float | None) -> None:
    """Refuse a step that does not move, or not to anywhere.

    Raises:
        ValueError: a radius that is not positive and finite.
    """
    if radius is not None and not 0 < radius < float("inf"):
        raise ValueError(
            f"{type(owner).__name__}: radius must be positive and finite, got {radius}. None chooses by precision."
        )


def global_norm(vector: Params) -> Tensor:
    """Euclidean norm over all parameters, a scalar in fp32 or wider."""
    norms = [torch.linalg.vector_norm(v, dtype=torch.promote_types(v.dtype, torch.float32)) for v in vector.values()]
    return whole(torch.linalg.vector_norm(torch.stack(norms)))


@contextmanager
def movable(params: Params, direction: Params) -> Iterator[Callable[[Tensor], None]]:
    """Within the block, a function that puts the parameters at `θ + step · v`; afterwards they hold their old bits.

    They are put back from copies, whatever happened in between: subtracting what was added would not give the same
    bits. Parameters in half precision are moved from points between what they can be; see `_dithered`.

    Raises:
        KeyError: a direction for a parameter that is not there.
    """
    kept = {name: shard(params[name].detach()).clone() for name in direction}
    bases = {name: _dithered(old) for name, old in kept.items()}

    @torch.no_grad()
    def move(step: Tensor) -> None:
        for name, v in direction.items():
            target, base, local = shard(params[name]), bases[name], shard(v)
            if base.dtype == local.dtype:
                torch.addcmul(base, local, step, out=target)
            else:
                target.copy_(torch.addcmul(base, local.to(base), step))

    try:
        yield move
    finally:
        with torch.no_grad():
            for name, old in kept.items():
                shard(params[name]).copy_(old)


def _dithered(values: Tensor) -> Tensor:
    """Half-precision numbers as fp32, each moved at random within the range that is rounded to it; others as they are.

    A step shorter than that range would be rounded away, for all numbers alike. From a random point it is rounded up
    for as many numbers as its length says. It is what happens under autocast, where fp32 parameters are rounded.
    """
    if values.dtype not in (torch.bfloat16, torch.float16):
        return values
    wide = values.float()
    # The largest power of two that is in a number, by its bits: Apple's GPUs have no `torch.frexp`.
    spacing = torch.finfo(values.dtype).eps * (wide.view(torch.int32) & 0x7F800000).view(torch.float32)
    generator = torch.Generator(values.device).manual_seed(3250)  # the global one is not to be drawn from
    places = torch.rand(values.shape, generator=generator, device=values.device) - 0.5
    return wide + torch.where(wide == 0, 0.0, places * spacing)  # around zero there is no such range


_RADIUS = {torch.float64: 1e-4, torch.float32: 1e-2}
