"""GELU, in the form that BERT uses and in the tanh form of GPT-2.

    y = x Φ(x)          Φ(x) = (1 + erf(x/√2)) / 2,  the normal distribution function;  Φ' = φ = e^(-x²/2) / √(2π)

    dy/dx = Φ + x φ

The tanh form puts a logistic function in the place of Φ:

    u = K (x + C x³)        y = x (1 + tanh u) / 2 = x σ(2u)        K = √(2/π)   C = 0.044715

since (1 + tanh u) / 2 = 1 / (1 + e^(-2u)) = σ(2u). With σ' = σ (1 - σ):

    dy/dx = σ + x σ (1 - σ) 2u'         u' = K (1 + 3 C x²)

Backward, of either:  dx = dy ∘ dy/dx. The slope is computed in forward, where Φ or σ is at hand, and is all that is
kept: one array.

Source: Hendrycks, Gimpel (2016), "Gaussian Error Linear Units", section 2.
"""

import math

from ..backend import Array, erf, get_array_module

K = math.sqrt(2 / math.pi)
C = 0.044715


def gelu_forward(x: Array) -> tuple[Array, Array]:
    """y = x Φ(x).  The cache is dy/dx."""
    Phi = erf(x * math.sqrt(1 / 2))
    Phi += 1
    Phi *= 0.5
    slope = get_array_module(x).exp(x * x * -0.5)
    slope *= x / math.sqrt(2 * math.pi)
    slope += Phi  # Φ + x φ
    return x * Phi, slope


def gelu_tanh_forward(x: Array) -> tuple[Array, Array]:
    """y = x σ(2u)          u = K (x + C x³).  The cache is dy/dx."""
    xx = x * x  # never x**3: a float32 power is many times slower than a product
    sigma = get_array_module(x).tanh(x * (K + K * C * xx))
    sigma += 1
    sigma *= 0.5
    slope = 1 - sigma
    slope *= x
    slope *= 2 * K + 6 * K * C * xx
    slope += 1
    slope *= sigma  # σ (1 + x (1 - σ) 2u')
    return x * sigma, slope


def gelu_backward(dy: Array, slope: Array) -> Array:
    """dx = dy ∘ dy/dx"""
    return dy * slope
