"""The weighted sum of what is left when the smallest entries of each tensor are set to 0.

    join(xᵢ; aᵢ) = Σ aᵢ top(xᵢ)        top(x): the ⌊density · n⌋ entries of x of largest |x|, the others 0

Which entries of A and B are small depends on the basis in which the adapter is written, and ΔW does not. So this has
zeros in A and B, and the rank of before; svd of a smaller rank has no zeros (docs/combining.md measures both).
"""

from collections.abc import Sequence

import numpy as np

from .combination import Array, Combination, Options, by_deltas, by_factors
from .linear import weighted_sum


def largest(x: Array, density: float) -> Array:
    """x with all but the ⌊density · n⌋ largest of its n entries set to 0; of equal ones the first stay.

    Rounding is no reason to keep one entry less: 0.29 · 100 is 28.999999999999996 in binary, and 29 here.
    """
    kept = np.zeros(x.size, bool)
    kept[np.argsort(-np.abs(x), axis=None, kind="stable")[: int(density * x.size + 1e-9)]] = True
    return np.where(kept.reshape(x.shape), x, 0)


def magnitude_prune(tensors: Sequence[Array], weights: Sequence[float], options: Options) -> Array:
    return weighted_sum([largest(x, options.density) for x in tensors], weights)


COMBINATIONS = {
    "magnitude_prune": Combination(
        "linear, of the largest entries of A and B", by_factors(magnitude_prune), ("density",), True
    ),
    "magnitude_prune_svd": Combination(
        "the same on ΔW, truncated to a rank", by_deltas(magnitude_prune), ("rank", "density")
    ),
}
