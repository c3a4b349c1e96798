"""Layer norm and RMS norm."""

from __future__ import annotations

from typing import Any

from ... import ops
from ...backend import Array
from ..case import Case
from ..op import EPS, Op, Rng, Size, drawn


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


OPS = {
    "layer norm": Op(draw_layer_norm, ops.layer_norm_forward, layer_norm_backward),
    "rms norm": Op(draw_rms_norm, ops.rms_norm_forward, rms_norm_backward),
}
