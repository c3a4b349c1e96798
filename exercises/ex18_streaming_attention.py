"""18 · Attention in blocks

One head of causal attention, computed from one block of keys at a time:

    S = q kᵀ / √D        P = softmax(S), by rows        o = P v

    q (Tq, D)    k, v (Tk, D)    o (Tq, D)    lse (Tq,)

lse is the log of the sum of the exponentials of the scores that a query sees,
a number for each query.

The queries are the last Tq of Tk positions, as in decoding with a cache: query
i is at position Tk - Tq + i and sees the keys at positions 0 to its own. Where
Tq > Tk, the first queries come before every key and see none of them: their
o is 0 and their lse is -∞.

Keys and values are read in blocks of `block` positions, from the first on; the
last block may be shorter. No array may be as large as (Tq, Tk): what is kept
between blocks is a few numbers a query. Scores may be in the thousands, and the
result must be that of the softmax over all keys at once.

One number by hand: D = 1, one query q = 1, two keys k = 0 and ln 3 = 1.0986
with v = 4 and 8, block 1. The exponentials of the scores are 1 and 3:
P = 1/4, 3/4, o = 1/4 · 4 + 3/4 · 8 = 7, lse = ln (1 + 3) = 1.3863.
"""

import numpy as np


def streaming_attention(q, k, v, block):
    """Return o, lse.

    >>> k, v = np.array([[0.0], [np.log(3.0)]]), np.array([[4.0], [8.0]])
    >>> o, lse = streaming_attention(np.ones((1, 1)), k, v, 1)
    >>> round(float(o[0, 0]), 6), round(float(lse[0]), 4)
    (7.0, 1.3863)
    """
    raise NotImplementedError
