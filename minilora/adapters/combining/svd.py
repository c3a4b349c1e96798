"""The best approximation of the sum of a rank k, without forming the sum.

Σ = B A with the long factors of cat. With B = Q_B R_B and Aᵀ = Q_A R_A the small core R_B R_Aᵀ, square with
r₁ + r₂ + ... rows, has the singular values of Σ (spectrum.lora_svd), and the first k triplets are the nearest matrix
of rank k. Its distance from Σ is known before it is made:

    ‖Σ - B A‖ = √(σ²_{k+1} + σ²_{k+2} + ...)        Eckart, Young (1936)

That costs about (in + out)(r₁ + r₂ + ...)² multiplications; PEFT 0.21.2 decomposes the dense Σ, in · out · min(in, out)
of them. What is returned shares √σ between A and B; PEFT's A has orthonormal rows, and the product is the same.
"""

from collections.abc import Sequence

from ..spectrum import lora_svd, truncate
from .cat import cat
from .combination import Array, Combination, Factors, Options


def svd(adapters: Sequence[Factors], weights: Sequence[float], options: Options) -> tuple[Array, Array]:
    B, A = truncate(lora_svd(*cat(adapters, weights), 1.0), options.rank)
    return A, B


COMBINATIONS = {
    "svd": Combination("the best approximation of a rank, its error known in advance", svd, ("rank",)),
}
