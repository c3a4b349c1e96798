"""A simulated market. A visitor who sees item i, whose features are f_i, goes on to item j with probability

    softmax_j(f_iᵀ M f_j / 2 + gᵀ f_j)

and to none twice. M is the market's; g belongs to one of two groups of visitors, and which, the session must tell.
"""

import numpy as np

from minilora.data import Batch

N, F, T = 200, 8, 10  # items, features, steps of a session


def sessions(f, M, groups, n, rng):
    """n sessions as a Batch of ids and what came next, and P (n, T, N), the probabilities they were drawn from."""
    ids, P, g = rng.integers(0, N, (n, T + 1)), np.zeros((n, T, N)), groups[rng.integers(0, len(groups), n)]
    for t in range(T):
        score = (f[ids[:, t]] @ M / 2 + g) @ f.T
        np.put_along_axis(score, ids[:, : t + 1], -np.inf, axis=1)
        p = np.exp(score - score.max(axis=1, keepdims=True))
        P[:, t] = p / p.sum(axis=1, keepdims=True)
        ids[:, t + 1] = (P[:, t].cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return Batch(ids[:, :-1], ids[:, 1:]), P
