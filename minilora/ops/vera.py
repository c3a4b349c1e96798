"""The path that VeRA adds beside a frozen linear layer: A and B are random and frozen, two vectors learn.

    h = x Aᵀ        y = b ∘ ((d ∘ h) Bᵀ)        x (..., in)   A (r, in)   B (out, r)   d (r,)   b (out,)   h (N, r)

which is y = x ΔWᵀ with ΔW = diag(b) B diag(d) A. N is the number of rows of x, over all axes but the last. A and B are
the same for all layers, and there is no scale: d and b take its place.

Backward, from the last product to the first:

    y = b ∘ u           db = Σ_n dy ∘ u             du = b ∘ dy
    u = q Bᵀ            dq = du B
    q = d ∘ h           dd = Σ_n dq ∘ h             dh = d ∘ dq
    h = x Aᵀ            dx = dh A

u need not be kept. With M = dyᵀ h (out, r), one product for both,

    db_o = Σ_n dy_no Σ_k d_k h_nk B_ok = Σ_k B_ok d_k M_ok
    dd_k = Σ_n h_nk Σ_o b_o dy_no B_ok = Σ_o b_o B_ok M_ok

so h alone is kept, r numbers a row: not x, as A is frozen. And b multiplies the rows of B, out r numbers, rather than
the N out of y or dy: b ∘ (q Bᵀ) = q (b ∘ B)ᵀ. Hence ⟨b, db⟩ = ⟨d, dd⟩, and dd = 0 as long as b = 0.

Source: Kopiczko, Blankevoort, Asano (2024), "VeRA: Vector-based random matrix adaptation", equation 2.
"""

from ..backend import Array
from .rows import like, rows


def vera_forward(x: Array, A: Array, B: Array, d: Array, b: Array) -> tuple[Array, Array]:
    """h = x Aᵀ         y = (d ∘ h) (b ∘ B)ᵀ.  The cache is h."""
    h = rows(x) @ A.T
    return like((d * h) @ (b[:, None] * B).T, x), h


def vera_backward(dy: Array, A: Array, B: Array, d: Array, b: Array) -> Array:
    """dq = dy (b ∘ B)      dx = (d ∘ dq) A"""
    dq = rows(dy) @ (b[:, None] * B)
    dq *= d
    return like(dq @ A, dy)


def vera_gradients(dy: Array, h: Array, B: Array, d: Array, b: Array) -> tuple[Array, Array]:
    """M = dyᵀ h        dd = Σ_o b_o B_o ∘ M_o      db = Σ_k d_k B_k ∘ M_k      returns dd and db"""
    BM = rows(dy).T @ h
    BM *= B
    return (b[:, None] * BM).sum(axis=0), (d * BM).sum(axis=1)
