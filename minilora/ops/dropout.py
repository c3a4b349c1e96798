"""Dropout, with the mask as an argument: the same mask can be replayed, so the gradient can be checked.

    y = x ∘ keep            keep_i = 0 with probability p, else 1/(1-p), so that E[y] = x
    dx = dy ∘ keep

Source: Srivastava et al. (2014), "Dropout"; the factor 1/(1-p) as in every framework today.
"""

from ..backend import Array


def dropout_forward(x: Array, keep: Array) -> tuple[Array, Array]:
    """y = x ∘ keep         x, keep, y (...).  The cache is keep."""
    return x * keep, keep


def dropout_backward(dy: Array, keep: Array) -> Array:
    """dx = dy ∘ keep"""
    return dy * keep
