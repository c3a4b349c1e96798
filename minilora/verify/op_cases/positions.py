"""Positions: as rotations of queries and keys, or as biases of their scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import ops
from ...backend import Array, get_array_module
from ..case import Case
from ..op import THETA, Op, Rng, Size, drawn, on


def draw_rope(size: Size, rng: Rng) -> Case:
    B, T, H, D = size(), size(), size(), 2 * size(1, 3)
    return drawn(rng, (B, T, H * D), {"x": rng.standard_normal((B, T, H * D))}, D=D, theta=THETA)


def rope_tables(x: Array, D: int, theta: float = THETA) -> tuple[Array, Array]:
    xp = get_array_module(x)
    return ops.rope_tables(xp, x.shape[1], ops.rope_frequencies(xp, D, theta), x.dtype)


def draw_relative_bias(size: Size, rng: Rng) -> Case:
    """A bias of H heads for 6 buckets of distances, each shared by several pairs of positions, and a mask."""
    B, T, H, D, both_ways = size(), size(3, 5), size(1, 3), size(1, 3), bool(size() % 2)
    inputs = {name: rng.standard_normal((B, T, H * D)) for name in "qkv"} | {"W": rng.standard_normal((6, H))}
    buckets = ops.relative_buckets(T, T, 0, both_ways, 6, 4)
    mask = np.where(np.tri(T, k=int(both_ways)), 0.0, -1e9)
    return drawn(rng, (B, T, H * D), inputs, D=D, buckets=buckets, mask=mask)


def relative_bias_forward(q: Array, k: Array, v: Array, W: Array, D: int, buckets: Any, mask: Any) -> tuple[Array, Any]:
    b, where = ops.relative_bias_forward(W, on(W, buckets))
    y, cache = ops.attention_forward(q, k, v, b + on(q, mask), D)
    return y, (cache, where)


def relative_bias_backward(
    dy: Array, cache: Any, q: Array, k: Array, v: Array, W: Array, **_: Any
) -> tuple[Array, ...]:
    db = ops.attention_bias_gradients(dy, cache[0])
    return *ops.attention_backward(dy, cache[0]), ops.relative_bias_gradients(db, cache[1], len(W))


OPS = {
    "rope": Op(
        draw_rope,
        lambda x, D, theta: (ops.rope_forward(x, *rope_tables(x, D, theta)), None),
        lambda dy, _, x, D, theta: (ops.rope_backward(dy, *rope_tables(x, D, theta)),),
    ),
    "relative positions": Op(draw_relative_bias, relative_bias_forward, relative_bias_backward),
}
