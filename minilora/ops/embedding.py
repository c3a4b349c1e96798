"""Embedding: look rows up in a table.

    y_n = W[id_n]               ids (...) integers   W (V, C)   y (..., C)

The same row may be looked up many times, and its gradient is the sum over all of them:

    dW[v] = Σ_{n : id_n = v} dy_n

Ids are not differentiable: there is no dx. (As y = onehot(ids) W it is a linear layer, and dW = onehotᵀ dy.)

Source: Bengio et al. (2003), "A Neural Probabilistic Language Model", section 2.
"""

from ..backend import Array, get_array_module
from .rows import rows


def embedding_forward(ids: Array, W: Array) -> tuple[Array, Array]:
    """y = W[ids].  The cache is ids."""
    return W.take(ids, axis=0), ids  # faster than W[ids]


def embedding_gradients(dy: Array, ids: Array, V: int) -> Array:
    """dW[v] = Σ_{n : id_n = v} dy_n        dy (..., C), ids (...) -> dW (V, C)"""
    xp = get_array_module(dy)
    dW = xp.zeros((V, dy.shape[-1]), dtype=dy.dtype)
    xp.add.at(dW, ids.reshape(-1), rows(dy))  # dW[ids] += dy would count a repeated id once
    return dW
