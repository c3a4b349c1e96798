"""22 · Combine

Several adapters of one layer are to act at once, each with a weight, and the
result is to be an adapter again:

    combine(adapters, weights)      returns A, B with B A = Σᵢ wᵢ ΔWᵢ

    adapters   a list of (Aᵢ, Bᵢ, αᵢ), of which ΔWᵢ = sᵢ Bᵢ Aᵢ, sᵢ = αᵢ/rᵢ
    Aᵢ (rᵢ, in)    Bᵢ (out, rᵢ)    the ranks rᵢ may differ
    weights    (n,), a number wᵢ for each: also below zero, to subtract one,
               and of any sum
    A (R, in)      B (out, R)      the rank R is yours to choose

The result is used with scale 1, so that B A is all of its ΔW. It is exact, up
to rounding. A and B are not unique: only B A is compared.

The rank of such a sum is larger than it need be. Then

    compress(A, B, k)               returns A2, B2

    A2 (k, in)     B2 (out, k)     k ≤ R, k ≤ in, k ≤ out

where, of all matrices of rank k, B2 A2 is the one nearest to B A: the sum of
the squares of B A - B2 A2 is least. Only the product is compared here too.

Neither may form an (out, in) matrix: it would be as large as W itself.

One number by hand, with in = out = 1. The first adapter has A₁ = 2, B₁ = 3,
α₁ = 4: ΔW₁ = 4 · 6 = 24. The second has a column A₂ of 1, 1, a row B₂ of 5, 6,
α₂ = 3: ΔW₂ = 1.5 · 11 = 16.5. With weights 2 and -1, B A = 48 - 16.5 = 31.5.
And the best of rank 1 for B A = (3 0; 0 2) is (3 0; 0 0).
"""

import numpy as np


def combine(adapters, weights):
    """Return A, B.

    >>> first = np.array([[2.0]]), np.array([[3.0]]), 4.0
    >>> second = np.array([[1.0], [1.0]]), np.array([[5.0, 6.0]]), 3.0
    >>> A, B = combine([first, second], np.array([2.0, -1.0]))
    >>> (B @ A).round(6)
    array([[31.5]])
    """
    raise NotImplementedError


def compress(A, B, k):
    """Return A2, B2.

    >>> A2, B2 = compress(np.array([[3.0, 0.0], [0.0, 2.0]]), np.eye(2), 1)
    >>> abs(B2 @ A2).round(6)
    array([[3., 0.],
           [0., 0.]])
    """
    raise NotImplementedError
