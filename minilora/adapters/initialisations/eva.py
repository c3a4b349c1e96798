"""EVA: A starts as the principal directions of the inputs; layers with more variance to explain get a higher rank.

    C = 1/N Σ (x - μ)(x - μ)ᵀ = Σ λᵢ vᵢ vᵢᵀ         A = (v₁ ... v_r)ᵀ         B = 0

of inputs x (in,) of a few batches, with λ₁ ≥ λ₂ ≥ ... It needs more than r of them.

Ranks (redistributed): the i-th direction of a layer explains the share λᵢ / Σ λ of its inputs' variance. The shares of
all layers are sorted, and the largest Σ r of them become ranks, at most ρ r of a layer. One of rank 0 has no adapter.
α becomes α r_new / r, so that s = α/r is the same everywhere. With ρ = 1 every layer keeps its r.

Source: Paischer et al. (2024), "Explained Variance Adaptation", section 3. The paper takes the SVD of X itself, and
PEFT 0.21.2 takes the mean μ away, as here: where inputs have a mean, as they do in a language model, the first
directions have little in common. PEFT updates its directions batch by batch until they settle (the same for ρ = 2,
|cos| 0.999 for ρ = 1), and leaves out tokens without a label; here every token that is not padding counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from ...backend import Array
from ...process import blas_threads
from .start import Data, Init, Moments, Start, check_rank, unchanged_start


def eva(W: Array, r: int, s: float, data: Data) -> Start:
    inputs = data.given("inputs")
    check_rank(r, min(inputs.N - 1, W.shape[1]), "the number of directions that its inputs in `data` have")
    _, V = np.linalg.eigh(inputs.covariance())  # the smallest λ first
    return unchanged_start(W, V.T[::-1][:r], np.zeros((len(W), r)))


@blas_threads()
def shares(inputs: Moments) -> Array:
    """(in,): λᵢ / Σ λ, the share of the variance along each direction, the largest first."""
    values = np.linalg.eigvalsh(inputs.covariance())[::-1]
    return values / values.sum()


def redistributed(ranks: Mapping[str, int], data: Mapping[str, Data], rho: float) -> dict[str, int]:
    """{layer: rank} with the same sum. Among equal shares, as of q and k, which read one x, the first layer's win."""
    if not rho >= 1:
        raise ValueError(f"rho = {rho!r} is not a number from 1 up")
    inputs = {path: data[path].given("inputs") for path in ranks}
    of_inputs = {id(x): shares(x) for x in {id(x): x for x in inputs.values()}.values()}
    pairs = [(share, path) for path, r in ranks.items() for share in of_inputs[id(inputs[path])][: round(rho * r)]]
    best = sorted(pairs, key=lambda pair: -pair[0])[: sum(ranks.values())]
    counts = Counter(path for _, path in best)
    return {path: counts[path] for path in ranks}


INITS = {
    "eva": Init(
        "A the principal directions of the inputs, B = 0, ranks redistributed (needs data)",
        eva,
        "inputs",
        redistribute=redistributed,
    )
}
