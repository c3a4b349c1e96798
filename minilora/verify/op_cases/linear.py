"""A frozen or trained matrix, and a bias."""

from __future__ import annotations

from ... import ops
from ...backend import Array
from ..case import Case
from ..op import Op, Rng, Size, drawn, on


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


OPS = {
    "linear": Op(draw_linear, ops.linear_forward, linear_backward),
    "bias": Op(draw_bias, bias_forward, lambda dy, *_, **__: (ops.bias_gradients(dy),)),
}
