"""Every op as something that can be checked, at any sizes: OPS. Those of a variant of adapters are beside its faults,
in problems/.

`OPS[name].draw(size, rng)` draws a case. It asks `size(low, high)` for each of its sizes in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import ops
from ..backend import Array, get_array_module
from .case import Case
from .op import EPS, TEMPERATURE, THETA, Op, Rng, S, Size, drawn, on, one
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


def draw_on_some_tokens(size: Size, rng: Rng) -> Case:
    """A text that is on from one token on, the next here and there, and so on."""
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
    """Each task has a row, but for one in the middle, which has none."""
    n, n_in, n_out, r = (size() for _ in range(4))
    bounds = np.array([0, n, n, 2 * n + 1])
    x, A, B = (rng.standard_normal(shape) for shape in ((2 * n + 1, n_in), (r, n_in), (3, n_out, r)))
    return drawn(rng, (2 * n + 1, n_out), {"x": x, "A": A, "B": B}, s=S, bounds=bounds)


def tasks_backward(
    dy: Array, cache: Any, x: Array, A: Array, B: Array, s: float, bounds: np.ndarray
) -> tuple[Array, ...]:
    dx, dh = ops.lora_tasks_backward(dy, A, B, s, bounds)
    return dx, ops.lora_A_gradients(dh, cache.x), ops.lora_tasks_B_gradients(dy, cache.h, s, bounds)


# ---- convolutions ----


def draw_convolution(axes: int, low_rank: bool) -> Callable[[Size, Rng], Case]:
    """One axis or two, each with a kernel, stride, padding and dilation of its own."""

    def draw(size: Size, rng: Rng) -> Case:
        N, C, n_out = size(), size(), size()
        along = []  # of each axis: its window, and a size of x that the first one reaches into
        for _ in range(axes):
            k, t, p, d = size(1, 3), size(), size(0, 2), size(1, 3)
            p = min(p, d * (k - 1))
            along.append((k, t, p, d, d * (k - 1) + 1 - p + size(0, 3)))
        *fields, numbers = zip(*along, strict=True)
        window, x = ops.Window(*fields), rng.standard_normal((N, C, *numbers))
        shape = (N, n_out, *window.outputs(x.shape[2:]))
        if not low_rank:
            return drawn(rng, shape, {"x": x, "W": rng.standard_normal((n_out, C, *window.kernel))}, window=window)
        r = size()
        A, B = rng.standard_normal((r, C, *window.kernel)), rng.standard_normal((n_out, r))
        return drawn(rng, shape, {"x": x, "A": A, "B": B}, s=S, window=window)

    return draw


def convolution_backward(dy: Array, cache: Array, x: Array, W: Array, window: ops.Window) -> tuple[Array, ...]:
    return ops.convolution_backward(dy, W, window, x.shape), ops.convolution_gradients(dy, cache, window)


def low_rank_convolution_backward(
    dy: Array, cache: Any, x: Array, A: Array, B: Array, s: float, window: ops.Window
) -> tuple[Array, ...]:
    dx, dh = ops.lora_convolution_backward(dy, A, B, s, window, x.shape)
    dA = ops.lora_convolution_A_gradients(dh, cache.x, window)
    return dx, dA, ops.lora_convolution_B_gradients(dy, cache.h, s)


def convolutions() -> dict[str, Op]:
    def forward(x: Array, W: Array, window: ops.Window) -> tuple[Array, Array]:
        return ops.convolution_forward(x, W, None, window)

    def draw_windows(size: Size, rng: Rng) -> Case:
        case = draw_convolution(2, False)(size, rng)
        x, window = case.inputs["x"], case.constants["window"]
        return drawn(rng, ops.windows(x, window).shape, {"x": x}, window=window)

    gather = Op(
        draw_windows,
        lambda x, window: (ops.windows(x, window), None),
        lambda dy, _, x, window: (ops.windows_backward(dy, window, x.shape),),
    )
    plain = {f"convolution, {n}-D": Op(draw_convolution(n, False), forward, convolution_backward) for n in (1, 2)}
    return (
        {"windows": gather}
        | plain
        | {
            f"low rank, convolution, {n}-D": Op(
                draw_convolution(n, True),
                lambda *arguments, **constants: ops.lora_convolution_forward(*arguments, **constants),
                low_rank_convolution_backward,
            )
            for n in (1, 2)
        }
    )


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


def draw_geglu(approximate: bool) -> Callable[[Size, Rng], Case]:
    def draw(size: Size, rng: Rng) -> Case:
        shape = size(), size(), size()
        inputs = {"gate": 2 * rng.standard_normal(shape), "up": rng.standard_normal(shape)}
        return drawn(rng, shape, inputs, approximate=approximate)

    return draw


def geglu_backward(dy: Array, cache: Any, *_: Array, **__: Any) -> tuple[Array, ...]:
    return ops.geglu_backward(dy, cache)


def draw_relu(size: Size, rng: Rng) -> Case:
    """No x is so near 0 that a difference crosses the kink, and one is above it."""
    x = rng.standard_normal((size(), size(2, 4)))
    x[0, 0] = abs(x[0, 0])
    return drawn(rng, x.shape, {"x": x + 0.2 * np.sign(x)})


# ---- tokens ----


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


def kl(name: str, count: int | None) -> Op:
    """`name` is that of its functions in ops."""

    def draw(size: Size, rng: Rng) -> Case:
        B, T, V = size(), size(2, 4), size(2, 5)
        labelled = np.ones((B, T), bool)
        labelled[:, 1] = False
        t = 2 * rng.standard_normal((B, T, V))
        z = {"z": rng.standard_normal((B, T, V))}
        return drawn(rng, (), z, t=t, T=TEMPERATURE, labelled=labelled, count=count)

    def forward(z: Array, t: Array, T: float, labelled: Array, count: int | None) -> tuple[Array, Any]:
        return getattr(ops, f"{name}_forward")(z, on(z, t), T, on(z, labelled), count)

    return Op(draw, forward, one(f"{name}_backward"))


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
    "low rank, on some tokens": Op(draw_on_some_tokens, on_some_tokens_forward, on_some_tokens_backward),
    "low rank, a B for each task": Op(draw_tasks, ops.lora_tasks_forward, tasks_backward),
    **convolutions(),
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
    "geglu": Op(draw_geglu(False), ops.geglu_forward, geglu_backward),
    "geglu, tanh form": Op(draw_geglu(True), ops.geglu_forward, geglu_backward),
    "relu": Op(draw_relu, ops.relu_forward, one("relu_backward")),
    "mean of tokens": Op(
        draw_mean_tokens, lambda x, real: ops.mean_tokens_forward(x, on(x, real)), one("mean_tokens_backward")
    ),
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
    "embedding": Op(
        draw_embedding,
        lambda W, ids: ops.embedding_forward(on(W, ids), W),
        lambda dy, cache, W, ids: (ops.embedding_gradients(dy, cache, len(W)),),
    ),
    "cross-entropy": cross_entropy(None),
    "cross-entropy, a part of a batch": cross_entropy(17),
    "KL divergence": kl("kl", None),
    "KL divergence, a part of a batch": kl("kl", 17),
    "KL divergence, reversed": kl("reverse_kl", None),
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
