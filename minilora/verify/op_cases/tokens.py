"""Tokens: their embedding, and choosing or averaging them."""

from __future__ import annotations

import numpy as np

from ... import ops
from ..case import Case
from ..op import Op, Rng, Size, drawn, on, one


def draw_select(size: Size, rng: Rng) -> Case:
    B, T, C = size(), size(2, 4), size()
    chosen = rng.random((B, T)) < 0.5
    chosen[-1, -1] = True
    b, t = np.nonzero(chosen)
    return drawn(rng, (len(b), C), {"x": rng.standard_normal((B, T, C))}, b=b, t=t)


def draw_mean_tokens(size: Size, rng: Rng) -> Case:
    B, T, C = size(), size(2, 4), size()
    real = pad("right", T, [T, *rng.integers(1, T + 1, B - 1)])
    return drawn(rng, (B, C), {"x": rng.standard_normal((B, T, C))}, real=real)


def draw_ids(size: Size, rng: Rng) -> tuple[np.ndarray, int]:
    """ids (B, T), one of them twice in a sequence, and V"""
    ids, V = rng.integers(0, 3, (size(), size(2, 4))), size(3, 5)
    ids[:, 0] = ids[:, -1]
    return ids, V


def draw_embedding(size: Size, rng: Rng) -> Case:
    ids, V = draw_ids(size, rng)
    W = rng.standard_normal((V, size()))
    return drawn(rng, (*ids.shape, W.shape[1]), {"W": W}, ids=ids)


def pad(side: str, T: int, lengths: list[int]) -> np.ndarray:
    """(B, T), True for the real tokens; the padding is on the left or on the right."""
    real = np.arange(T) < np.array(lengths)[:, None]
    return real[:, ::-1].copy() if side == "left" else real


OPS = {
    "select": Op(draw_select, lambda x, b, t: ops.select_forward(x, on(x, b), on(x, t)), one("select_backward")),
    "mean of tokens": Op(
        draw_mean_tokens, lambda x, real: ops.mean_tokens_forward(x, on(x, real)), one("mean_tokens_backward")
    ),
    "embedding": Op(
        draw_embedding,
        lambda W, ids: ops.embedding_forward(on(W, ids), W),
        lambda dy, cache, W, ids: (ops.embedding_gradients(dy, cache, len(W)),),
    ),
}
