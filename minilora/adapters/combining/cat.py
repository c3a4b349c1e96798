"""The sum itself: the A stacked as rows, the B as columns.

                                        w₁s₁ A₁
    B A = [B₁ | B₂ | ...]  @            w₂s₂ A₂          = Σ wᵢ sᵢ Bᵢ Aᵢ = Σ
                                        ...

by the rule for products of matrices in blocks. The rank is r₁ + r₂ + ...; it is exact, and needs no common rank.
"""

from collections.abc import Sequence

import numpy as np

from .combination import Array, Combination, Factors, Options


def cat(adapters: Sequence[Factors], weights: Sequence[float], options: Options = Options()) -> tuple[Array, Array]:
    A = np.concatenate([w * s * A for w, (A, _, s) in zip(weights, adapters, strict=True)])
    return A, np.concatenate([B for _, B, _ in adapters], axis=1)


COMBINATIONS = {
    "cat": Combination("exact, of rank r₁ + r₂ + ...", cat),
}
