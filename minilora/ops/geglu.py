"""GeGLU: the GELU of one projection is multiplied by another, elementwise. Gemma's GELU is the tanh form, ModernBERT's
the exact one.

    y = gelu(gate) ∘ up         gelu and its slope gelu' are those of gelu.py         gate, up, y (..., F)

Backward. The product rule, with nothing but elementwise factors:

    dgate = dy ∘ up ∘ gelu'(gate)           dup = dy ∘ gelu(gate)

The forward keeps the two factors of dy, up ∘ gelu'(gate) and gelu(gate), or neither where no backward will come.

Source: Shazeer (2020), "GLU Variants Improve Transformer", equation 5.
"""

from typing import NamedTuple

from ..backend import Array
from .gelu import gelu_forward, gelu_tanh_forward


class GeGLUCache(NamedTuple):
    dy_dgate: Array  # (..., F)   up ∘ gelu'(gate)
    dy_dup: Array  # (..., F)     gelu(gate)


def geglu_forward(
    gate: Array, up: Array, approximate: bool, needs_cache: bool = True
) -> tuple[Array, GeGLUCache | None]:
    """y = gelu(gate) ∘ up, with the tanh form of gelu if `approximate`"""
    gelu, slope = (gelu_tanh_forward if approximate else gelu_forward)(gate, needs_cache)
    if slope is None:
        return gelu * up, None
    slope *= up
    return gelu * up, GeGLUCache(slope, gelu)


def geglu_backward(dy: Array, cache: GeGLUCache) -> tuple[Array, Array]:
    """dgate = dy ∘ up ∘ gelu'(gate)        dup = dy ∘ gelu(gate)"""
    return dy * cache.dy_dgate, dy * cache.dy_dup
