"""EVA: A begins as the principal directions of the layer's inputs, and layers with more to explain get more ranks.

    C = 1/N Σ (x - μ)(x - μ)ᵀ = Σ λᵢ vᵢ vᵢᵀ         A = (v₁ ... v_r)ᵀ         B = 0

of inputs x (in,) of a few batches, with λ₁ ≥ λ₂ ≥ ... It needs more than r of them.

Ranks (redistributed): the i-th direction of a layer explains the share λᵢ / Σ λ of its inputs' variance. The shares of
all layers are sorted, and the largest Σ r of them become ranks, at most ρ r of a layer. One of rank 0 has no adapter.
α becomes α r_new / r, so that s = α/r is the same everywhere. With ρ = 1 every layer keeps its r.

Source: Paischer et al. (2024), "Explained Variance Adaptation", section 3. The paper takes the SVD of X itself, and
PEFT 0.21.2 takes the mean μ away, as here: where inputs have a mean, as they do in a language model, the first
directions have little in common. PEFT updates its directions batch by batch until they settle (the same for ρ = 2,
|cos| 0.999 for ρ = 1), and leaves out tokens without a label; here every token counts that is no padding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from ...backend import Array
from ...process import blas_threads
from .start import Data, Init, Moments, Start, check_rank, kept


def eva(W: Array, r: int, s: float, data: Data) -> Start:
    inputs = data.given("inputs")
    check_rank(r, min(inputs.N - 1, W.shape[1]), "the number of directions that its inputs in `data` have")
    A, _ = directions(inputs, r)
    return kept(W, A, np.zeros((len(W), r)))


@blas_threads()
def directions(inputs: Moments, k: int) -> tuple[Array, Array]:
    """v₁ ... v_k (k, in), and the share of the variance along each (k,)."""
    C = inputs.covariance()
    values, vectors = np.linalg.eigh(C)  # the smallest first
    return vectors.T[::-1][:k], values[::-1][:k] / np.trace(C)


def redistributed(ranks: Mapping[str, int], data: Mapping[str, Data], rho: float) -> dict[str, int]:
    """{layer: rank} with the same sum. Of equal shares, as of q and k, which read one x, the first layer's go first."""
    if not rho >= 1:
        raise ValueError(f"rho = {rho!r} is not a number from 1 up")
    found = {path: directions(data[path].given("inputs"), round(rho * r))[1] for path, r in ranks.items()}
    shares = sorted(((share, path) for path, each in found.items() for share in each), key=lambda pair: -pair[0])
    best = Counter(path for _, path in shares[: sum(ranks.values())])
    return {path: best[path] for path in ranks}


INITS = {
    "eva": Init(
        "A the principal directions of the inputs, B = 0, ranks redistributed (needs data)",
        eva,
        "inputs",
        redistribute=redistributed,
    )
}
