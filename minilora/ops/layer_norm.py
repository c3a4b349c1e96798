"""Layer norm: every row is shifted to mean 0, scaled to variance 1, then given a gain and a bias.

    μ = 1/C Σ_c x_c     σ = √(1/C Σ_c (x_c - μ)² + ε)       x̂ = (x - μ) / σ     y = g ∘ x̂ + b

    x (..., C)   g, b (C,)   y (..., C)           b is optional (ModernBERT has none)

σ is the standard deviation of a row; the small ε avoids a division by 0 where the row is constant.

Backward. With dx̂ = dy ∘ g, and for one row

    ∂x̂_i/∂x_j = (δ_ij - 1/C - x̂_i x̂_j / C) / σ

(δ_ij from x itself, -1/C through μ, the last term through σ: ∂σ/∂x_j = x̂_j / C), summing over i gives

    dx_j = (dx̂_j - mean(dx̂) - x̂_j mean(dx̂ ∘ x̂)) / σ
    dg   = Σ_n dy ∘ x̂           db = Σ_n dy

A row of dx sums to 0 and is (for ε = 0) orthogonal to x̂: shifting or scaling x does not change y.

Source: Ba, Kiros, Hinton (2016), "Layer Normalization", equations 3 and 4.
"""

from typing import NamedTuple

from ..backend import Array, get_array_module
from .rows import row_dot, row_mean, rows


class NormCache(NamedTuple):
    xhat: Array  # (..., C)   x̂
    sigma: Array  # (..., 1)  σ, or rms


def layer_norm_forward(x: Array, g: Array, b: Array | None, eps: float = 1e-5) -> tuple[Array, NormCache]:
    """x̂ = (x - μ) / σ      y = g ∘ x̂ + b"""
    xhat = x - row_mean(x)
    sigma = get_array_module(x).sqrt(row_dot(xhat, xhat) / x.shape[-1] + eps)
    xhat /= sigma
    y = xhat * g
    if b is not None:
        y += b
    return y, NormCache(xhat, sigma)


def layer_norm_backward(dy: Array, cache: NormCache, g: Array) -> Array:
    """dx̂ = dy ∘ g          dx = (dx̂ - mean(dx̂) - x̂ mean(dx̂ ∘ x̂)) / σ"""
    xhat, sigma = cache
    dx = dy * g
    mean_dxhat, mean_product = row_mean(dx), row_dot(dx, xhat) / dx.shape[-1]
    dx -= mean_dxhat
    dx -= mean_product * xhat
    dx /= sigma
    return dx


def gain_gradients(dy: Array, cache: NormCache) -> Array:
    """dg = Σ_n dy ∘ x̂      (layer norm and RMS norm)"""
    return rows(dy * cache.xhat).sum(axis=0)
