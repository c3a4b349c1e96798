"""CorDA: the singular vectors of W weighted by the layer's inputs.

    C = 1/N Σ x xᵀ + δ I            W C = U Σ Vᵀ,  so W = U Σ Vᵀ C⁻¹

    A = √(Σ_k / s) V_kᵀ C⁻¹        B = U_k √(Σ_k / s)        W_residual = W - s B A

k are r of the triplets: the largest, where W acts on inputs like these (instruction-previewed mode, "corda": give it
the new task's), or the smallest (knowledge-preserved mode, "corda_kpm": give it what is to be kept). δ, a hundredth of
the mean on C's diagonal, keeps C invertible. A factor on all x changes nothing of s B A.

Source: Yang et al. (2024), "CorDA", section 3. PEFT 0.21.2 divides each sequence by its largest value before
averaging, so sequences weigh differently, and takes one sequence at a time; in float32 it doubles δ until C⁻¹ is good.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ...backend import Array
from ..spectrum import svd
from .start import Data, Init, Start, check_rank, residual_start, root_of_sigma


def corda(W: Array, r: int, s: float, data: Data, largest: bool = True) -> Start:
    check_rank(r, min(W.shape), "the number of singular values of W")
    C = data.given("inputs").second()
    C = C + 0.01 * np.diag(C).mean() * np.eye(len(C))
    U, sigma, Vt = svd(W @ C)
    k = slice(r) if largest else slice(len(sigma) - r, None)
    root = root_of_sigma(sigma[k], s)
    return residual_start(W, root[:, None] * np.linalg.solve(C, Vt[k].T).T, U[:, k] * root, s)


INITS = {
    "corda": Init(
        "the triplets of W that matter most for the inputs learn (needs data)", corda, "inputs", takes_from_W=True
    ),
    "corda_kpm": Init(
        "the triplets of W that matter least for the inputs learn (needs data)",
        partial(corda, largest=False),
        "inputs",
        takes_from_W=True,
    ),
}
