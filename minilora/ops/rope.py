"""Rotary positions: each pair of a head's numbers is turned by an angle that grows with the position.

    (a, b) -> (a cos φ - b sin φ,  b cos φ + a sin φ)           φ = t θ^(-2i/D) at position t, for pair i

Pair i is (x_i, x_{i+D/2}) of each head, as in Hugging Face's Llama (the paper pairs neighbours, which is the
same up to a fixed permutation of the rows of W). A rotation R_t keeps lengths, and R_sᵀ R_t = R_{t-s}: the
score of query s and key t depends on the distance alone.

Backward: y = R x, so dx = Rᵀ dy, the rotation by -φ.

    x, y (B, T, H·D)    cos, sin (T, 1, D/2)

Source: Su et al. (2021), "RoFormer", equation 15.
"""

from types import ModuleType
from typing import Any

from ..backend import Array, get_array_module


def rope_tables(xp: ModuleType, T: int, D: int, theta: float, dtype: Any) -> tuple[Array, Array]:
    """cos φ and sin φ for positions 0..T-1, two arrays (T, 1, D/2). The angles themselves are float64."""
    phi = xp.arange(T)[:, None, None] * theta ** (-xp.arange(0, D, 2) / D)
    return xp.cos(phi).astype(dtype), xp.sin(phi).astype(dtype)


def rope_forward(x: Array, cos: Array, sin: Array) -> Array:
    """y = R x"""
    half = cos.shape[-1]
    heads = x.reshape(*x.shape[:-1], -1, 2 * half)  # (B, T, H, D)
    a, b = heads[..., :half], heads[..., half:]
    y = get_array_module(x).concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return y.reshape(x.shape)


def rope_backward(dy: Array, cos: Array, sin: Array) -> Array:
    """dx = Rᵀ dy"""
    return rope_forward(dy, cos, -sin)
