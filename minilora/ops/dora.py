"""DoRA: a frozen W, a low-rank update beside it, and a learned length m for every row of their sum.

    V = W + s B A           n_o = ‖V_o‖         g = m / n           y = x (g ∘ V)ᵀ, row by row

    x (..., in)   W, V (out, in)   A (r, in)   B (out, r)   m, n, g (out,)   y (..., out)   s as in lora.py

The layer is that of linear.py with the path of lora.py, and then the op of this file, which multiplies by g:

    h = x Aᵀ                u = x Wᵀ + s h Bᵀ = x Vᵀ                    y = g ∘ u

V (out, in) is not formed. With P = V Aᵀ = W Aᵀ + s B (A Aᵀ) (out, r),

    n_o² = ⟨V_o, W_o + s (B A)_o⟩ = ‖W_o‖² + s ⟨B_o, (W Aᵀ)_o⟩ + s ⟨B_o, P_o⟩

At B = 0 that is ‖W_o‖² to the last bit, so m = n makes g = 1. In float32 it is as exact as the norm of V itself, unless
W and s B A nearly cancel in a row.

Backward, from the last step to the first:

    y = g ∘ u           dg = Σ dy ∘ u over the rows of x        du = g ∘ dy
    g = m / n           dm = dg / n                             dn = -g ∘ dm
    n_o = ‖V_o‖         dV_o = dn_o V_o / n_o = c_o V_o         c = -g ∘ dm / n = -m ∘ dm / n²
    V = W + s B A       dB = s dV Aᵀ = s c ∘ P                  dA = s Bᵀ dV = s ((c ∘ B)ᵀ W + s ((c ∘ B)ᵀ B) A)

where c ∘ multiplies rows. du goes on through lora.py and linear.py, which give dx and the rest of dA and dB. What is
kept for this is u, for dm, and n and P, whose size does not depend on the number of rows of x.

With G = dyᵀ x and v̂ = V/n the whole is dV = g ∘ (G - v̂ ⟨G, v̂⟩), without its part along V: ⟨V_o, dV_o⟩ = 0, so
⟨B_o, dB_o⟩ = -⟨W_o, dV_o⟩, as y stays when row o of W and of B grow by one factor. The paper's section 4.3, and PEFT,
hold n constant and leave out the last two lines: dV = g ∘ G, which is not the gradient. It saves an autograd framework
the memory of V; here there is no V in either.

Source: Liu et al. (2024), "DoRA: weight-decomposed low-rank adaptation", equations 5 and 6; a length for each output,
as in PEFT.
"""

from typing import NamedTuple

from ..backend import Array, get_array_module
from .rows import rows


class DoRACache(NamedTuple):
    u: Array  # (..., out)   for dm
    n: Array  # (out,)
    P: Array  # (out, r)     for dB


def dora_norms(W: Array, A: Array, B: Array, s: float) -> tuple[Array, Array]:
    """n_o = ‖W_o + s (B A)_o‖, and P = V Aᵀ"""
    xp = get_array_module(W)
    WA = W @ A.T
    P = WA + s * (B @ (A @ A.T))
    squares = xp.einsum("oi,oi->o", W, W)  # without an array of W's size
    return xp.sqrt(squares + s * (B * (WA + P)).sum(axis=1)), P


def dora_forward(u: Array, W: Array, A: Array, B: Array, m: Array, s: float) -> tuple[Array, DoRACache]:
    """y = m / n ∘ u"""
    n, P = dora_norms(W, A, B, s)
    return m / n * u, DoRACache(u, n, P)


def dora_backward(dy: Array, n: Array, m: Array) -> Array:
    """du = m / n ∘ dy"""
    return m / n * dy


def dora_m_gradients(dy: Array, u: Array, n: Array) -> Array:
    """dm = Σ dy ∘ u / n"""
    return get_array_module(dy).einsum("no,no->o", rows(dy), rows(u)) / n


def dora_A_gradients(dm: Array, n: Array, W: Array, A: Array, B: Array, m: Array, s: float) -> Array:
    """c = -m ∘ dm / n²         dA = s ((c ∘ B)ᵀ W + s ((c ∘ B)ᵀ B) A), through n alone"""
    cB = (-m * dm / n**2)[:, None] * B
    return s * (cB.T @ W + s * (cB.T @ B) @ A)


def dora_B_gradients(dm: Array, n: Array, P: Array, m: Array, s: float) -> Array:
    """c = -m ∘ dm / n²         dB = s c ∘ P, through n alone"""
    return s * (-m * dm / n**2)[:, None] * P
