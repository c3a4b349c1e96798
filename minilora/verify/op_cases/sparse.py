"""Ops that read sparse rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import ops
from ...backend import Array
from ..case import Case
from ..op import Op, Rng, S, Size, drawn, on


def draw_entries(size: Size, rng: Rng) -> tuple[np.ndarray, dict[str, Any]]:
    """(values of sparse rows, {indptr, indices, width}). If there are several rows, the first is empty and the others
    share column 0."""
    N, n_in = size(), size()
    present = rng.random((N, n_in)) < 0.6
    present[:, 0] = True
    present[0] &= N == 1
    indptr = np.concatenate([[0], present.sum(axis=1).cumsum()])
    values = rng.standard_normal(indptr[-1])
    return values, {"indptr": indptr, "indices": np.nonzero(present)[1], "width": n_in}


def sparse(values: Array, indptr: np.ndarray, indices: np.ndarray, width: int) -> Any:
    return ops.CSR(indptr, on(values, indices), values, width)


def draw_sparse_linear(size: Size, rng: Rng) -> Case:
    (values, where), n_out = draw_entries(size, rng), size()
    W = rng.standard_normal((n_out, where["width"]))
    return drawn(rng, (len(where["indptr"]) - 1, n_out), {"values": values, "W": W}, **where)


def draw_sparse_low_rank(size: Size, rng: Rng) -> Case:
    (values, where), n_out, r = draw_entries(size, rng), size(), size()
    inputs = {"values": values, "A": rng.standard_normal((r, where["width"])), "B": rng.standard_normal((n_out, r))}
    return drawn(rng, (len(where["indptr"]) - 1, n_out), inputs, **where, s=S)


def sparse_low_rank_backward(dy: Array, cache: Any, _: Array, A: Array, B: Array, s: float, **__: Any) -> Any:
    dh = ops.lora_h_backward(dy, B, s)
    gradients = ops.lora_A_gradients(dh, cache.x), ops.lora_B_gradients(dy, cache.h, s)
    return ops.csr_backward(dh, cache.x, A.T), *gradients


def draw_embedding_bag(size: Size, rng: Rng) -> Case:
    (values, where), C = draw_entries(size, rng), size()
    W = rng.standard_normal((where["width"], C))
    return drawn(rng, (len(where["indptr"]) - 1, C), {"values": values, "W": W}, **where)


OPS = {
    "linear, sparse rows": Op(
        draw_sparse_linear,
        lambda values, W, **where: ops.linear_forward(sparse(values, **where), W),
        lambda dy, x, _, W, **__: (ops.csr_backward(dy, x, W.T), ops.linear_gradients(dy, x)),
    ),
    "low rank, sparse rows": Op(
        draw_sparse_low_rank,
        lambda values, A, B, s, **where: ops.lora_forward(sparse(values, **where), A, B, s),
        sparse_low_rank_backward,
    ),
    "embedding bag": Op(
        draw_embedding_bag,
        lambda values, W, **where: ops.embedding_bag_forward(sparse(values, **where), W),
        lambda dy, X, _, W, **__: (ops.embedding_bag_backward(dy, X, W), ops.embedding_bag_gradients(dy, X)),
    ),
}
