"""The linear layer over a quantised matrix: Ŵ is made for a product, some rows at a time, and let go.

    y = x Ŵᵀ + b          x (..., in)   Ŵ (out, in)   b (out,)   y (..., out)

Ŵ is a constant, decoded from whole numbers and their scales. So backward has the one product that a frozen layer has,

    ∂L/∂x_ni = Σ_o dy_no Ŵ_oi                                   dx = dy Ŵ

and decodes Ŵ again rather than keep it. There is no dŴ, and no gradient of codes or scales: QLoRA is LoRA beside this
layer. Rows of Ŵ give columns of y, and terms of the sum dx, so that of Ŵ no more than some rows ever exist at once.

Source: Dettmers et al. (2023), "QLoRA", equation 5, where Ŵ is doubleDequant(c₁, c₂, W).
"""

from ..backend import Array, get_array_module
from ..quantization.base import Quantized, parts
from .rows import like, rows


def quantized_linear_forward(x: Array, Q: Quantized, b: Array | None = None) -> Array:
    """y = x Ŵᵀ + b"""
    flat = rows(x)
    y = get_array_module(x).empty((len(flat), Q.shape[0]), dtype=x.dtype)
    for part in parts(Q):
        y[:, part] = flat @ Q.dense(part).T
    if b is not None:
        y += b
    return like(y, x)


def quantized_linear_backward(dy: Array, Q: Quantized) -> Array:
    """dx = dy Ŵ"""
    first, *others = parts(Q)
    flat = rows(dy)
    dx = flat[:, first] @ Q.dense(first)
    for part in others:
        dx += flat[:, part] @ Q.dense(part)
    return like(dx, dy)
