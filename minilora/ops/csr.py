"""Sparse rows: an x (N, in) of which only the entries are stored, in a linear layer and in the low-rank path.

CSR, compressed sparse rows: row n has the entries e = indptr[n], ..., indptr[n+1] - 1, each a column and a value,

    x_ni = values_e where indices_e = i, and 0 elsewhere        indptr (N + 1,)   indices, values (E,)

linear.py and lora.py read x in two products alone, with M = Wᵀ (in, out) or Aᵀ (in, r). Their sums over i, and over
n, need no zeros:

    y = x M       y_n = Σ_i x_ni M_i = Σ_{e of n} values_e M[indices_e]               rows of M are gathered
    G = dyᵀ x     G[:, i] = Σ_n dy_n x_ni = Σ_{e : indices_e = i} values_e dy_n(e)    dW, or dA from dh: a scatter-add

That is E·out multiplications instead of N·in·out, and exact. As `x @ M` and `dy.T @ x` are these products for a CSR x,
linear_forward, linear_gradients, lora_forward and lora_A_gradients take one as they stand. A column without an entry
has dW[:, i] = 0 and dA[:, i] = 0.

dx = dy W has no zeros: it would be (N, in) numbers, which nobody reads where x is what the data gives. The part of it
at the entries costs no more than y:

    ∂L/∂values_e = dy_n(e) · M[indices_e]

Source: Saad (2003), "Iterative Methods for Sparse Linear Systems", section 3.4, for the format.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..backend import Array, get_array_module, to_numpy


class CSR:
    """Sparse rows (N, in), where a dense x would stand: Linear and LoRALinear take them.

    indptr (N + 1,) and indices (E,) integers, values (E,) floats, `width` the number of columns, in. A column comes at
    most once in a row. x[rows] are rows of it, as a CSR. Raises ValueError for arrays that are no such matrix.
    """

    __array_ufunc__ = None  # so that `array @ x` is __rmatmul__

    def __init__(self, indptr: Any, indices: Array, values: Array, width: int) -> None:
        self.indptr, self.indices, self.values = to_numpy(np.asarray(indptr)), indices, values
        self.shape = len(self.indptr) - 1, width
        counts, columns = np.diff(self.indptr), to_numpy(indices)
        if not len(self.indptr) or self.indptr[0] != 0 or (counts < 0).any() or self.indptr[-1] != len(columns):
            raise ValueError(f"indptr goes from 0 up to the {len(columns)} entries; it is {self.indptr}")
        if values.shape != columns.shape:
            raise ValueError(f"{len(columns)} indices need as many values, not {values.shape}")
        if len(columns) and not 0 <= columns.min() <= columns.max() < width:
            raise ValueError(f"columns are from 0 to {width - 1}; {columns.min()} to {columns.max()} are given")
        if len(np.unique(np.repeat(np.arange(len(counts)), counts) * width + columns)) < len(columns):
            raise ValueError("a column comes twice in a row: add its values up, as scipy's sum_duplicates() does")

    @classmethod
    def of(cls, x: Any) -> CSR:
        """From a matrix of scipy.sparse, in any of its formats; values that stand in one place are added up."""
        x = x.tocsr(copy=True)
        x.sum_duplicates()
        return cls(x.indptr, x.indices, x.data, x.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> CSR:
        rows = np.atleast_1d(np.arange(len(self))[rows])
        entries = np.concatenate([np.arange(0), *(np.arange(*self.indptr[n : n + 2]) for n in rows)])
        entries = get_array_module(self.values).asarray(entries)
        indptr = np.concatenate([[0], np.diff(self.indptr)[rows].cumsum()])
        return CSR(indptr, self.indices[entries], self.values[entries], self.shape[1])

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """Of each row, the columns and the values."""
        for start, end in zip(self.indptr, self.indptr[1:], strict=False):
            yield self.indices[start:end], self.values[start:end]

    def reshape(self, *shape: int) -> CSR:
        """rows() of it is itself."""
        if shape not in ((-1, self.shape[1]), self.shape):
            raise ValueError(f"sparse rows {self.shape} have no other shape: {shape}")
        return self

    def __matmul__(self, M: Array) -> Array:
        """y_n = Σ_{e of n} values_e M[indices_e]: M (in, k) -> y (N, k). A row at a time, as all of M[indices]
        would be E k numbers."""
        xp = get_array_module(M)
        if len(self.values) > len(M):
            M = xp.ascontiguousarray(M)  # one pass over a Wᵀ that is a view, for many reads across its rows
        y = xp.empty((len(self), M.shape[1]), dtype=xp.result_type(self.values, M))
        for n, (i, v) in enumerate(self):
            y[n] = v @ M[i]
        return y

    def __rmatmul__(self, dyT: Array) -> Array:
        """G[:, i] = Σ_{e : indices_e = i} values_e dy_n(e): dyᵀ (k, N) -> G (k, in)"""
        xp = get_array_module(dyT)
        G = xp.zeros((self.shape[1], len(dyT)), dtype=xp.result_type(self.values, dyT))
        for n, (i, v) in enumerate(self):
            G[i] += v[:, None] * dyT[:, n]  # no i twice, or one of them would be lost
        return G.T


def csr_backward(dy: Array, x: CSR, M: Array) -> Array:
    """∂L/∂values_e = dy_n(e) · M[indices_e]: dy (N, k), M (in, k) -> (E,)"""
    return get_array_module(dy).concatenate([M[i] @ row for (i, _), row in zip(x, dy, strict=True)])
