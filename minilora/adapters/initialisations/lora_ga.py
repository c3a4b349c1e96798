"""LoRA-GA: the first step of A and B goes where a step of W would go.

    G = ∂L/∂W = U Σ Vᵀ           c = out^¼ / √γ

    A = c V[1..r]ᵀ           B = c U[r+1..2r]           W_residual = W - s B A

To first order in η a step of SGD moves s B A by -η s² (B Bᵀ G + G AᵀA): along G projected on r directions of its output
and r others of its input, so 2r of its triplets, the most that rank 2r can hold of a step of W. c keeps the size of
outputs whatever out is. r is at most min(in, out) / 2. A and B belong to different triplets, so the arbitrary signs of
an SVD would change B A: here the entry of largest magnitude in each column of U is positive.

Source: Wang, Yu, Li (2024), "LoRA-GA", theorem 3.1 and algorithm 1. PEFT 0.21.2 differs: it multiplies B by Σ, and A
not by c; takes `in` for `out` on a Conv1D (GPT-2); approximates the SVD by a random projection, whose signs depend on
torch's seed; and above min(in, out) / 2 raises an error on shapes.
"""

import numpy as np

from ...backend import Array
from ..spectrum import svd
from .start import Data, Init, Start, check_rank, residual_start

GAMMA = 16  # γ, as in PEFT


def lora_ga(W: Array, r: int, s: float, data: Data) -> Start:
    check_rank(r, min(W.shape) // 2, "half of the singular vectors of W's gradient: A and B take r of them each")
    U, _, Vt = svd(data.given("gradient"))
    signs = np.sign(U[abs(U).argmax(axis=0), np.arange(len(U.T))])
    U, Vt = U * signs, Vt * signs[:, None]
    c = len(W) ** 0.25 / GAMMA**0.5
    return residual_start(W, c * Vt[:r], c * U[:, r : 2 * r], s)


INITS = {"lora_ga": Init("singular vectors of W's gradient (needs data)", lora_ga, "gradient", takes_from_W=True)}
