"""The path of LoRA-XS beside a frozen linear layer: A and B are frozen, and a small R between them learns.

    h = x Aᵀ        u = h Rᵀ        y = s u Bᵀ          x (..., in)   A (r, in)   R (r, r)   B (out, r)   y (..., out)

which is y = x ΔWᵀ with ΔW = s B R A. A = V_rᵀ and B = U_r Σ_r are of the first r singular values of the layer's own
W = U Σ Vᵀ, but nothing below needs that. h and u are (N, r), for the N rows of x, over all axes but the last.

Backward, from the last product to the first:

    y = s u Bᵀ          du = s dy B
    u = h Rᵀ            dR = duᵀ h              dh = du R
    h = x Aᵀ            dx = dh A

h alone is kept, r numbers a row: not x, as A is frozen. With G = dyᵀ x, the gradient with respect to ΔW,
dR = s Bᵀ G Aᵀ: of G, what lies between r directions of the input and r of the output. It is not 0 where R is.

Source: Bałazy et al. (2024), "LoRA-XS: Low-rank adaptation with extremely small number of parameters", section 3.
"""

from ..backend import Array
from .rows import like, rows


def lora_xs_forward(x: Array, R: Array, A: Array, B: Array, s: float) -> tuple[Array, Array]:
    """h = x Aᵀ         y = s (h Rᵀ) Bᵀ.  The cache is h."""
    h = rows(x) @ A.T
    return like((s * (h @ R.T)) @ B.T, x), h


def lora_xs_backward(dy: Array, R: Array, A: Array, B: Array, s: float) -> tuple[Array, Array]:
    """du = s dy B      dx = (du R) A       Returns dx and du (N, r), which lora_xs_gradients needs."""
    du = s * (rows(dy) @ B)
    return like((du @ R) @ A, dy), du


def lora_xs_gradients(du: Array, h: Array) -> Array:
    """dR = duᵀ h"""
    return du.T @ h
