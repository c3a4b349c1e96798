"""ReLU, which DistilBERT's classifier uses.

y = max(x, 0)           dy/dx = 1 where x > 0, else 0           dx = dy ∘ dy/dx
"""

from ..backend import Array


def relu_forward(x: Array) -> tuple[Array, Array]:
    """y = max(x, 0).  The cache is dy/dx, as bool."""
    positive = x.real > 0
    return x * positive, positive


def relu_backward(dy: Array, positive: Array) -> Array:
    """dx = dy ∘ dy/dx"""
    return dy * positive
