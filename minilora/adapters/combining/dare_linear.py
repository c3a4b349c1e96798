"""The weighted sum of what is left when entries are dropped at random, and the rest scaled up.

    join(xᵢ; aᵢ) = Σ aᵢ mᵢ ∘ xᵢ / p        mᵢ: each entry 1 with probability p = density, else 0

E mᵢ ∘ xᵢ / p = xᵢ, so on the ΔWᵢ (dare_linear_svd) the mean over the masks is Σ, and an entry x has the variance
x² (1 - p) / p. On A and B separately the mean is linear's, as the masks are independent.

Source: Yu et al. (2023), "Language Models are Super Mario", equation 1, whose drop rate is 1 - p.
"""

from collections.abc import Sequence

import numpy as np

from .combination import Array, Combination, Options, by_deltas, by_factors
from .linear import weighted_sum


def dropped(x: Array, options: Options) -> Array:
    """m ∘ x / p"""
    assert options.rng is not None
    return np.where(options.rng.random(x.shape) < options.density, x / options.density, 0)


def dare_linear(tensors: Sequence[Array], weights: Sequence[float], options: Options) -> Array:
    return weighted_sum([dropped(x, options) for x in tensors], weights)


COMBINATIONS = {
    "dare_linear": Combination("linear, of entries kept at random", by_factors(dare_linear), ("density", "rng"), True),
    "dare_linear_svd": Combination(
        "the same on ΔW, truncated to a rank", by_deltas(dare_linear), ("rank", "density", "rng")
    ),
}
