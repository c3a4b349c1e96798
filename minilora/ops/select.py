"""Selection: one token of each sequence, for a head that judges the whole.

    y_b = x_{b, t_b}            x (B, T, C)   t (B,) integers   y (B, C)

What is not selected has no influence: dx_{b, t_b} = dy_b, and 0 elsewhere.
"""

from ..backend import Array, get_array_module


def select_forward(x: Array, t: Array) -> tuple[Array, tuple[Array, int]]:
    """y_b = x_{b, t_b}.  The cache is t and T."""
    return x[get_array_module(x).arange(len(x)), t], (t, x.shape[1])


def select_backward(dy: Array, cache: tuple[Array, int]) -> Array:
    """dx_{b, t_b} = dy_b"""
    (t, T), (B, C) = cache, dy.shape
    xp = get_array_module(dy)
    dx = xp.zeros((B, T, C), dtype=dy.dtype)
    dx[xp.arange(B), t] = dy
    return dx
