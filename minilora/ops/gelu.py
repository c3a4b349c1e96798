"""GELU, in the form that BERT uses and in the tanh form of GPT-2.

    y = x Φ(x)          Φ(x) = (1 + erf(x/√2)) / 2,  the normal distribution function;  Φ' = φ = e^(-x²/2) / √(2π)

    dy/dx = Φ + x φ

Φ is a logistic function of x times something smooth in x²:

    Φ(x) = (1 + tanh u) / 2 = 1 / (1 + e^(-2u)) = σ(2u)         u = artanh erf(x/√2) = x P(x²)

    P(x²) = √(2/π) (1 + (4-π)/(6π) x² + ...)                    (4-π)/(6π) = 0.0455...

In float32 a P of degree 6 gives all of Φ that there is (normal_distribution). The tanh form stops at degree 1:

    y = x σ(2u)         u = x K (1 + C x²)          K = √(2/π)   C = 0.044715

With σ' = σ (1 - σ):

    dy/dx = σ + x σ (1 - σ) 2u'         u' = K (1 + 3 C x²)

Backward, of either:  dx = dy ∘ dy/dx. The slope is computed in forward, where Φ or σ is at hand, and is all that is
kept: one array.

Source: Hendrycks, Gimpel (2016), "Gaussian Error Linear Units", section 2.
"""

import math
from functools import cache

import numpy as np

from ..backend import Array, erf, get_array_module

K = math.sqrt(2 / math.pi)
C = 0.044715
FAR = 5.6  # from here on Φ is 1 in float32, and P need not grow
DEGREE = 6  # of P: the least that leaves Φ with no larger error than float32's own


def gelu_forward(x: Array) -> tuple[Array, Array]:
    """y = x Φ(x).  The cache is dy/dx."""
    Phi = normal_distribution(x)
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


def normal_distribution(x: Array) -> Array:
    """Φ(x) = (1 + erf(x/√2)) / 2: in float32 σ(2u), u = x P(x²), to 1e-7; else by an exact erf (backend.erf).

    On a GPU erf is one call, and as fast as tanh.
    """
    xp = get_array_module(x)
    if x.dtype != "float32" or xp is not np:
        Phi = erf(x * math.sqrt(1 / 2))
    else:
        xx, (highest, *others) = xp.minimum(x * x, FAR * FAR), coefficients()
        P = highest * xx
        for coefficient in others[:-1]:  # Horner's rule
            P += coefficient
            P *= xx
        P += others[-1]
        P *= x
        Phi = xp.tanh(P, out=P)
    Phi += 1
    Phi *= 0.5
    return Phi


@cache
def coefficients() -> list[float]:
    """Those of P, the highest first: a least-squares fit of artanh(erf(x/√2)) / x for x up to FAR.

    An error of u is worth (1 - erf²) as much in erf = tanh u: that is the weight.
    """
    from numpy.polynomial import Polynomial

    x = FAR * np.sin(np.linspace(0, math.pi / 2, 301)[1:])  # Chebyshev's points in x²
    e, one_minus_e = np.array([(math.erf(a), math.erfc(a)) for a in x * math.sqrt(1 / 2)]).T
    P = np.log((1 + e) / one_minus_e) / (2 * x)
    return Polynomial.fit(x * x, P, DEGREE, w=one_minus_e * (1 + e)).convert().coef[::-1].tolist()
