"""Relative position bias: a learned number for each distance, one for each head, is added to the scores.

    S_hij = q_hi · k_hj + b_hij         b_hij = W[bucket(j - i), h]         W (n, H)   b (H, Tq, Tk)

In T5 this is all that tells one position from another. There is a table for each stack, which its blocks share, and the
scores are not divided by √D (W_q has learned that).

Buckets. A distance d has a bucket of its own as long as d < e; from there on they widen with its logarithm, and from
`max_distance` on there is one for all:

    bucket(d) = d                                                       d < e = n/2
                e + ⌊(n - e) log(d/e) / log(max_distance/e)⌋            from e on, n - 1 at most

A decoder looks back alone: d = max(i - j, 0). An encoder looks both ways: each has half of the n buckets, d = |j - i|,
and those of later keys come second.

Backward. The same b is added to every sequence of a batch, so that its gradient is the sum of theirs, and a row of W is
looked up by all pairs at its distances, as a row of an embedding by all places of its token:

    db = Σ_b dS     (attention.py)          dW[n, h] = Σ_{ij : bucket(j - i) = n} db_hij

Source: Raffel et al. (2020), "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
section 2.1; Shaw et al. (2018), "Self-Attention with Relative Position Representations"; the buckets, in float32, as in
`transformers`.
"""

import math

import numpy as np

from ..backend import Array
from .embedding import embedding_forward, embedding_gradients


def relative_buckets(Tq: int, Tk: int, start: int, both_ways: bool, n: int, max_distance: int) -> np.ndarray:
    """(Tq, Tk) int64, the buckets of keys 0 .. Tk - 1 for queries start .. start + Tq - 1. On the host."""
    d = np.arange(Tk) - np.arange(start, start + Tq)[:, None]  # j - i
    first = np.zeros_like(d)
    if both_ways:
        n //= 2
        first, d = n * (d > 0), np.abs(d)
    else:
        d = np.maximum(-d, 0)
    e = n // 2
    far = np.log(np.maximum(d, 1).astype(np.float32) / np.float32(e)) / np.float32(math.log(max_distance / e))
    far = e + (far * np.float32(n - e)).astype(np.int64)
    return first + np.where(d < e, d, np.minimum(far, n - 1))


def relative_bias_forward(W: Array, buckets: Array) -> tuple[Array, Array]:
    """b_hij = W[bucket(j - i), h].  The cache is the buckets (Tq, Tk)."""
    b, buckets = embedding_forward(buckets, W)
    return b.transpose(2, 0, 1), buckets


def relative_bias_gradients(db: Array, buckets: Array, n: int) -> Array:
    """dW[n, h] = Σ_{ij : bucket(j - i) = n} db_hij         db (H, Tq, Tk) -> dW (n, H)"""
    return embedding_gradients(db.transpose(1, 2, 0), buckets, n)
