"""LoftQ: W in few bits, and an A and B that start as the best approximation of its rounding error.

What is minimised is the error of base and adapter together, over both:

    ‖W - Q - s B A‖                 Q on the grid of a format (quantization/)        A (r, in)   B (out, r)

Two steps alternate T times. With q the format's rounding, and s B A = 0 before the first,

    Q = q(W - s B A)                                                             the step of Q
    A = √(Σ_r / s) V_rᵀ      B = U_r √(Σ_r / s)     of  W - Q = U Σ Vᵀ           the step of A and B

so that s B A = U_r Σ_r V_rᵀ, whatever s is: Q never depends on it. (‖W - q(W - s B A)‖, without s B A outside, would
be the error of Q alone, which an adapter only makes larger.)

The step of A and B never adds to the error: s B A is the best of rank r (Eckart, Young, 1936), and what is left is
Σ_{i>r} σᵢ², so Σ_{i≤r} σᵢ² less than Q's own. The step of Q may. q takes the nearest level for each entry, but of a
grid whose scale it does not choose, the largest entry of a block or row of W - s B A: the Q before, on another grid,
can be nearer. So more steps need not reduce the error. On most matrices it falls with each, and by less each time:
rounding errors are nearly independent, their singular values are nearly those of noise, and the r largest are a small
part (docs/variants.md has numbers).

Unlike the other initialisations that take from W, it only comes near W: W - Q - s B A is not 0, and only Q is stored.
Without A and B the layer is Q. Q and the SVD are computed in float64 also for a float32 W, so that the sums of another
BLAS choose the same codes; Q can then be recomputed from W.

Source: Li et al. (2023), "LoftQ", section 3 and algorithm 1, where T = 5. In PEFT 0.21.2 T is 1 by default, and A and B
lack 1/s: the layer begins with Q + s U_r Σ_r V_rᵀ, which at s = 2 is as far from W as Q alone, ‖E - 2 E_r‖ = ‖E‖, and
beyond it farther. Of a Conv1D (GPT-2) it rounds Wᵀ, along the other side, and gives the layer Aᵀ for B and Bᵀ for A:
with in = out the start is wrong, and else no product fits. It needs a GPU even where the model is on the CPU.
"""

from __future__ import annotations

import numpy as np

from ...backend import Array
from ...quantization import Quantized, format_named
from ..spectrum import svd
from .start import Data, Init, Start, check_rank, root_of_sigma


def loftq(W: Array, r: int, s: float, data: Data = Data(), quantize: str = "nf4", rounds: int = 1) -> Start:
    """W_residual is Q, a matrix of the format `quantize`, after T = `rounds`."""
    check_rank(r, min(W.shape), "the number of singular values of W - Q")
    Q = rounded(W, r, quantize, rounds)
    U, sigma, Vt = svd(W.astype(np.float64) - Q.astype(np.float64).dense())
    root = root_of_sigma(sigma[:r], s)
    A, B = root[:, None] * Vt[:r], U[:, :r] * root
    return Start(A.astype(W.dtype), B.astype(W.dtype), Q)


def rounded(W: Array, r: int, quantize: str, rounds: int) -> Quantized:
    """Q after T = `rounds` quantizations, with T - 1 SVDs in between."""
    W64, encode = W.astype(np.float64), format_named(quantize).of
    Q = encode(W64)
    for _ in range(rounds - 1):
        U, sigma, Vt = svd(W64 - Q.dense())
        Q = encode(W64 - (U[:, :r] * sigma[:r]) @ Vt[:r])
    return Q.astype(W.dtype)


INITS = {"loftq": Init("W in 4 or 8 bits, A and B the best of rank r for its error", loftq, quantizes=True)}
