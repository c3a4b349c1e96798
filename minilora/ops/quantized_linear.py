"""The linear layer over a quantised matrix: Ŵ is made for a product, some rows at a time, and let go.

    y = x Ŵᵀ + b          x (..., in)   Ŵ (out, in)   b (out,)   y (..., out)

Ŵ is a constant, decoded from whole numbers and their scales. So backward has the one product that a frozen layer has,

    ∂L/∂x_ni = Σ_o dy_no Ŵ_oi                                   dx = dy Ŵ

and decodes Ŵ again rather than keep it. There is no dŴ, and no gradient of codes or scales: QLoRA is LoRA beside this
layer. Rows of Ŵ give columns of y, and terms of the sum dx, so that no more of Ŵ than PART numbers ever exists at once.

Source: Dettmers et al. (2023), "QLoRA", equation 5, where Ŵ is doubleDequant(c₁, c₂, W).
"""

from collections.abc import Iterator
from typing import Protocol

from ..backend import Array, get_array_module
from .rows import like, rows

PART = 2**18  # numbers of Ŵ: 1 MiB, which stays in a core's cache


class Decodable(Protocol):
    """What the matrix has to offer (quantization/)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def dense(self, rows: slice) -> Array: ...


def parts(Q: Decodable) -> Iterator[slice]:
    """The rows that are decoded together."""
    n_out, n_in = Q.shape
    step = max(1, PART // n_in)
    return (slice(start, min(start + step, n_out)) for start in range(0, n_out, step))


def quantized_linear_forward(x: Array, Q: Decodable, b: Array | None = None) -> Array:
    """y = x Ŵᵀ + b"""
    flat = rows(x)
    y = get_array_module(x).empty((len(flat), Q.shape[0]), dtype=x.dtype)
    for part in parts(Q):
        y[:, part] = flat @ Q.dense(part).T
    if b is not None:
        y += b
    return like(y, x)


def quantized_linear_backward(dy: Array, Q: Decodable) -> Array:
    """dx = dy Ŵ"""
    first, *others = parts(Q)
    flat = rows(dy)
    dx = flat[:, first] @ Q.dense(first)
    for part in others:
        dx += flat[:, part] @ Q.dense(part)
    return like(dx, dy)
