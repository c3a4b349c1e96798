"""15 · Grouped queries

Several query heads share one key head and one value head:

    for each head:    S = q kᵀ/√D + mask      P = softmax(S)      y = P v

    q, y, dy, dq (batch, tokens, heads, D)
    k, v, dk, dv (batch, tokens, groups, D)
    mask (tokens, tokens): row i is query i; 0 where it sees the key, -1e9
    where it does not

heads is a multiple of groups. The heads of a group stand side by side, in the
order of the groups: with 6 heads and 2 groups, heads 0, 1, 2 read key and
value head 0, and heads 3, 4, 5 read key and value head 1.

dy is ∂L/∂y. Return dq, dk, dv, each in the shape of what it belongs to.
Nothing is kept from the forward.

One number by hand, with one group of two heads, one token and D = 1: the one
weight P is 1 in both heads, whatever q and k are. So y = v in each, and with
dy = (5, 7) for the two heads, dv = 12; dq and dk are 0.
"""

import numpy as np


def gqa_backward(dy, q, k, v, mask):
    """Return dq, dk, dv.

    >>> dy, q = np.array([5.0, 7.0]).reshape(1, 1, 2, 1), np.array([2.0, 3.0]).reshape(1, 1, 2, 1)
    >>> dq, dk, dv = gqa_backward(dy, q, np.full((1, 1, 1, 1), 4.0), np.full((1, 1, 1, 1), 6.0), np.zeros((1, 1)))
    >>> float(dv[0, 0, 0, 0]), float(dk[0, 0, 0, 0]), dq.shape
    (12.0, 0.0, (1, 1, 2, 1))
    """
    raise NotImplementedError
