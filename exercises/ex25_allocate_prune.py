"""25 · A rank for each layer; pruning

allocate shares out one budget of numbers among the layers of a model.
spectra[l] holds the singular values of the update ΔW of layer l, largest first
(a list of arrays, of different lengths). Each direction of layer l that is kept
costs costs[l] numbers, a row of A and a column of B. Return ranks, one whole
number for each layer: how many of its directions, from the first on, it keeps.

    ranks[0] · costs[0] + ranks[1] · costs[1] + ... ≤ budget

What is worth keeping is the sum of ‖ΔW‖² over all layers, in Frobenius' norm.
Choose greedily: at every step look at the next direction of each layer, and of
those that what is left of the budget can pay for take the one that keeps most
of that sum for each number that it costs; of equal ones that of the earlier
layer. Go on until none can be paid for. A direction that keeps nothing is never
taken, and a layer may end with rank 0.

prune makes a trained adapter fit a file. Stored at 4 bytes a number, A2 and B2
together may take at most n_bytes (what a file holds besides is not counted).
Return factors of the largest rank k that fits, at most min(r, out, in), whose
product is as near to B A as any matrix of rank k; k may be 0. Arrays stay
float64; only the product B2 A2 and its k are compared.

    A (r, in)    B (out, r)    A2 (k, in)    B2 (out, k)

By hand: spectra (4, 1) and (3, 2), costs 8 and 2, budget 12. The second layer's
3 keeps 9 for 2 numbers; then 4 keeps 16 for 8, and 2 as much for each number, 4
for 2: the earlier layer goes first, and 2 follows. 2 + 8 + 2 = 12 numbers are
spent: ranks 1 and 2. And A (2, 3), B (4, 2) at 60 bytes: one direction takes
(3 + 4) · 4 = 28, two take 56: k = 2.
"""

import numpy as np


def allocate(spectra, costs, budget):
    """Return ranks.

    >>> [int(rank) for rank in allocate([np.array([4.0, 1.0]), np.array([3.0, 2.0])], [8, 2], 12)]
    [1, 2]
    """
    raise NotImplementedError


def prune(A, B, n_bytes):
    """Return A2, B2.

    >>> A2, B2 = prune(np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]]), np.ones((4, 2)), 60)
    >>> A2.shape, B2.shape
    ((2, 3), (4, 2))
    """
    raise NotImplementedError
