"""Trim, elect a sign, and merge those that agree.

    xᵢ ← top(xᵢ)                                     as magnitude_prune
    γ  = + where Σ xᵢ ≥ 0, else -                    place by place, without the weights
    join(xᵢ; aᵢ) = Σ_{i in K} aᵢ xᵢ / |K|            K: those with the sign γ there; 0 where there is none

A place that one adapter alone kept has its number whole, where a mean over all adapters would halve it; one on which
two of them differ has that of the stronger side.

Source: Yadav et al. (2023), "TIES-Merging", algorithm 1, with λ = 1. Its tensors are whole ΔW's, so that is ties_svd
before the cut; on A and B apart (ties) a sign elected for A says nothing of the sign of B A.
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
        "the largest numbers, those of the majority's sign, in A and B", by_factors(ties), ("density",), True
    ),
    "ties_svd": Combination("the same of the ΔW's, cut to a rank", by_deltas(ties), ("rank", "density")),
}
