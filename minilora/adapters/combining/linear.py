"""The A in one sum, and the B in another: not the sum of the products.

    join(xᵢ; aᵢ) = Σ aᵢ xᵢ        so B A = Σ + Σ_{i≠j} aᵢ aⱼ Bᵢ Aⱼ,   aᵢ = √(wᵢsᵢ)

PEFT calls it "a very rough approximation". It is exact for one adapter, and for several where each Bᵢ Aⱼ is 0. On the
ΔWᵢ the same join is Σ, and its NAME_svd is svd.
"""

from collections.abc import Sequence

import numpy as np

from .combination import Array, Combination, Options, by_factors


def weighted_sum(tensors: Sequence[Array], weights: Sequence[float], options: Options = Options()) -> Array:
    """Σ aᵢ xᵢ"""
    return np.tensordot(np.asarray(weights), np.stack(tensors), 1)


COMBINATIONS = {
    "linear": Combination("A and B summed separately, with cross terms", by_factors(weighted_sum), of_factors=True),
}
