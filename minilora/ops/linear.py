"""The linear layer: the same W and b map every row x_n of the input.

    y_no = Σ_i x_ni W_oi + b_o                  x (..., in)   W (out, in)   b (out,)   y (..., out)

With dy = ∂L/∂y, and n running over every row of the batch:

    ∂L/∂x_ni = Σ_o dy_no ∂y_no/∂x_ni = Σ_o dy_no W_oi           dx = dy W
    ∂L/∂W_oi = Σ_n dy_no ∂y_no/∂W_oi = Σ_n dy_no x_ni           dW = dyᵀ x
    ∂L/∂b_o  = Σ_n dy_no                                        db = Σ_n dy_n

dx needs W but not x; dW needs x but not W. So a frozen layer keeps no cache.

Source: Rumelhart, Hinton, Williams (1986), "Learning representations by back-propagating errors".
"""

from ..backend import Array
from .rows import like, rows


def linear_forward(x: Array, W: Array, b: Array | None = None) -> tuple[Array, Array]:
    """y = x Wᵀ + b.  The cache is x, which only dW needs."""
    y = rows(x) @ W.T
    if b is not None:
        y += b
    return like(y, x), x


def linear_backward(dy: Array, W: Array) -> Array:
    """dx = dy W"""
    return like(rows(dy) @ W, dy)


def linear_gradients(dy: Array, x: Array) -> Array:
    """dW = dyᵀ x"""
    return rows(dy).T @ rows(x)


def bias_gradients(dy: Array) -> Array:
    """db = Σ_n dy_n        (linear layers and layer norm)"""
    return rows(dy).sum(axis=0)
