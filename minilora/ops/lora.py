"""The low-rank update that LoRA adds to the output of a frozen linear layer.

    h = x Aᵀ        y = s h Bᵀ                  x (..., in)   A (r, in)   B (out, r)   h (N, r)   y (..., out)

which is y = x ΔWᵀ with ΔW = s B A of rank at most r; s = α/r (or α/√r, rsLoRA). N is the number of rows of x, all axes
but the last taken together. ΔW (out, in) is never formed: the two thin products cost r (in + out) multiplications per
row, a product with ΔW in · out.

Backward, from the last product to the first, each by the rules of a linear layer (linear.py):

    y = (s h) Bᵀ      dB = dyᵀ (s h)            dh = s dy B
    h = x Aᵀ          dA = dhᵀ x                dx = dh A

dA needs x, although W is frozen: an adapted layer must keep its input as a trainable one must. With G = dyᵀ x, the
gradient with respect to ΔW, dA = s Bᵀ G and dB = s G Aᵀ. Hence dA = 0 as long as B = 0, and always
Bᵀ dB = dA Aᵀ, the law of a gauge symmetry: B M and M⁻¹ A have the same ΔW for every invertible M (r, r).

Source: Hu et al. (2021), "LoRA", the second term of equation 3 (α/r is in the text below it; the paper's h is the
output of the whole layer, ours the r numbers between A and B); Kalajdzievski (2023), "rsLoRA", for α/√r.
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


def lora_h_backward(dy: Array, B: Array, s: float) -> Array:
    """dh = s dy B          (N, r): all that dA needs, where nobody reads dx"""
    return s * (rows(dy) @ B)


def lora_backward(dy: Array, A: Array, B: Array, s: float) -> tuple[Array, Array]:
    """dh = s dy B     dx = dh A        Returns dx and dh (N, r), which lora_A_gradients needs."""
    dh = lora_h_backward(dy, B, s)
    return like(dh @ A, dy), dh


def lora_A_gradients(dh: Array, x: Array) -> Array:
    """dA = dhᵀ x"""
    return dh.T @ rows(x)


def lora_B_gradients(dy: Array, h: Array, s: float) -> Array:
    """dB = s dyᵀ h"""
    return rows(dy).T @ (s * h)
