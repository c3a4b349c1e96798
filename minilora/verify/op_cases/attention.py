"""Attention, whole and in blocks, under every kind of mask."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import ops
from ...backend import Array, get_array_module
from ..case import Case
from ..op import Op, Rng, Size, drawn, on
from .tokens import pad


def attention(
    causal: bool, side: str, R: int, block: int = 0, window: int | None = None, root: float | None = None
) -> Op:
    """R query heads for each key/value head; in blocks of this length, or whole. y is 0 at padding."""

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
