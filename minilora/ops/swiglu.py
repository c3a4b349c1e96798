"""SwiGLU: the SiLU of one projection is multiplied by another, elementwise.

    y = silu(gate) ∘ up         silu(z) = z σ(z)         gate, up, y (..., F)

Backward. With σ' = σ (1 - σ):

    silu'(z) = σ + z σ (1 - σ) = σ + silu(z) (1 - σ)

    dgate = dy ∘ up ∘ silu'(gate)           dup = dy ∘ silu(gate)

The forward keeps the two factors of dy, up ∘ silu'(gate) and silu(gate), or neither where no backward will come.

Source: Shazeer (2020), "GLU Variants Improve Transformer", equation 5.
"""

from typing import NamedTuple

from ..backend import Array, sigmoid_2u


class SwiGLUCache(NamedTuple):
    dy_dgate: Array  # (..., F)   up ∘ silu'(gate)
    dy_dup: Array  # (..., F)     silu(gate)


def swiglu_forward(gate: Array, up: Array, needs_cache: bool = True) -> tuple[Array, SwiGLUCache | None]:
    """y = silu(gate) ∘ up"""
    sigma = sigmoid_2u(0.5 * gate)
    silu = gate * sigma
    if not needs_cache:
        return silu * up, None
    slope = 1 - sigma
    slope *= silu
    slope += sigma  # silu'
    slope *= up
    return silu * up, SwiGLUCache(slope, silu)


def swiglu_backward(dy: Array, cache: SwiGLUCache) -> tuple[Array, Array]:
    """dgate = dy ∘ up ∘ silu'(gate)        dup = dy ∘ silu(gate)"""
    return dy * cache.dy_dgate, dy * cache.dy_dup
