"""Rows of arrays, and sums over them: what the derivations use for speed, each under the name of what it computes.

Sums over the last axis are products with a vector: BLAS adds faster than NumPy's `sum`.
"""

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from ..backend import Array, get_array_module


def rows(x: Array) -> Array:
    """(..., n) -> (N, n). One large product is faster than a stack of small ones."""
    return x.reshape(-1, x.shape[-1])


def like(y: Array, x: Array) -> Array:
    """(N, n) -> (..., n), with the leading axes of x: the inverse of rows()."""
    return y.reshape(*x.shape[:-1], y.shape[-1])


def row_max(x: Array) -> Array:
    """max_c x_c of each row: (..., C) -> (..., 1). Of many short rows NumPy's argmax is faster than its max."""
    z = rows(x)
    if get_array_module(x) is not np or len(z) < 16:
        return x.max(axis=-1, keepdims=True)
    return z[np.arange(len(z)), z.argmax(axis=-1)].reshape(*x.shape[:-1], 1)


def row_sum(x: Array) -> Array:
    """Σ_c x_c of each row: (..., C) -> (..., 1)"""
    return x @ column(get_array_module(x), x.shape[-1], 1, x.dtype)


def row_mean(x: Array) -> Array:
    """1/C Σ_c x_c of each row: (..., C) -> (..., 1)"""
    C = x.shape[-1]
    return x @ column(get_array_module(x), C, 1 / C, x.dtype)


@lru_cache(maxsize=256)
def column(xp: ModuleType, n: int, value: float, dtype: Any) -> Array:
    """(n, 1) of `value`, made once: nobody writes to it."""
    return xp.full((n, 1), value, dtype=dtype)


def row_dot(x: Array, y: Array) -> Array:
    """Σ_c x_c y_c of each row: (..., C), (..., C) -> (..., 1)"""
    C = x.shape[-1]
    return (x.reshape(-1, 1, C) @ y.reshape(-1, C, 1)).reshape(*x.shape[:-1], 1)
