"""GELU, in the exact form that BERT uses and in the tanh form of GPT-2.

    y = x Φ(x)          Φ(x) = (1 + erf(x/√2)) / 2, the standard normal CDF;  Φ' = φ = e^(-x²/2) / √(2π)

    dy/dx = Φ + x φ

Φ is a logistic function of x times something smooth in x²:

    Φ(x) = (1 + tanh u) / 2 = 1 / (1 + e^(-2u)) = σ(2u)         u = artanh erf(x/√2) = x P(x²)

    P(x²) = √(2/π) (1 + (4-π)/(6π) x² + ...)                    (4-π)/(6π) = 0.0455...

The tanh form stops at degree 1, with a fitted constant:

    y = x σ(2u)         u = K (x + C x³)        K = √(2/π)   C = 0.044715

With σ' = σ (1 - σ):

    dy/dx = σ + x σ (1 - σ) 2u'                 u' = K (1 + 3 C x²)

Backward, of either: dx = dy ∘ dy/dx. The forward computes the slope dy/dx, since it has Φ or σ at hand, and keeps
nothing else: one array. Where no backward will come it is half of the work, and left out.

Source: Hendrycks, Gimpel (2016), "Gaussian Error Linear Units", section 2.
"""

import math

from ..backend import Array, get_array_module, normal_cdf, sigmoid_2u

K = math.sqrt(2 / math.pi)
C = 0.044715


def gelu_forward(x: Array, needs_cache: bool = True) -> tuple[Array, Array | None]:
    """y = x Φ(x).  The cache is dy/dx."""
    Phi = normal_cdf(x)
    if not needs_cache:
        return x * Phi, None
    slope = get_array_module(x).exp(x * x * -0.5)
    slope *= x / math.sqrt(2 * math.pi)
    slope += Phi  # Φ + x φ
    return x * Phi, slope


def gelu_tanh_forward(x: Array, needs_cache: bool = True) -> tuple[Array, Array | None]:
    """y = x σ(2u)          u = K (x + C x³).  The cache is dy/dx."""
    KCxx = x * x  # x**3 in float32 is many times slower than products
    KCxx *= K * C
    u = KCxx + K
    u *= x
    sigma = sigmoid_2u(u)
    if not needs_cache:
        return x * sigma, None
    slope = 1 - sigma
    slope *= x
    KCxx *= 6
    KCxx += 2 * K  # 2u'
    slope *= KCxx
    slope += 1
    slope *= sigma  # σ (1 + x (1 - σ) 2u')
    return x * sigma, slope


def gelu_backward(dy: Array, slope: Array) -> Array:
    """dx = dy ∘ dy/dx"""
    return dy * slope
