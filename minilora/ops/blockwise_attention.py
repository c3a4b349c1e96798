"""Softmax attention in blocks: the same function as attention.py, without (T, T) arrays.

    S = q kᵀ / √D + mask        P = softmax(S), by rows        o = P v

S is computed for one block i of queries and one block j of keys at a time.

Forward, the online softmax. For each row of a block of queries, three numbers are updated with every block of keys: m,
the largest score so far; Z, the sum of exp(S - m); and o, the sum of exp(S - m) v. The next block of keys has scores
S = q_i k_jᵀ/√D + mask, and perhaps a larger maximum m'. As exp(S - m') = exp(S - m) exp(m - m'), one factor c a row
rescales the sums:

    m' = max(m, rowmax(S))      c = exp(m - m')      E = exp(S - m')
    Z' = c Z + rowsum(E)                             o' = c o + E v_j

from Z = 0, o = 0. After the last block o is divided by Z, and L = m + log Z = log Σ exp(S) is kept.

Backward. From L, each block of P is recomputed without the rest of its row:

    P = E / Z = exp(S - m) / Z = exp(S - L)

The softmax's gradient contains Σ P dP over all keys of a row, which would need every block at once. But that is do·o
(see attention.py), a sum over D. So each pair of blocks adds its own terms to the three gradients:

    P = exp(S - L_i)            dS = P ∘ (do_i v_jᵀ - rowsum(do_i ∘ o_i))
    dq_i += dS k_j / √D         dk_j += dSᵀ q_i / √D         dv_j += Pᵀ do_i

Recomputing S is a fifth product beside the four of attention.py. Under a causal mask, the keys after a block of queries
are skipped, forward and backward: nearly half of all, which saves more than that product costs. With a sliding window,
the blocks of keys before it are skipped too, and without a causal mask those after it: the cost is linear in T.

Layout. The R = H/G query heads of a group stay side by side, as they are in a row of q, so that a block of positions is
a block of rows (attention.py stacks them head by head):

    (B, T, G·R·D) -> (B, G, T·R, D)      group g:      t = 0: head 0..R-1, then t = 1: head 0..R-1, ...

A row without any visible key (of padding, under a causal mask or a window) gets o = 0 and passes no gradient. In
attention.py it attends to every key, which would need the blocks that are skipped here. Real tokens are not
affected: none reads such a row.

Source: Milakov & Gimelshein (2018), "Online normalizer calculation for softmax", algorithm 3; Dao et al. (2022),
"FlashAttention", algorithms 1 and 4; L in the place of m and Z as in Dao (2023), "FlashAttention-2",
algorithms 1 and 2.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..backend import Array, get_array_module
from .attention import merge_heads, split_heads
from .rows import row_dot, row_sum

# A block has BLOCK queries and BLOCK * KEYS keys. Small blocks fit a core's cache and skip more of a causal mask; large
# ones need fewer calls. On a CPU 128 is fastest at T = 512 (256 is a tenth slower) and as good as any from 1024 on.
# Four times as many keys as queries save a twentieth, without a causal mask a tenth: longer rows are reduced faster.
BLOCK = 128
KEYS = 4


class BlockwiseAttentionCache(NamedTuple):
    q: Array  # (B, G, T·R, D)   already divided by the root
    k: Array  # (B, G, T, D)
    v: Array  # (B, G, T, D)
    o: Array  # (B, G, T·R, D)
    L: Array  # (B, G, T·R, 1)   m + log Z
    causal: bool
    padding: Array | None  # (B, T)
    block: int
    window: int | None


def split_positions(x: Array, groups: int, D: int) -> Array:
    """(B, T, G·R·D) -> (B, G, T·R, D)"""
    B, _, width = x.shape
    return split_heads(x, groups, width // groups).reshape(B, groups, -1, D)


def merge_positions(x: Array, T: int) -> Array:
    """(B, G, T·R, D) -> (B, T, G·R·D)"""
    B, groups, _, _ = x.shape
    return merge_heads(x.reshape(B, groups, T, -1), T)


def blocks(
    q: Array, k: Array, causal: bool, padding: Array | None, block: int, window: int | None = None
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...], Array]]:
    """(i, j, S) for each pair of blocks: indices of q and k, and their scores q_i k_jᵀ/√D, -∞ for a hidden key.

    S is a new array. seen_keys() says which keys are computed. A mask is made for those alone that one of the block's
    queries sees and another does not: under a causal mask the square on the diagonal, with a window the keys before the
    last query's and, without a causal mask, those after the first query's.
    """
    xp, T = get_array_module(q), k.shape[2]
    R, n = q.shape[2] // T, min(block, T)
    causal_mask = xp.repeat(xp.triu(xp.full((n, n), -xp.inf, dtype=q.dtype), 1), R, axis=0)
    if padding is not None:
        padding_mask = xp.where(padding, 0.0, -xp.inf).astype(q.dtype)
    for b, t in itertools.product(range(len(q)), range(0, T, n)):
        i = b, slice(None), slice(R * t, R * (t + n))
        rows = min(n, T - t)
        begin, end = seen_keys(t, n, T, causal, window)
        for s in range(begin, end, KEYS * n):
            keys = slice(s, min(s + KEYS * n, end))
            j = b, slice(None), keys
            S = q[i] @ k[j].swapaxes(-1, -2)
            if causal and keys.stop == end:
                S[..., t - s :] += causal_mask[: R * rows, :rows]
            if window is not None and s <= (last := t + rows - 1 - window):  # the last key before any query's window
                before = xp.tril(xp.full((rows, last + 1 - s), -xp.inf, dtype=q.dtype), t - window - s)
                S[..., : last + 1 - s] += xp.repeat(before, R, axis=0)
            if window is not None and not causal and keys.stop > t + window:  # the first key after any query's window
                first = max(s, t + window)
                after = xp.triu(xp.full((rows, keys.stop - first), -xp.inf, dtype=q.dtype), t + window - first)
                S[..., first - s :] += xp.repeat(after, R, axis=0)
            if padding is not None:  # in every block: looking for those that need it would wait for the GPU
                S += padding_mask[b, keys]
            yield i, j, S


def seen_keys(t: int, block: int, T: int, causal: bool, window: int | None) -> tuple[int, int]:
    """The first key that is computed for the block of queries from t on, and the one after the last: those that one of
    the queries attends to, and before them what fills a whole number of blocks."""
    end = min(t + block, T)
    begin = 0 if window is None else max(0, t - window + 1) // block * block
    return begin, end if causal else T if window is None else min(end - 1 + window, T)


def blockwise_attention_forward(
    q: Array,
    k: Array,
    v: Array,
    D: int,
    causal: bool,
    padding: Array | None = None,
    block: int = BLOCK,
    window: int | None = None,
    root: float | None = None,
) -> tuple[Array, BlockwiseAttentionCache]:
    """m' = max(m, rowmax(S))     c = exp(m - m')     E = exp(S - m')     Z' = c Z + rowsum(E)     o' = c o + E v_j

    q (B, T, H·D), k and v (B, T, G·D); `padding` (B, T) is True for a real token. A `window` hides key j from query i
    unless i - window < j and, without a causal mask, j < i + window. `root` is there instead of √D. The cache is linear
    in T.
    """
    xp, T, groups = get_array_module(q), q.shape[1], k.shape[2] // D
    q, k, v = (
        split_positions(q / (root or math.sqrt(D)), groups, D),
        split_heads(k, groups, D),
        split_heads(v, groups, D),
    )
    m = xp.full((*q.shape[:-1], 1), -1e30, dtype=q.dtype)  # below any score, and finite: -∞ - m must be -∞
    Z, o = xp.zeros_like(m), xp.zeros_like(q)
    for i, j, S in blocks(q, k, causal, padding, block, window):
        m_new = xp.maximum(m[i], S.max(axis=-1, keepdims=True))
        c = xp.exp(m[i] - m_new)
        S -= m_new
        E = xp.exp(S, out=S)
        Z[i] *= c
        Z[i] += row_sum(E)
        o[i] *= c
        o[i] += E @ v[j]
        m[i] = m_new
    Z += Z == 0  # a row without any visible key: o = 0 / 1, and P = exp(-∞ - L) = 0
    o /= Z
    cache = BlockwiseAttentionCache(q, k, v, o, m + xp.log(Z), causal, padding, block, window)
    return merge_positions(o, T), cache


def blockwise_attention_backward(
    dy: Array, cache: BlockwiseAttentionCache, root: float | None = None
) -> tuple[Array, Array, Array]:
    """P = exp(S - L_i)   dS = P ∘ (do_i v_jᵀ - rowsum(do_i ∘ o_i))   dq_i += dS k_j/√D   dk_j += dSᵀ q_i/√D
    dv_j += Pᵀ do_i"""
    q, k, v, o, L, causal, padding, block, window = cache
    xp, (_, groups, T, D) = get_array_module(dy), k.shape
    do = split_positions(dy, groups, D)
    do_o = row_dot(do, o)
    dq, dk, dv = xp.zeros_like(q), xp.zeros_like(k), xp.zeros_like(v)
    for i, j, S in blocks(q, k, causal, padding, block, window):
        S -= L[i]
        P = xp.exp(S, out=S)
        dS = do[i] @ v[j].swapaxes(-1, -2)
        dS -= do_o[i]
        dS *= P
        dq[i] += dS @ k[j]
        dk[j] += dS.swapaxes(-1, -2) @ q[i]
        dv[j] += P.swapaxes(-1, -2) @ do[i]
    dq /= root or math.sqrt(D)
    return merge_positions(dq, T), merge_heads(dk, T), merge_heads(dv, T)
