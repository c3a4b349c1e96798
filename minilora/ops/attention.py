"""Softmax attention, with grouped-query heads.

    S = q kᵀ / √D + mask        P = softmax(S), by rows        o = P v

    q (B, Tq, H·D)    k, v (B, Tk, G·D)    o (B, Tq, H·D),    H a multiple of G

The R = H/G query heads of a group share one key/value head. To that head they are simply R times as many
queries, so their rows are stacked, and no key or value is copied; for plain multi-head attention R = 1:

    (B, Tq, G·R·D)         position t:   [ group 0: head 0, head 1 | group 1: head 2, head 3 ]
      -> (B, G, R·Tq, D)   group g:      head 0 at t = 0..Tq-1, then head 1 at t = 0..Tq-1

The mask is 0 where query i sees key j, and -1e9 where it does not. Under a causal mask no later key is seen, and with a
sliding window of W keys (Mistral, Qwen2) none from W positions back either, so that a band of the matrix is left:

    query i sees key j      i - W < j ≤ i           itself, and the W - 1 keys before it

With E = exp(S - max) and its row sums Z, P = E / Z. The division is done on the (T, D) result and never on
the (T, T) matrix: o = (E v) / Z.

Backward. o = P v gives dv = Pᵀ do and dP = do vᵀ. Through the softmax of one row, ∂P_i/∂S_j = P_i (δ_ij - P_j):

    dS_j = P_j (dP_j - Σ_i P_i dP_i)            and Σ_i P_i dP_i = Σ_i P_i do·v_i = do·o

    dS = P ∘ (dP - rowsum(do ∘ o))      dq = dS k / √D      dk = dSᵀ q / √D      dv = Pᵀ do

and with do_Z = do / Z, which takes the 1/Z of every P, so that no (T, T) matrix is divided here either:

    dS = E ∘ (do_Z vᵀ - rowsum(do_Z ∘ o))       dv = Eᵀ do_Z

A pair that is masked has E = 0, so that dS = 0 there, and nothing of the mask is needed again.

The rows of dS sum to 0: adding a constant to a row of scores changes nothing. dk and dv add up over the
stacked heads of a group by themselves.

Source: Vaswani et al. (2017), "Attention Is All You Need", equation 1; Ainslie et al. (2023), "GQA";
Jiang et al. (2023), "Mistral 7B", section 2, for the window, where W counts the query's own key as in `transformers`;
rowsum(do ∘ o) as in Dao et al. (2022), "FlashAttention", appendix B.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple

from ..backend import Array, get_array_module
from .rows import row_dot, row_sum


def attention_mask(
    xp: ModuleType,
    T: int,
    causal: bool,
    padding: Array | None,
    dtype: Any,
    start: int = 0,
    window: int | None = None,
) -> Array | None:
    """0 where query i may look at key j, -1e9 where it may not: (T, T), or (B, 1, T, T) with padding.

    With `start` keys from earlier on before them, (T, start + T). None where every query may look at every key.

    `padding` (B, T) is True for a real token. With a `window`, key j is hidden from query i unless i - window < j; both
    are counted along the array, padding included.

    -1e9 and not -inf: a row with nothing to look at (padding on the left, with a window on the right too) stays finite.
    Every key is then masked alike, and softmax ignores the shift: it looks at all of them, as if there were no mask (in
    float32 as much at one as at another, for -1e9 swallows the scores). No real token looks at it.
    """
    if window is not None and window >= start + T:
        window = None
    if padding is None and window is None and (T == 1 or not causal):
        return None
    see = xp.ones((T, start + T), dtype=bool)
    if causal:
        see = xp.tril(see, start)
    if window is not None:
        see = xp.triu(see, start - window + 1)
    if padding is not None:
        see = see & padding[:, None, None, :]
    return xp.where(see, 0.0, -1e9).astype(dtype)


def split_heads(x: Array, groups: int, D: int) -> Array:
    """(B, T, G·R·D) -> (B, G, R·T, D)"""
    B, T, _ = x.shape
    return x.reshape(B, T, groups, -1, D).transpose(0, 2, 3, 1, 4).reshape(B, groups, -1, D)


def merge_heads(x: Array, T: int) -> Array:
    """(B, G, R·T, D) -> (B, T, G·R·D)"""
    B, groups, _, D = x.shape
    return x.reshape(B, groups, -1, T, D).transpose(0, 3, 1, 2, 4).reshape(B, T, -1)


class AttentionCache(NamedTuple):
    q: Array  # (B, G, R·Tq, D)   already divided by √D
    k: Array  # (B, G, Tk, D)
    v: Array  # (B, G, Tk, D)
    E: Array  # (B, G, R·Tq, Tk)  exp(S - max)
    Z: Array  # (B, G, R·Tq, 1)   row sums of E
    o: Array  # (B, G, R·Tq, D)


def attention_forward(q: Array, k: Array, v: Array, mask: Array | None, D: int) -> tuple[Array, AttentionCache]:
    """S = q kᵀ/√D + mask       E = exp(S - max)       Z = rowsum(E)       o = (E v) / Z"""
    xp = get_array_module(q)
    Tq, groups = q.shape[1], k.shape[2] // D
    R = q.shape[2] // k.shape[2]
    q, k, v = split_heads(q / math.sqrt(D), groups, D), split_heads(k, groups, D), split_heads(v, groups, D)
    S = q @ k.swapaxes(-1, -2)
    if mask is not None:
        S += mask if R == 1 else xp.tile(mask, (R, 1))
    S -= S.max(axis=-1, keepdims=True)  # softmax ignores shifts; exp must not overflow
    E = xp.exp(S, out=S)
    Z = row_sum(E)
    o = E @ v
    o /= Z
    return merge_heads(o, Tq), AttentionCache(q, k, v, E, Z, o)


def attention_backward(dy: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """dS = E ∘ (do_Z vᵀ - rowsum(do_Z ∘ o))       dq = dS k/√D       dk = dSᵀ q/√D       dv = Eᵀ do_Z"""
    q, k, v, E, Z, o = cache
    Tq, (_, groups, Tk, D) = dy.shape[1], k.shape
    do_Z = split_heads(dy, groups, D) / Z
    dS = do_Z @ v.swapaxes(-1, -2)
    dS -= row_dot(do_Z, o)
    dS *= E
    dq = dS @ k
    dq /= math.sqrt(D)
    dk = dS.swapaxes(-1, -2) @ q
    dv = E.swapaxes(-1, -2) @ do_Z
    return merge_heads(dq, Tq), merge_heads(dk, Tk), merge_heads(dv, Tk)
