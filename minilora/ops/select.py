"""Selection of tokens, for a head that reads only some: one of each sequence, or those with a label.

    y_n = x_{b_n, t_n}          x (B, T, C)   b, t (N,) integers, no pair twice   y (N, C)

Backward: dx_{b_n, t_n} = dy_n, and 0 for tokens that were not selected.
"""

from ..backend import Array, get_array_module


def select_forward(x: Array, b: Array, t: Array) -> tuple[Array, tuple[Array, Array, tuple[int, ...]]]:
    """y_n = x_{b_n, t_n}.  The cache is b, t and the shape of x."""
    return x[b, t], (b, t, x.shape)


def select_backward(dy: Array, cache: tuple[Array, Array, tuple[int, ...]]) -> Array:
    """dx_{b_n, t_n} = dy_n"""
    b, t, shape = cache
    dx = get_array_module(dy).zeros(shape, dtype=dy.dtype)
    dx[b, t] = dy
    return dx
