"""RMS norm: layer norm without the mean and without the bias.

    rms = √(1/C Σ_c x_c² + ε)       x̂ = x / rms       y = g ∘ x̂           x (..., C)   g (C,)   y (..., C)

Backward. With dx̂ = dy ∘ g, and for one row

    ∂x̂_i/∂x_j = (δ_ij - x̂_i x̂_j / C) / rms

(∂rms/∂x_j = x̂_j / C), summing over i gives

    dx_j = (dx̂_j - x̂_j mean(dx̂ ∘ x̂)) / rms
    dg   = Σ_n dy ∘ x̂                           (gain_gradients, layer_norm.py)

Source: Zhang, Sennrich (2019), "Root Mean Square Layer Normalization", equation 4.
"""

from ..backend import Array, get_array_module
from .layer_norm import NormCache
from .rows import row_dot


def rms_norm_forward(x: Array, g: Array, eps: float = 1e-5) -> tuple[Array, NormCache]:
    """x̂ = x / rms          y = g ∘ x̂"""
    rms = get_array_module(x).sqrt(row_dot(x, x) / x.shape[-1] + eps)
    xhat = x / rms
    return xhat * g, NormCache(xhat, rms)


def rms_norm_backward(dy: Array, cache: NormCache, g: Array) -> Array:
    """dx̂ = dy ∘ g          dx = (dx̂ - x̂ mean(dx̂ ∘ x̂)) / rms"""
    xhat, rms = cache
    dx = dy * g
    dx -= row_dot(dx, xhat) / dx.shape[-1] * xhat
    dx /= rms
    return dx
