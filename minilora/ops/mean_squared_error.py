"""Mean squared error, averaged over all elements.

    L = 1/n Σ_i (y_i - t_i)²            y, target t (...), n elements each   L ()

Backward:

    dy_i = dL · 2 (y_i - t_i) / n

Source: Legendre (1805), "Sur la méthode des moindres quarrés".
"""

from ..backend import Array


def mean_squared_error_forward(y: Array, target: Array) -> tuple[Array, Array]:
    """L = 1/n Σ (y - t)².  The cache is the residual y - t. Raises ValueError for a target of another shape."""
    if target.shape != y.shape:
        raise ValueError(f"the target has shape {target.shape}, and {y.shape} is needed")
    residual = y - target
    return (residual * residual).sum() / residual.size, residual


def mean_squared_error_backward(dL: Array | float, residual: Array) -> Array:
    """dy = 2 dL/n (y - t)"""
    return (2 * dL / residual.size) * residual
