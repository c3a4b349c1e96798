"""Low-rank attention: keys and values are projected along the sequence, from n positions to m.

    k' = E k        v' = F v        P = softmax(q k'ᵀ / √D), by rows        o = P v'

    q (B, n, H·D)   k, v (B, n, G·D)   E, F (m, n)   k', v' (B, m, G·D)   P (n, m) for each head   o (B, n, H·D)

So o = (P F) v, where P F (n, n) has rank m at most: the product U Vᵀ with U = P and Vᵀ = F, which is never formed. A
softmax of n scores a row has rank n in general, however few columns q and k have; so this is another function than
softmax(q kᵀ / √D) v, unless E = F = I. It is trained so from the start, or learned again.

Multiplications, for C = H·D = G·D: 2 m n C to project and 2 n m C for scores and outputs, where attention takes 2 n² C:
fewer for m < n/2, and linear in n for a constant m. Memory, for each head: n m numbers instead of n².

Backward. With dq, dk', dv' by attention.py, and k' = E k a linear map of each column, batch rows b:

    dk = Eᵀ dk'             dE = Σ_b dk'_b k_bᵀ
    dv = Fᵀ dv'             dF = Σ_b dv'_b v_bᵀ

This is not LoRA: LoRA adds s B A to a weight and leaves attention as it is, n² scores and all; E and F are new weights
of the model, for sequences of n positions and no others. Nor can it be causal: every row of k' is a sum over all
positions, later ones too. Padding is to be 0 in k and v, as E and F would mix it in.

Source: Wang et al. (2020), "Linformer: Self-Attention with Linear Complexity", equation 7, with one E and one F for all
heads (its "headwise sharing").
"""

from typing import NamedTuple

from ..backend import Array, get_array_module
from .attention import AttentionCache, attention_backward, attention_forward


class ProjectedAttentionCache(NamedTuple):
    k: Array  # (B, n, G·D)   for dE
    v: Array  # (B, n, G·D)   for dF
    attention: AttentionCache  # of q, k' and v'


def projected_attention_forward(
    q: Array, k: Array, v: Array, E: Array, F: Array, D: int
) -> tuple[Array, ProjectedAttentionCache]:
    """k' = E k         v' = F v        o = softmax(q k'ᵀ / √D) v'"""
    o, cache = attention_forward(q, E @ k, F @ v, None, D)
    return o, ProjectedAttentionCache(k, v, cache)


def projected_attention_backward(
    dy: Array, cache: ProjectedAttentionCache, E: Array, F: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """dk = Eᵀ dk'      dv = Fᵀ dv'     Returns dq, dk, dv, and dk' and dv', which projection_gradients needs."""
    dq, dk_m, dv_m = attention_backward(dy, cache.attention)
    return dq, E.T @ dk_m, F.T @ dv_m, dk_m, dv_m


def projection_gradients(dx_m: Array, x: Array) -> Array:
    """dE = Σ_b dk'_b k_bᵀ      dx_m (B, m, C), x (B, n, C) -> (m, n)"""
    return get_array_module(x).tensordot(dx_m, x, axes=((0, 2), (0, 2)))
