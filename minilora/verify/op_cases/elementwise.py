"""Elementwise ops: activations, gates and dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ... import ops
from ...backend import Array
from ..case import Case
from ..op import Op, Rng, Size, drawn, on, one


def draw_gelu(size: Size, rng: Rng) -> Case:
    x = 2 * rng.standard_normal((size(), size(), size(2, 4)))
    return drawn(rng, x.shape, {"x": x})


def draw_tanh(size: Size, rng: Rng) -> Case:
    x = rng.standard_normal((size(), size(2, 4)))
    return drawn(rng, x.shape, {"x": x})


def draw_gate(**constants: Any) -> Callable[[Size, Rng], Case]:
    def draw(size: Size, rng: Rng) -> Case:
        shape = size(), size(), size()
        inputs = {"gate": 2 * rng.standard_normal(shape), "up": rng.standard_normal(shape)}
        return drawn(rng, shape, inputs, **constants)

    return draw


def geglu_backward(dy: Array, cache: Any, *_: Array, **__: Any) -> tuple[Array, ...]:
    return ops.geglu_backward(dy, cache)


def draw_relu(size: Size, rng: Rng) -> Case:
    """No x is so near 0 that a difference crosses the kink, and one is above it."""
    x = rng.standard_normal((size(), size(2, 4)))
    x[0, 0] = abs(x[0, 0])
    return drawn(rng, x.shape, {"x": x + 0.2 * np.sign(x)})


def draw_dropout(size: Size, rng: Rng) -> Case:
    shape = size(), size(), size(2, 4)
    keep = (rng.random(shape) < 0.6) / 0.6
    keep[0, 0, :2] = 0, 1 / 0.6
    return drawn(rng, shape, {"x": rng.standard_normal(shape)}, keep=keep)


OPS = {
    "gelu": Op(draw_gelu, ops.gelu_forward, one("gelu_backward")),
    "gelu, tanh form": Op(draw_gelu, ops.gelu_tanh_forward, one("gelu_backward")),
    "tanh": Op(draw_tanh, ops.tanh_forward, one("tanh_backward")),
    "swiglu": Op(draw_gate(), ops.swiglu_forward, lambda dy, cache, *_: ops.swiglu_backward(dy, cache)),
    "geglu": Op(draw_gate(approximate=False), ops.geglu_forward, geglu_backward),
    "geglu, tanh form": Op(draw_gate(approximate=True), ops.geglu_forward, geglu_backward),
    "relu": Op(draw_relu, ops.relu_forward, one("relu_backward")),
    "dropout": Op(draw_dropout, lambda x, keep: ops.dropout_forward(x, on(x, keep)), one("dropout_backward")),
}
