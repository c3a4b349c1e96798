"""(IA)³: a learned vector l rescales the features of a frozen linear layer, on one of its two sides.

    out side        u = x Wᵀ + b        y = l ∘ u           l (out,)        b is rescaled too
    in side         z = l ∘ x           y = z Wᵀ + b        l (in,)         for feed-forward layers

Either is the linear layer, and the op of this file after or before it:

    y = l ∘ x           y_nc = l_c x_nc             x, y (..., C)   l (C,)

Backward:

    dx = l ∘ dy         dl = Σ_n dy ∘ x             hence l ∘ dl = Σ_n dy ∘ y = Σ_n dx ∘ x

so the out side keeps u, and the in side x. The in side needs dz = dy W for its dl, also where nobody reads dx.

Source: Liu et al. (2022), "Few-shot parameter-efficient fine-tuning is better and cheaper than in-context learning",
section 3.3; the sides as in PEFT, where the paper's l_ff, behind the activation, is on the in side of the next layer.
"""

# ruff: noqa: E741  (l is the paper's letter)

from ..backend import Array
from .rows import rows


def ia3_forward(x: Array, l: Array) -> tuple[Array, Array]:
    """y = l ∘ x.  The cache is x."""
    return l * x, x


def ia3_backward(dy: Array, l: Array) -> Array:
    """dx = l ∘ dy"""
    return l * dy


def ia3_gradients(dy: Array, x: Array) -> Array:
    """dl = Σ_n dy ∘ x"""
    return rows(dy * x).sum(axis=0)
