"""The low-rank path: of rows, of ids, of some tokens of a sequence, and with a B for each task."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import ops
from ...backend import Array
from ..case import Case
from ..op import Op, Rng, S, Size, drawn, on
from .tokens import draw_ids


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


def draw_on_some_tokens(size: Size, rng: Rng) -> Case:
    """In every second sequence the path acts from some token on, in the others at random tokens."""
    case = draw_low_rank(size, rng)
    B, T = case.dy.shape[:2]
    on_from = np.arange(T) >= rng.integers(0, T)
    mask = np.where(np.arange(B)[:, None] % 2 == 0, on_from, rng.random((B, T)) < 0.5)
    return drawn(rng, case.dy.shape, case.inputs, s=S, mask=mask)


def on_some_tokens_forward(x: Array, A: Array, B: Array, s: float, mask: np.ndarray) -> tuple[Array, Any]:
    y, cache = ops.lora_forward(ops.pick(x, on(x, mask)), A, B, s)
    return ops.put_back(y, on(x, mask)), cache


def on_some_tokens_backward(
    dy: Array, cache: Any, x: Array, A: Array, B: Array, s: float, mask: np.ndarray
) -> tuple[Array, ...]:
    dx, dA, dB = low_rank_backward(ops.pick(dy, on(x, mask)), cache, x, A, B, s)
    return ops.put_back(dx, on(x, mask)), dA, dB


def draw_tasks(size: Size, rng: Rng) -> Case:
    """Three tasks, of n, 0 and n + 1 rows."""
    n, n_in, n_out, r = (size() for _ in range(4))
    bounds = np.array([0, n, n, 2 * n + 1])
    x, A, B = (rng.standard_normal(shape) for shape in ((2 * n + 1, n_in), (r, n_in), (3, n_out, r)))
    return drawn(rng, (2 * n + 1, n_out), {"x": x, "A": A, "B": B}, s=S, bounds=bounds)


def tasks_backward(
    dy: Array, cache: Any, x: Array, A: Array, B: Array, s: float, bounds: np.ndarray
) -> tuple[Array, ...]:
    dx, dh = ops.lora_tasks_backward(dy, A, B, s, bounds)
    return dx, ops.lora_A_gradients(dh, cache.x), ops.lora_tasks_B_gradients(dy, cache.h, s, bounds)


OPS = {
    "low rank": Op(draw_low_rank, ops.lora_forward, low_rank_backward),
    "low rank, embedding": Op(
        draw_low_rank_embedding,
        lambda A, B, ids, s: ops.lora_embedding_forward(on(A, ids), A, B, s),
        low_rank_embedding_backward,
    ),
    "low rank, on some tokens": Op(draw_on_some_tokens, on_some_tokens_forward, on_some_tokens_backward),
    "low rank, a B for each task": Op(draw_tasks, ops.lora_tasks_forward, tasks_backward),
}
