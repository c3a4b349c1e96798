"""19 · Rank

A LoRA layer's update is ΔW = s B A, s = α/r. Its singular values say how many
directions it uses, and the best update of lower rank keeps the first of them.

    A (r, in)    B (out, r)    sigma (n,)    A2 (k, in)    B2 (out, k)

singular_values returns those of ΔW, largest first: min(r, out, in) of them,
since all others are 0.

truncate returns factors of rank k whose product B2 A2 is as near to B A as any
matrix of rank k can be, in Frobenius' norm; 1 ≤ k ≤ min(r, out, in). Only the
product is compared: how the factors share its size is yours to choose. α plays
no part here.

singular_values and truncate may not take the memory of an (out, in) matrix:
for a layer of 4,096 by 4,096 and r = 8 the factors are 256 times smaller.

effective_rank returns the effective rank of Roy and Vetterli (2007): divide
sigma by its sum, and the effective rank is exp of the entropy (with the natural
logarithm) of these shares. A singular value of 0 adds nothing to it; where all
are 0 the effective rank is 0.

By hand: A = (3, 4) and B = (2, 0)ᵀ, α = 6, r = 1: B A has the one singular
value |B| |A| = 2 · 5 = 10, and ΔW has 6 · 10 = 60. Of two equal singular values
the shares are 1/2, 1/2, the entropy ln 2, and the effective rank 2.
For A = diag(3, 2), B = diag(5, 1), k = 1: B A = diag(15, 2), and
B2 A2 = diag(15, 0).
"""

import numpy as np


def singular_values(A, B, alpha):
    """Return sigma of ΔW.

    >>> singular_values(np.array([[3.0, 4.0]]), np.array([[2.0], [0.0]]), 6.0).round(9)
    array([60.])
    """
    raise NotImplementedError


def truncate(A, B, k):
    """Return A2, B2.

    >>> A2, B2 = truncate(np.diag([3.0, 2.0]), np.diag([5.0, 1.0]), 1)
    >>> A2.shape, B2.shape, np.allclose(B2 @ A2, np.diag([15.0, 0.0]))
    ((1, 2), (2, 1), True)
    """
    raise NotImplementedError


def effective_rank(sigma):
    """Return exp of the entropy of sigma's shares.

    >>> round(float(effective_rank(np.array([7.0, 7.0, 0.0]))), 9)
    2.0
    """
    raise NotImplementedError
