"""Entries dropped at random and rescaled, as dare_linear; then a sign elected and those that agree merged, as ties."""

from collections.abc import Sequence

from .combination import Array, Combination, Options, by_deltas, by_factors
from .dare_linear import dropped
from .ties import agreeing_mean


def dare_ties(tensors: Sequence[Array], weights: Sequence[float], options: Options) -> Array:
    return agreeing_mean([dropped(x, options) for x in tensors], weights)


COMBINATIONS = {
    "dare_ties": Combination("ties, of entries kept at random", by_factors(dare_ties), ("density", "rng"), True),
    "dare_ties_svd": Combination(
        "the same on ΔW, truncated to a rank", by_deltas(dare_ties), ("rank", "density", "rng")
    ),
}
