"""MiCA: ΔW acts where W does least, and only A is trained.

    W = U Σ Vᵀ            A = 0        B = the r columns of U of the smallest singular values, frozen

so ΔW = s B A has its columns in the space of these r directions for good, and dA = s Bᵀ G ≠ 0 from the first step.

Source: "MiCA: Minor Component Adaptation" (2026, arXiv 2604.01694), as PEFT 0.21.2 has it.
"""

import numpy as np

from ...backend import Array
from ..spectrum import svd
from .start import Data, Init, Start, check_rank, unchanged_start


def mica(W: Array, r: int, s: float, data: Data = Data()) -> Start:
    check_rank(r, min(W.shape), "the number of singular vectors of W")
    return unchanged_start(W, np.zeros((r, W.shape[1])), svd(W).U[:, -r:])


INITS = {"mica": Init("A = 0, B the r minor singular vectors of W, frozen", mica, freezes_B=True)}
