"""Embedding bags: the sum, or the mean, of the rows of a table that a bag of ids names.

    y_b = Σ_{e of b} w_e W[id_e]                X (B, V) sparse   W (V, C)   y (B, C)

w_e = 1 gives the sum, w_e = 1 / (the number of ids in b) the mean, and any other w a weighted sum. An id that comes
twice counts twice, and an empty bag gives 0. With a row of X for each bag, w_e in column id_e, that is y = X W: a
linear layer on sparse rows (csr.py) whose weight is Wᵀ. By its rules

    dW[v] = Σ_{e : id_e = v} w_e dy_b(e)        dW = Xᵀ dy
    dw_e  = dy_b(e) · W[id_e]

Ids are not differentiable. Without a bag that names it, a row of W has gradient 0.

Source: PyTorch's EmbeddingBag; Joulin et al. (2016), "Bag of Tricks for Efficient Text Classification", for the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..backend import Array
from .csr import CSR, csr_backward


def bags(ids: Sequence[Sequence[int]], V: int, mean: bool = False, dtype: str = "float32") -> CSR:
    """X (B, V): a row for each list of ids, with how often each id comes, or for the mean the share of it."""
    names = [np.unique(np.asarray(bag, np.int64), return_counts=True) for bag in ids]
    indptr = np.cumsum([0, *(len(each) for each, _ in names)])
    counts = [n / n.sum() if mean else n for _, n in names]
    found = np.concatenate([np.empty(0, np.int64), *(each for each, _ in names)])
    return CSR(indptr, found, np.concatenate([np.empty(0), *counts]).astype(dtype), V)


def embedding_bag_forward(X: CSR, W: Array) -> tuple[Array, CSR]:
    """y = X W.  The cache is X."""
    return X @ W, X


def embedding_bag_backward(dy: Array, X: CSR, W: Array) -> Array:
    """dw_e = dy_b(e) · W[id_e]"""
    return csr_backward(dy, X, W)


def embedding_bag_gradients(dy: Array, X: CSR) -> Array:
    """dW = Xᵀ dy"""
    return (dy.T @ X).T
