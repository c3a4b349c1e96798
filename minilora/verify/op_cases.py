"""Every op as something that can be checked, at any sizes: OPS. Those of a variant of adapters are beside its faults,
in problems/.

`OPS[name].draw(size, rng)` draws a case. It asks `size(low, high)` for each of its sizes in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import ops
from ..backend import Array, get_array_module
from .case import Case
from .op import EPS, THETA, Op, Rng, S, Size, drawn, on, one
from .problems import op_cases

# ---- linear ----


def draw_linear(size: Size, rng: Rng) -> Case:
    B, T, n_in, n_out = (size() for _ in range(4))
    return drawn(rng, (B, T, n_out), {"x": rng.standard_normal((B, T, n_in)), "W": rng.standard_normal((n_out, n_in))})


def linear_backward(dy: Array, x: Array, _: Array, W: Array) -> tuple[Array, ...]:
    return ops.linear_backward(dy, W), ops.linear_gradients(dy, x)


def draw_bias(size: Size, rng: Rng) -> Case:
    B, T, n_in, n_out = (size() for _ in range(4))
    x, W = rng.standard_normal((B, T, n_in)), rng.standard_normal((n_out, n_in))
    return drawn(rng, (B, T, n_out), {"b": rng.standard_normal(n_out)}, x=x, W=W)


def bias_forward(b: Array, x: Array, W: Array) -> tuple[Array, Array]:
    return ops.linear_forward(on(b, x), on(b, W), b)


# ---- the low-rank path ----


def draw_low_rank(size: Size, rng: Rng) -> Case:
    B, T, n_in, n_out, r = (size() for _ in range(5))
    x, A = rng.standard_normal((B, T, n_in)), rng.standard_normal((r, n_in))
    return drawn(rng, (B, T, n_out), {"x": x, "A": A, "B": rng.standard_normal((n_out, r))}, s=S)


def low_rank_backward(dy: Array, cache: Any, x: Array, A: Array, B: Array, s: float) -> tuple[Array, ...]:
    dx, dh = ops.lora_backward(dy, A, B, s)
    return dx, ops.lora_A_gradients(dh, cache.x), ops.lora_B_gradients(dy, cache.h, s)


def draw_low_rank_embedding(size: Size, rng: Rng) -> Case:
    ids, V = draw_ids(size, rng)
    C, r = size(), size()
    inputs = {"A": rng.standard_normal((r, V)), "B": rng.standard_normal((C, r))}
    return drawn(rng, (*ids.shape, C), inputs, ids=ids, s=S)


def low_rank_embedding_backward(dy: Array, cache: Any, A: Array, B: Array, ids: Array, s: float) -> tuple[Array, ...]:
    return ops.lora_embedding_A_gradients(dy, cache.x, B, s, A.shape[1]), ops.lora_B_gradients(dy, cache.h, s)


# ---- sparse rows ----


def draw_entries(size: Size, rng: Rng) -> tuple[np.ndarray, dict[str, Any]]:
    """The values of sparse rows, and where they stand. Of several the first is empty, and the others share a column."""
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


# ---- norms and activations ----


def draw_layer_norm(size: Size, rng: Rng) -> Case:
    B, T, C = size(), size(), size(3, 5)
    inputs = {"x": rng.standard_normal((B, T, C)), "g": rng.standard_normal(C), "b": rng.standard_normal(C)}
    return drawn(rng, (B, T, C), inputs, eps=EPS)


def layer_norm_backward(dy: Array, cache: Any, x: Array, g: Array, b: Array, eps: float) -> tuple[Array, ...]:
    return ops.layer_norm_backward(dy, cache, g), ops.gain_gradients(dy, cache), ops.bias_gradients(dy)


def draw_rms_norm(size: Size, rng: Rng) -> Case:
    B, T, C = size(), size(), size(2, 5)
    return drawn(rng, (B, T, C), {"x": rng.standard_normal((B, T, C)), "g": rng.standard_normal(C)}, eps=EPS)


def rms_norm_backward(dy: Array, cache: Any, x: Array, g: Array, eps: float) -> tuple[Array, ...]:
    return ops.rms_norm_backward(dy, cache, g), ops.gain_gradients(dy, cache)


def draw_gelu(size: Size, rng: Rng) -> Case:
    x = 2 * rng.standard_normal((size(), size(), size(2, 4)))
    return drawn(rng, x.shape, {"x": x})


def draw_tanh(size: Size, rng: Rng) -> Case:
    x = rng.standard_normal((size(), size(2, 4)))
    return drawn(rng, x.shape, {"x": x})


def draw_swiglu(size: Size, rng: Rng) -> Case:
    shape = size(), size(), size()
    return drawn(rng, shape, {"gate": 2 * rng.standard_normal(shape), "up": rng.standard_normal(shape)})


# ---- tokens ----


def draw_select(size: Size, rng: Rng) -> Case:
    B, T, C = size(), size(2, 4), size()
    chosen = rng.random((B, T)) < 0.5
    chosen[-1, -1] = True
    b, t = np.nonzero(chosen)
    return drawn(rng, (len(b), C), {"x": rng.standard_normal((B, T, C))}, b=b, t=t)


def draw_ids(size: Size, rng: Rng) -> tuple[np.ndarray, int]:
    """ids (B, T), one of them twice in a sequence, and V"""
    ids, V = rng.integers(0, 3, (size(), size(2, 4))), size(3, 5)
    ids[:, 0] = ids[:, -1]
    return ids, V


def draw_embedding(size: Size, rng: Rng) -> Case:
    ids, V = draw_ids(size, rng)
    W = rng.standard_normal((V, size()))
    return drawn(rng, (*ids.shape, W.shape[1]), {"W": W}, ids=ids)


def draw_dropout(size: Size, rng: Rng) -> Case:
    shape = size(), size(), size(2, 4)
    keep = (rng.random(shape) < 0.6) / 0.6
    keep[0, 0, :2] = 0, 1 / 0.6
    return drawn(rng, shape, {"x": rng.standard_normal(shape)}, keep=keep)


# ---- attention ----


def draw_rope(size: Size, rng: Rng) -> Case:
    B, T, H, D = size(), size(), size(), 2 * size(1, 3)
    return drawn(rng, (B, T, H * D), {"x": rng.standard_normal((B, T, H * D))}, D=D, theta=THETA)


def rope_tables(x: Array, D: int, theta: float = THETA) -> tuple[Array, Array]:
    xp = get_array_module(x)
    return ops.rope_tables(xp, x.shape[1], ops.rope_frequencies(xp, D, theta), x.dtype)


def attention(causal: bool, side: str, R: int, block: int = 0, window: int | None = None) -> Op:
    """R query heads for each key/value head; in blocks, or whole. The outputs of padding are no part of y."""

    def draw(size: Size, rng: Rng) -> Case:
        B, T, G, D = size(), size(6, 9) if block else size(3, 5), size(1, 2), size(1, 3)
        padding = None if side == "none" else pad(side, T, [T - 1, *rng.integers(1, T + 1, B - 1)])
        heads = {"q": G * R, "k": G, "v": G}
        inputs = {name: rng.standard_normal((B, T, n * D)) for name, n in heads.items()}
        return drawn(rng, (B, T, G * R * D), inputs, D=D, causal=causal, padding=padding, window=window)

    def real(a: Array, padding: np.ndarray | None) -> Array:
        return a if padding is None else a * on(a, 1.0 * padding[..., None])

    def forward(
        q: Array, k: Array, v: Array, D: int, causal: bool, padding: np.ndarray | None, window: int | None
    ) -> tuple[Array, Any]:
        y: Array
        cache: Any
        if block:
            seen = None if padding is None else on(q, padding)
            y, cache = ops.blockwise_attention_forward(q, k, v, D, causal, seen, block, window)
        else:
            y, cache = ops.attention_forward(q, k, v, attention_mask(q, causal, padding, window), D)
        return real(y, padding), cache

    def backward(dy: Array, cache: Any, *_: Array, padding: np.ndarray | None, **constants: Any) -> tuple[Array, ...]:
        run = ops.blockwise_attention_backward if block else ops.attention_backward
        return run(real(dy, padding), cache)

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


def pad(side: str, T: int, lengths: list[int]) -> np.ndarray:
    """(B, T), True for the real tokens; the padding is on the left or on the right."""
    real = np.arange(T) < np.array(lengths)[:, None]
    return real[:, ::-1].copy() if side == "left" else real


# ---- losses ----


def cross_entropy(count: int | None) -> Op:
    def draw(size: Size, rng: Rng) -> Case:
        B, T, V = size(), size(2, 4), size(2, 5)
        targets = rng.integers(0, V, (B, T))
        targets[:, 1] = ops.IGNORE
        return drawn(rng, (), {"logits": rng.standard_normal((B, T, V))}, targets=targets, count=count)

    return Op(
        draw,
        lambda logits, targets, count: ops.cross_entropy_forward(logits, on(logits, targets), count),
        one("cross_entropy_backward"),
    )


def draw_mean_squared_error(size: Size, rng: Rng) -> Case:
    shape = size(), size()
    target = rng.standard_normal(shape)
    return drawn(rng, (), {"y": rng.standard_normal(shape)}, target=target)


OPS: dict[str, Op] = {
    "linear": Op(draw_linear, ops.linear_forward, linear_backward),
    "bias": Op(draw_bias, bias_forward, lambda dy, *_, **__: (ops.bias_gradients(dy),)),
    "low rank": Op(draw_low_rank, ops.lora_forward, low_rank_backward),
    "low rank, embedding": Op(
        draw_low_rank_embedding,
        lambda A, B, ids, s: ops.lora_embedding_forward(on(A, ids), A, B, s),
        low_rank_embedding_backward,
    ),
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
    **op_cases(),
    "layer norm": Op(draw_layer_norm, ops.layer_norm_forward, layer_norm_backward),
    "rms norm": Op(draw_rms_norm, ops.rms_norm_forward, rms_norm_backward),
    "gelu": Op(draw_gelu, ops.gelu_forward, one("gelu_backward")),
    "gelu, tanh form": Op(draw_gelu, ops.gelu_tanh_forward, one("gelu_backward")),
    "tanh": Op(draw_tanh, ops.tanh_forward, one("tanh_backward")),
    "select": Op(draw_select, lambda x, b, t: ops.select_forward(x, on(x, b), on(x, t)), one("select_backward")),
    "swiglu": Op(draw_swiglu, ops.swiglu_forward, lambda dy, cache, *_: ops.swiglu_backward(dy, cache)),
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
    "embedding": Op(
        draw_embedding,
        lambda W, ids: ops.embedding_forward(on(W, ids), W),
        lambda dy, cache, W, ids: (ops.embedding_gradients(dy, cache, len(W)),),
    ),
    "cross-entropy": cross_entropy(None),
    "cross-entropy, a part of a batch": cross_entropy(17),
    "mean squared error": Op(
        draw_mean_squared_error,
        lambda y, target: ops.mean_squared_error_forward(y, on(y, target)),
        one("mean_squared_error_backward"),
    ),
    "dropout": Op(draw_dropout, lambda x, keep: ops.dropout_forward(x, on(x, keep)), one("dropout_backward")),
}

# Sizes in the order in which they are asked for, for linear (B, T, in, out), the low-rank path's r after them: all of
# them different, batch 1 and rank 1; every size the same, where a transposed gradient has the right shape; the least.
SIZES = ((2, 1, 3, 4, 2), (1, 3, 2, 4), (3,), (1,))


def sizes(*wanted: int) -> Size:
    """The wanted sizes in turn, each moved into the range that is asked for."""
    turn = itertools.cycle(wanted)

    def size(low: int = 1, high: int = 4) -> int:
        return max(low, min(high, next(turn)))

    return size


def at_every_size(op: str, rng: Rng) -> Iterator[Case]:
    return (OPS[op].draw(sizes(*wanted), rng) for wanted in SIZES)
