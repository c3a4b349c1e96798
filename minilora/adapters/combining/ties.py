"""Trim, elect a sign, and merge those that agree.

    xᵢ ← top(xᵢ)                                     as magnitude_prune
    γ  = + where Σ xᵢ ≥ 0, else -                    entry by entry, without the weights
    join(xᵢ; aᵢ) = Σ_{i in K} aᵢ xᵢ / |K|            K: those with the sign γ there; 0 where there is none

An entry that only one adapter keeps is not divided, as a mean over all would; where two differ in sign, only the
stronger one's value counts.

Source: Yadav et al. (2023), "TIES-Merging", algorithm 1, with λ = 1. Its tensors are whole ΔW's, so that is ties_svd
before the truncation; on A and B separately (ties) a sign elected for A says nothing of the sign of B A.
"""

from collections.abc import Sequence

import numpy as np

from .combination import Array, Combination, Options, by_deltas, by_factors
from .magnitude_prune import largest


def agreeing_mean(tensors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Σ aᵢ xᵢ / |K| over those with the elected sign."""
    x = np.stack(tensors)
    agrees = np.sign(x) == np.where(x.sum(0) >= 0, 1, -1)
    return np.tensordot(np.asarray(weights), x * agrees, 1) / np.maximum(agrees.sum(0), 1)


def ties(tensors: Sequence[Array], weights: Sequence[float], options: Options) -> Array:
    return agreeing_mean([largest(x, options.density) for x in tensors], weights)


COMBINATIONS = {
    "ties": Combination(
        "the largest entries of A and B, those with the majority's sign", by_factors(ties), ("density",), True
    ),
    "ties_svd": Combination("the same on ΔW, truncated to a rank", by_deltas(ties), ("rank", "density")),
}
