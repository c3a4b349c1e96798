"""10 · Merge and unmerge

A LoRA layer computes y = x Wᵀ + s (x ∘ keep) Aᵀ Bᵀ, with W frozen. At
inference one matrix W2 is enough, of the size of W: x W2ᵀ = y for every x.

    merge(W, A, B, alpha, p, rs)      returns W2

    W, W2 (out, in)    A (r, in)    B (out, r)    r ≥ 1, read off A
    s       α/r, or where rs is True α/√r, that of rsLoRA
    p       the probability of dropout in training: keep was 0 with
            probability p, and 1/(1-p) otherwise. At inference keep is 1

The adapter can be taken out again. What then stands in the layer must be what
was there before, bit for bit:

    unmerge(layer)      returns that weight

    layer   a dict, of what a merged layer keeps: "weight" is W2, and "W", "A",
            "B", "alpha", "p" and "rs" are what merge was given

Nothing that is given may change.

One number by hand: W = 3, A a column of 1, 2, 3, 4, B a row of 5, 6, 7, 8, so
that r = 4; α = 6. B A = 5 + 12 + 21 + 32 = 70. With rs False s = 1.5, and
W2 = 3 + 105 = 108; with rs True s = 3, and W2 = 213. Unmerging gives 3 again.
"""

import numpy as np


def merge(W, A, B, alpha, p, rs=False):
    """Return W2.

    >>> A, B = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([[5.0, 6.0, 7.0, 8.0]])
    >>> merge(np.array([[3.0]]), A, B, 6.0, 0.1), merge(np.array([[3.0]]), A, B, 6.0, 0.1, True)
    (array([[108.]]), array([[213.]]))
    """
    raise NotImplementedError


def unmerge(layer):
    """Return the weight from before the merge.

    >>> one = np.ones((1, 1))
    >>> layer = {"weight": 108 * one, "W": 3 * one, "A": 5 * one, "B": 7 * one, "alpha": 3.0, "p": 0.1, "rs": False}
    >>> unmerge(layer)
    array([[3.]])
    """
    raise NotImplementedError
