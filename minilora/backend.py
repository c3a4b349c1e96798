"""The array library, NumPy or CuPy, and the functions that neither has. The only file that names CuPy."""

from __future__ import annotations

import importlib
import math
import sys
from functools import cache
from types import ModuleType
from typing import TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray  # or a cupy.ndarray, which has the same methods
Rng: TypeAlias = "np.random.Generator | int"  # an argument `rng`: a generator, or a seed for one


def get_array_module(x: Array) -> ModuleType:
    """The library of the array `x`. CuPy is never imported here: a CuPy array means that it has been."""
    if type(x) is np.ndarray:  # the usual case, called some twenty times for each generated token
        return np
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else np


def load_backend(name: str = "numpy") -> ModuleType:
    """The library to make arrays with: "numpy", or "cupy" after a test product on the GPU has succeeded.

    Raises ValueError for another name, ImportError without CuPy, RuntimeError when CuPy finds no
    usable GPU. It never falls back to the CPU.
    """
    if name == "numpy":
        return np
    if name != "cupy":
        raise ValueError(f"unknown backend {name!r}: choose 'numpy' or 'cupy'")
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            "the cupy backend needs CuPy: pip install '.[cuda13]' in the clone (or [cuda12], by the driver's CUDA)"
        ) from error
    try:
        ones = cupy.ones((2, 2), dtype="float32")
        float((ones @ ones + 1).sum())  # needs the driver, the kernel compiler and cuBLAS
    except Exception as error:
        raise RuntimeError(f"CuPy is installed but cannot use a GPU here: {type(error).__name__}: {error}") from error
    return cupy


def to_numpy(x: Array) -> np.ndarray:
    """A CuPy array copied to the host; a NumPy array itself."""
    return np.asarray(x) if get_array_module(x) is np else x.get()  # type: ignore[attr-defined]


def generator(rng: Rng | None) -> np.random.Generator:
    """The generator for an argument `rng`: a generator itself, or a new one from a seed, a whole number from 0 up.

    Raises ValueError for anything else, None included: no result depends on a seed that nobody chose.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer) or rng < 0:
        raise ValueError(f"rng {rng!r} is neither a seed nor a generator: rng=0, or rng=numpy.random.default_rng(0)")
    return np.random.default_rng(rng)


def erf(x: Array) -> Array:
    """The error function, from SciPy, or CuPy's own. Raises ImportError without SciPy."""
    on_host = get_array_module(x) is np
    try:
        return importlib.import_module("scipy.special" if on_host else "cupyx.scipy.special").erf(x)
    except ImportError as error:
        raise ImportError("GELU in the form of BERT needs SciPy in float64: pip install scipy") from error


def sigmoid_2u(u: Array) -> Array:
    """σ(2u) = 1 / (1 + e^(-2u)) = (1 + tanh u) / 2, a new array. tanh never overflows, e^(-2u) does."""
    sigma = get_array_module(u).tanh(u)
    sigma += 1
    sigma *= 0.5
    return sigma


def normal_cdf(x: Array) -> Array:
    """Φ(x) = (1 + erf(x/√2)) / 2, the standard normal CDF, a new array.

    In float32 on the host it is σ(2u), u = x P(x²), where the polynomial P of degree 6 is fitted to 1e-7: many times
    faster than SciPy's erf, which is not needed then. On a GPU erf is one call, as fast as tanh.
    """
    xp = get_array_module(x)
    if x.dtype != "float32" or xp is not np:
        Phi = erf(x * math.sqrt(1 / 2))
    else:
        xx, (highest, *others) = xp.minimum(x * x, SATURATION**2), normal_cdf_coefficients()
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


SATURATION = 5.6  # the x from which Φ is 1 in float32
DEGREE = 6  # of P: the lowest whose error is no larger than float32's rounding


@cache
def normal_cdf_coefficients() -> list[float]:
    """The coefficients of P, highest degree first: a least-squares fit of artanh(erf(x/√2)) / x up to SATURATION.

    The weight is 1 - erf², the derivative of erf = tanh u: it turns an error of u into one of erf.
    """
    from numpy.polynomial import Polynomial

    x = SATURATION * np.sin(np.linspace(0, math.pi / 2, 301)[1:])  # Chebyshev's points in x²
    e, one_minus_e = np.array([(math.erf(a), math.erfc(a)) for a in x * math.sqrt(1 / 2)]).T
    P = np.log((1 + e) / one_minus_e) / (2 * x)
    return Polynomial.fit(x * x, P, DEGREE, w=one_minus_e * (1 + e)).convert().coef[::-1].tolist()
