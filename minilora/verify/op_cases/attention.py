"""Attention, whole and in blocks, under every kind of mask; and the positions that it knows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import ops
from ...backend import Array, get_array_module
from ..case import Case
from ..op import THETA, Op, Rng, Size, drawn, on
from .tokens import pad


def draw_rope(size: Size, rng: Rng) -> Case:
    B, T, H, D = size(), size(), size(), 2 * size(1, 3)
    return drawn(rng, (B, T, H * D), {"x": rng.standard_normal((B, T, H * D))}, D=D, theta=THETA)


def rope_tables(x: Array, D: int, theta: float = THETA) -> tuple[Array, Array]:
    xp = get_array_module(x)
    return ops.rope_tables(xp, x.shape[1], ops.rope_frequencies(xp, D, theta), x.dtype)


def attention(
    causal: bool, side: str, R: int, block: int = 0, window: int | None = None, root: float | None = None
) -> Op:
    """R query heads for each key/value head; in blocks, or whole. The outputs of padding are no part of y."""

    def draw(size: Size, rng: Rng) -> Case:
        B, T, G, D = size(), size(6, 9) if block else size(3, 5), size(1, 2), size(1, 3)
        padding = None if side == "none" else pad(side, T, [T - 1, *rng.integers(1, T + 1, B - 1)])
        heads = {"q": G * R, "k": G, "v": G}
        inputs = {name: rng.standard_normal((B, T, n * D)) for name, n in heads.items()}
        constants = {"D": D, "causal": causal, "padding": padding, "window": window, "root": root}
        return drawn(rng, (B, T, G * R * D), inputs, **constants)

    def real(a: Array, padding: np.ndarray | None) -> Array:
        return a if padding is None else a * on(a, 1.0 * padding[..., None])

    def forward(
        q: Array, k: Array, v: Array, D: int, causal: bool, padding: np.ndarray | None, window: int | None,
        root: float | None,
    ) -> tuple[Array, Any]:  # fmt: skip
        y: Array
        cache: Any
        if block:
            seen = None if padding is None else on(q, padding)
            y, cache = ops.blockwise_attention_forward(q, k, v, D, causal, seen, block, window, root)
        else:
            y, cache = ops.attention_forward(q, k, v, attention_mask(q, causal, padding, window), D, root)
        return real(y, padding), cache

    def backward(dy: Array, cache: Any, *_: Array, padding: np.ndarray | None, **constants: Any) -> tuple[Array, ...]:
        run = ops.blockwise_attention_backward if block else ops.attention_backward
        return run(real(dy, padding), cache, constants["root"])

    return Op(draw, forward, backward)


def draw_cross_attention(size: Size, rng: Rng) -> Case:
    """As many queries as there are keys, or more, or fewer."""
    B, Tq, Tk, G, R, D = size(), size(1, 5), size(2, 4), size(1, 2), size(1, 3), size(1, 3)
    mask = np.where(rng.random((Tq, Tk)) < 0.7, 0.0, -1e9)
    mask[:, :2] = 0  # every query sees two keys, at least
    shapes = {"q": (B, Tq, G * R * D), "k": (B, Tk, G * D), "v": (B, Tk, G * D)}
    return drawn(rng, shapes["q"], {name: rng.standard_normal(s) for name, s in shapes.items()}, D=D, mask=mask)


def draw_relative_bias(size: Size, rng: Rng) -> Case:
    """The bias of two heads at four distances, some of which pairs share, under a mask."""
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


def draw_projected_attention(size: Size, rng: Rng) -> Case:
    B, n, m, G, R, D = size(), size(3, 5), size(2, 4), size(1, 2), size(1, 3), size(1, 3)
    shapes = {"q": (B, n, G * R * D), "k": (B, n, G * D), "v": (B, n, G * D), "E": (m, n), "F": (m, n)}
    return drawn(rng, shapes["q"], {name: rng.standard_normal(s) for name, s in shapes.items()}, D=D)


def projected_attention_backward(
    dy: Array, cache: Any, q: Array, k: Array, v: Array, E: Array, F: Array, D: int
) -> tuple[Array, ...]:
    *dqkv, dk_m, dv_m = ops.projected_attention_backward(dy, cache, E, F)
    return *dqkv, ops.projection_gradients(dk_m, cache.k), ops.projection_gradients(dv_m, cache.v)


def attention_mask(x: Array, causal: bool, padding: np.ndarray | None, window: int | None = None) -> Array | None:
    xp = get_array_module(x)
    padding = None if padding is None else xp.asarray(padding)
    return ops.attention_mask(xp, x.shape[1], causal, padding, x.dtype, window=window)


OPS = {
    "rope": Op(
        draw_rope,
        lambda x, D, theta: (ops.rope_forward(x, *rope_tables(x, D, theta)), None),
        lambda dy, _, x, D, theta: (ops.rope_backward(dy, *rope_tables(x, D, theta)),),
    ),
    "attention": attention(False, "none", 1),
    "attention, grouped": attention(False, "none", 3),
    "attention, padded left": attention(False, "left", 2),
    "attention, padded right": attention(False, "right", 1),
    "attention, causal": attention(True, "none", 2),
    "attention, causal, padded left": attention(True, "left", 1),
    "attention, causal, padded right": attention(True, "right", 3),
    "attention, sliding window": attention(True, "left", 2, window=2),
    "attention, symmetric window": attention(False, "right", 2, window=2),
    "attention, another root": attention(True, "none", 2, root=1.7),
    "attention, another number of keys": Op(
        draw_cross_attention,
        lambda q, k, v, D, mask: ops.attention_forward(q, k, v, on(q, mask), D),
        lambda dy, cache, *_, **__: ops.attention_backward(dy, cache),
    ),
    "relative positions": Op(draw_relative_bias, relative_bias_forward, relative_bias_backward),
    "low-rank attention": Op(draw_projected_attention, ops.projected_attention_forward, projected_attention_backward),
    "attention in blocks, grouped": attention(False, "none", 3, block=1),
    "attention in blocks, padded right": attention(False, "right", 1, block=1),
    "attention in blocks, causal": attention(True, "none", 1, block=2),
    "attention in blocks, causal, padded left": attention(True, "left", 2, block=1),
    "attention in blocks, sliding window": attention(True, "none", 2, block=2, window=4),
    "attention in blocks, sliding window, padded right": attention(True, "right", 1, block=2, window=3),
    "attention in blocks, symmetric window": attention(False, "none", 2, block=2, window=3),
    "attention in blocks, symmetric window, padded left": attention(False, "left", 1, block=1, window=2),
    "attention in blocks, another root": attention(True, "right", 1, block=2, root=1.7),
}
