"""OLoRA: B begins with orthonormal columns, from the QR decomposition of W.

    W = Q R               A = R_r (the first r rows)   B = Q_r (the first r columns)      W_residual = W - s B A

Qᵀ Q = I, R upper triangular: Q_r R_r repeats the first r columns of W, so those of W_residual are 0 for s = 1. For
another s, s Q_r R_r is subtracted from W, as in PEFT and the authors' code.

Source: Büyükakyüz (2024), "OLoRA", algorithm 1. PEFT 0.21.2 decomposes what the file stores, for a Conv1D (GPT-2) Wᵀ:
with in = out its outputs are then wrong from the start, and with in ≠ out the first forward raises.
"""

import numpy as np

from ...backend import Array
from .start import Data, Init, Start, check_rank, residual_start


def olora(W: Array, r: int, s: float, data: Data = Data()) -> Start:
    check_rank(r, min(W.shape), "the number of columns of Q in W = Q R")
    Q, R = np.linalg.qr(W)
    return residual_start(W, R[:r], Q[:, :r], s)


INITS = {
    "olora": Init("the first r columns of Q and rows of R of W = Q R learn, the rest stays", olora, takes_from_W=True)
}
