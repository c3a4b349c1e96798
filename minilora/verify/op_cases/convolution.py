"""Convolutions, plain and with a low-rank path, along one axis and two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ... import ops
from ...backend import Array
from ..case import Case
from ..op import Op, Rng, S, Size, drawn


def draw_convolution(axes: int, low_rank: bool) -> Callable[[Size, Rng], Case]:
    """One axis or two, each with a kernel, stride, padding and dilation of its own."""

    def draw(size: Size, rng: Rng) -> Case:
        N, C, n_out = size(), size(), size()
        along = []  # of each axis: kernel, stride, padding, dilation, and a size of x that the first window reaches
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


def forward(x: Array, W: Array, window: ops.Window) -> tuple[Array, Array]:
    return ops.convolution_forward(x, W, None, window)


def draw_windows(size: Size, rng: Rng) -> Case:
    case = draw_convolution(2, False)(size, rng)
    x, window = case.inputs["x"], case.constants["window"]
    return drawn(rng, ops.windows(x, window).shape, {"x": x}, window=window)


OPS = {
    "windows": Op(
        draw_windows,
        lambda x, window: (ops.windows(x, window), None),
        lambda dy, _, x, window: (ops.windows_backward(dy, window, x.shape),),
    ),
    **{f"convolution, {n}-D": Op(draw_convolution(n, False), forward, convolution_backward) for n in (1, 2)},
    **{
        f"low rank, convolution, {n}-D": Op(
            draw_convolution(n, True),
            lambda *arguments, **constants: ops.lora_convolution_forward(*arguments, **constants),
            low_rank_convolution_backward,
        )
        for n in (1, 2)
    },
}
