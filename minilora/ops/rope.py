"""Rotary position embeddings: each pair of numbers of a head is rotated by an angle proportional to its position.

    (a, b) -> (a cos φ - b sin φ,  b cos φ + a sin φ)           φ = t ω_i at position t, for pair i,  ω_i = θ^(-2i/D)
            = (a, b) ∘ cos φ + (b, a) ∘ (-sin φ, sin φ)

Pair i is (x_i, x_{i+D/2}) of each head, as in Hugging Face's Llama (the paper pairs neighbours, which is the
same up to a fixed permutation of the rows of W). A rotation R_t keeps lengths, and R_sᵀ R_t = R_{t-s}: the
score of query s and key t depends on the distance alone.

Backward: y = R x, so dx = Rᵀ dy, the rotation by -φ.

Llama 3.1 extends a model trained on sequences of L tokens to longer ones by scaling the low frequencies. A pair makes
L ω/2π turns in L tokens. Above `high` turns its frequency stays, below `low` it is divided by `factor`, and in between
it is interpolated:

    ω' = m ω + (1 - m) ω / factor       m = (L ω/2π - low) / (high - low), clipped to 0..1

    x, y (B, T, H·D)    cos, sin (T, 1, D), of -φ for a and of φ for b: the sine gets its two signs

Source: Su et al. (2021), "RoFormer", equation 15; Grattafiori et al. (2024), "The Llama 3 Herd of Models", and the
released code for the scaling.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple

from ..backend import Array, get_array_module


class RopeScaling(NamedTuple):
    """Llama 3.1's rope_scaling, in the order and with the meaning of Hugging Face's keys."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int  # L


def rope_frequencies(xp: ModuleType, D: int, theta: float, scaling: RopeScaling | None = None) -> Array:
    """ω (D/2,), float64, for heads of width D; scaled if there is a `scaling`."""
    omega = theta ** (-xp.arange(0, D, 2) / D)
    if scaling is None:
        return omega
    factor, low, high, L = scaling
    m = xp.clip((L * omega / (2 * math.pi) - low) / (high - low), 0, 1)
    return m * omega + (1 - m) * omega / factor


def rope_tables(xp: ModuleType, T: int, omega: Array, dtype: Any, start: int = 0) -> tuple[Array, Array]:
    """cos and sin of (-φ, φ), each (T, 1, D), for the positions start..start+T-1. The angles are float64."""
    phi = xp.arange(start, start + T)[:, None, None] * xp.concatenate([-omega, omega])
    return xp.cos(phi).astype(dtype), xp.sin(phi).astype(dtype)


def rope_forward(x: Array, cos: Array, sin: Array) -> Array:
    """y = R x"""
    D = cos.shape[-1]
    ab = x.reshape(*x.shape[:-1], -1, D)  # (B, T, H, D)
    ba = get_array_module(x).concatenate([ab[..., D // 2 :], ab[..., : D // 2]], axis=-1)
    ba *= sin
    y = ab * cos
    y += ba
    return y.reshape(x.shape)


def rope_backward(dy: Array, cos: Array, sin: Array) -> Array:
    """dx = Rᵀ dy"""
    return rope_forward(dy, cos, -sin)
