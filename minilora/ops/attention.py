"""Softmax attention, with grouped-query heads.

    S = q kᵀ / √D + mask        P = softmax(S), by rows        o = P v

    q (B, Tq, H·D)    k, v (B, Tk, G·D)    o (B, Tq, H·D),    H a multiple of G

A model may divide by another root than √D: Gemma's largest takes √(C/H), where its heads are not C/H wide.

The R = H/G query heads of a group share one key/value head. For that head they are R times as many queries: their rows
are stacked, and no key or value is copied. In multi-head attention R = 1:

    (B, Tq, G·R·D)         position t:   [ group 0: head 0, head 1 | group 1: head 2, head 3 ]
      -> (B, G, R·Tq, D)   group g:      head 0 at t = 0..Tq-1, then head 1 at t = 0..Tq-1

The mask is 0 where query i attends to key j, and -1e9 where it does not. A causal mask hides later keys; a sliding
window of W keys (Mistral, Qwen2) also hides keys W or more positions back:

    query i attends to key j      i - W < j ≤ i           itself, and the W - 1 keys before it

Without a causal mask (ModernBERT) the window is symmetric around the query:

    query i attends to key j      i - W < j < i + W       itself, and W - 1 keys on each side

With E = exp(S - max) and its row sums Z, P = E / Z. Dividing the (T, D) result is cheaper than dividing the (T, T)
matrix: o = (E v) / Z.

Backward. o = P v gives dv = Pᵀ do and dP = do vᵀ. Through the softmax of one row, ∂P_i/∂S_j = P_i (δ_ij - P_j):

    dS_j = P_j (dP_j - Σ_i P_i dP_i)            and Σ_i P_i dP_i = Σ_i P_i do·v_i = do·o

    dS = P ∘ (dP - rowsum(do ∘ o))      dq = dS k / √D      dk = dSᵀ q / √D      dv = Pᵀ do

and with do_Z = do / Z in the place of do and E in the place of P, no (T, T) matrix is divided here either:

    dS = E ∘ (do_Z vᵀ - rowsum(do_Z ∘ o))       dv = Eᵀ do_Z

A masked pair has E = 0, hence dS = 0: the backward does not need the mask. The products dSᵀ q and Eᵀ do_Z already sum
dk and dv over the stacked heads of a group. The rows of dS sum to 0: adding a constant to a row of scores changes
nothing.

Cross-attention. Nothing above asks that q, k and v come from one stream: Tq and Tk may differ. In a decoder they come
from two, x (B, Tq, C) of the decoder and m (B, Tk, C), the encoder's output, which every block l of the decoder reads:

    q = x Wqᵀ       k = m Wkᵀ       v = m Wvᵀ

    dx = dq Wq                                      to the decoder's block below
    dm = Σ_l (dk_l Wk_l + dv_l Wv_l)                to the encoder, once, when every block has added its part

The mask then hides the source's padding, of which the decoder knows nothing else. It is never causal: the whole source
is there before the first word is said.

Source: Vaswani et al. (2017), "Attention Is All You Need", equation 1, and section 3.2.3 for cross-attention;
Ainslie et al. (2023), "GQA"; Jiang et al. (2023), "Mistral 7B", section 2, for the window (W counts the query's own
key, as in `transformers`); rowsum(do ∘ o) as in Dao et al. (2022), "FlashAttention", appendix B.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple

from ..backend import Array, get_array_module
from .rows import row_dot, row_max, row_sum


def attention_mask(
    xp: ModuleType, T: int, causal: bool, padding: Array | None, dtype: Any, start: int = 0, window: int | None = None
) -> Array | None:
    """0 where query i attends to key j, -1e9 where it does not; None where every query attends to every key.

    Shape (T, start + T), the first `start` keys being those of earlier tokens; (B, 1, T, start + T) with `padding`
    (B, start + T), which is True for a real token. A `window` hides key j from query i unless i - window < j and,
    without a causal mask, j < i + window, all counted along the array, padding included.

    -1e9 and not -inf, so that a row without any visible key (of padding, under a causal mask or a window) stays finite.
    Such a row attends to all keys, in float32 to each alike, as -1e9 absorbs the scores. No real token reads it.
    """
    if window is not None and window >= start + T:
        window = None
    if padding is None and window is None and (T == 1 or not causal):
        return None
    visible = xp.tri(T, start + T, start, dtype=bool) if causal else xp.ones((T, start + T), dtype=bool)
    if window is not None:
        visible = xp.triu(visible, start - window + 1)
        visible = visible if causal else xp.tril(visible, start + window - 1)
    if padding is not None:
        visible = visible & padding[:, None, None, :]
    return xp.where(visible, 0.0, -1e9).astype(dtype)


def padding_mask(padding: Array, dtype: Any) -> Array:
    """(B, 1, 1, Tk): 0 for the keys that are real in `padding` (B, Tk), -1e9 for the others, whoever asks."""
    return get_array_module(padding).where(padding[:, None, None, :], 0.0, -1e9).astype(dtype)


def split_heads(x: Array, groups: int, D: int) -> Array:
    """(B, T, G·R·D) -> (B, G, R·T, D)"""
    B, T, _ = x.shape
    return x.reshape(B, T, groups, -1, D).transpose(0, 2, 3, 1, 4).reshape(B, groups, -1, D)


def merge_heads(x: Array, T: int) -> Array:
    """(B, G, R·T, D) -> (B, T, G·R·D)"""
    B, groups, _, D = x.shape
    return x.reshape(B, groups, -1, T, D).transpose(0, 3, 1, 2, 4).reshape(B, T, -1)


class AttentionCache(NamedTuple):
    q: Array  # (B, G, R·Tq, D)   already divided by the root
    k: Array  # (B, G, Tk, D)
    v: Array  # (B, G, Tk, D)
    E: Array  # (B, G, R·Tq, Tk)  exp(S - max)
    Z: Array  # (B, G, R·Tq, 1)   row sums of E
    o: Array  # (B, G, R·Tq, D)


def attention_forward(
    q: Array, k: Array, v: Array, mask: Array | None, D: int, root: float | None = None
) -> tuple[Array, AttentionCache]:
    """S = q kᵀ/√D + mask       E = exp(S - max)       Z = rowsum(E)       o = (E v) / Z

    `root` is there instead of √D.
    """
    xp = get_array_module(q)
    Tq, groups = q.shape[1], k.shape[2] // D
    R = q.shape[2] // k.shape[2]
    q, k, v = split_heads(q / (root or math.sqrt(D)), groups, D), split_heads(k, groups, D), split_heads(v, groups, D)
    S = q @ k.swapaxes(-1, -2)
    if mask is not None:
        S += mask if R == 1 or mask.shape[-2] == 1 else xp.tile(mask, (R, 1))
    S -= row_max(S)  # softmax ignores shifts; exp must not overflow
    E = xp.exp(S, out=S)
    Z = row_sum(E)
    o = E @ v
    o /= Z
    return merge_heads(o, Tq), AttentionCache(q, k, v, E, Z, o)


def attention_backward(dy: Array, cache: AttentionCache, root: float | None = None) -> tuple[Array, Array, Array]:
    """dS = E ∘ (do_Z vᵀ - rowsum(do_Z ∘ o))       dq = dS k/√D       dk = dSᵀ q/√D       dv = Eᵀ do_Z"""
    q, k, v, E, Z, o = cache
    Tq, (_, groups, Tk, D) = dy.shape[1], k.shape
    do_Z = split_heads(dy, groups, D) / Z
    dS = do_Z @ v.swapaxes(-1, -2)
    dS -= row_dot(do_Z, o)
    dS *= E
    dq = dS @ k
    dq /= root or math.sqrt(D)
    dk = dS.swapaxes(-1, -2) @ q
    dv = E.swapaxes(-1, -2) @ do_Z
    return merge_heads(dq, Tq), merge_heads(dk, Tk), merge_heads(dv, Tk)


def attention_bias_gradients(dy: Array, cache: AttentionCache) -> Array:
    """db = Σ_b dS      (H, Tq, Tk), of a bias b that is added to the scores of every sequence, as a mask is.

    dS is made again: where b is frozen, as it is beside adapters, this is never called.
    """
    Tq, (_, groups, Tk, D) = dy.shape[1], cache.k.shape
    do_Z = split_heads(dy, groups, D) / cache.Z
    dS = do_Z @ cache.v.swapaxes(-1, -2)
    dS -= row_dot(do_Z, cache.o)
    dS *= cache.E
    return dS.sum(axis=0).reshape(-1, Tq, Tk)
