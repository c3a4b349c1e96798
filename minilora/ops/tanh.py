"""Hyperbolic tangent, which BERT's pooler uses.

y = tanh x          dy/dx = 1 - y²          dx = dy ∘ (1 - y²)
"""

from ..backend import Array, get_array_module


def tanh_forward(x: Array) -> tuple[Array, Array]:
    """y = tanh x.  The cache is y."""
    y = get_array_module(x).tanh(x)
    return y, y


def tanh_backward(dy: Array, y: Array) -> Array:
    """dx = dy ∘ (1 - y²)"""
    return dy * (1 - y * y)
