"""Dropout, with the mask as an argument: a forward can be repeated with the same mask, and its gradient checked.

    y = x ∘ keep            keep_i = 0 with probability p, else 1/(1-p), so that E[y] = x
    dx = dy ∘ keep

Source: Srivastava et al. (2014), "Dropout"; scaled by 1/(1-p) in training, "inverted dropout", as in PyTorch.
"""

from ..backend import Array


def dropout_forward(x: Array, keep: Array) -> tuple[Array, Array]:
    """y = x ∘ keep         x, keep, y (...).  The cache is keep."""
    return x * keep, keep


def dropout_backward(dy: Array, keep: Array) -> Array:
    """dx = dy ∘ keep"""
    return dy * keep
