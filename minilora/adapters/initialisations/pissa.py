"""PiSSA: the principal part of W is trained, and the rest of it is frozen.

    W = U Σ Vᵀ            A = √(Σ_r / s) V_rᵀ        B = U_r √(Σ_r / s)        W_residual = W - s B A

with the r largest singular values Σ_r, so s B A = U_r Σ_r V_rᵀ is the best approximation of W of rank r, and
‖W_residual‖² = Σ_{i>r} σᵢ². Both factors move from the first step. The paper has no s; with α = r, its advice, s = 1.
If σ_r = σ_{r+1}, the principal part is not unique.

Source: Meng, Wang, Zhang (2024), "PiSSA", equations 2 to 4. PEFT 0.21.2 computes it in float32 alone, and
"pissa_niter_N" approximates the singular vectors by a random projection: its W_residual is off by 4e-3 to 4e-2 of W,
and cannot be computed again from W.
"""

from ...backend import Array
from ..spectrum import svd
from .start import Data, Init, Start, check_rank, residual_start, root_of_sigma


def pissa(W: Array, r: int, s: float, data: Data = Data()) -> Start:
    check_rank(r, min(W.shape), "the number of singular values of W")
    U, sigma, Vt = svd(W)
    root = root_of_sigma(sigma[:r], s)
    return residual_start(W, root[:, None] * Vt[:r], U[:, :r] * root, s)


INITS = {"pissa": Init("the r largest singular triplets of W learn, the rest stays", pissa, takes_from_W=True)}
