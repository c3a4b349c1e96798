"""The low-rank path that LoRA adds beside a frozen linear layer.

    h = x Aᵀ        y = s h Bᵀ                  x (..., in)   A (r, in)   B (out, r)   h (N, r)   y (..., out)

which is y = x ΔWᵀ with ΔW = s B A of rank at most r; s = α/r (or α/√r, rsLoRA). N is the number of rows of x, over
all axes but the last. ΔW itself, (out, in), is never formed: two thin products cost r (in + out) per row, the dense
one in · out.

Backward, from the last product to the first, each by the rules of a linear layer (linear.py):

    y = (s h) Bᵀ      dB = dyᵀ (s h)            dh = s dy B
    h = x Aᵀ          dA = dhᵀ x                dx = dh A

So dA needs x, although W is frozen: this is why adapting a layer does not save its input. And with
G = dyᵀ x, the gradient the dense ΔW would have, dA = s Bᵀ G and dB = s G Aᵀ, hence Bᵀ dB = dA Aᵀ,
and dA = 0 as long as B = 0.

Source: Hu et al. (2021), "LoRA", the second term of equation 3 (α/r is in the text below it; the paper's h is the
whole layer's output, ours the bottleneck); Kalajdzievski (2023), "rsLoRA", for α/√r.
"""

from typing import NamedTuple

from ..backend import Array
from .rows import like, rows


class LoRACache(NamedTuple):
    x: Array  # (..., in)   for dA
    h: Array  # (N, r)      for dB


def lora_forward(x: Array, A: Array, B: Array, s: float) -> tuple[Array, LoRACache]:
    """h = x Aᵀ        y = s h Bᵀ"""
    h = rows(x) @ A.T
    return like((s * h) @ B.T, x), LoRACache(x, h)


def lora_backward(dy: Array, A: Array, B: Array, s: float) -> tuple[Array, Array]:
    """dh = s dy B     dx = dh A        returns dx and dh, which dA needs too"""
    dh = s * (rows(dy) @ B)
    return like(dh @ A, dy), dh


def lora_A_gradients(dh: Array, x: Array) -> Array:
    """dA = dhᵀ x"""
    return dh.T @ rows(x)


def lora_B_gradients(dy: Array, h: Array, s: float) -> Array:
    """dB = s dyᵀ h"""
    return rows(dy).T @ (s * h)
