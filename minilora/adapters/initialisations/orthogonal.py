"""A and B both random and orthogonal to each other: B A = 0, and both learn from the first step.

    Q (r, r) a random orthogonal matrix, its rows shared out: P (r/2, r) the first, third, ... and E (r/2, r) the others
    A = Pᵀ Z / 10         Z (r/2, in) normal
    B = Y E / 10          Y (out, r/2) normal            B A = Y E Pᵀ Z / 100 = 0, as E Pᵀ = 0

B A = 0 holds to rounding alone, so the first outputs are the base's to rounding (about ε ‖A‖ ‖B‖), not to the bit. r
must be even.

Source: Datta (2024), "Rethinking LoRA initialisations", on datta0.github.io; the factor 1/10 is PEFT's. The draws are
NumPy's, not torch's.
"""

import numpy as np

from ...backend import Array, generator
from .start import Data, Init, Start, unchanged_start


def orthogonal(W: Array, r: int, s: float, data: Data) -> Start:
    if r % 2:
        raise ValueError(f"r = {r} is odd, and 'orthogonal' gives one half of r directions to A and one to B")
    (n_out, n_in), rng = W.shape, generator(data.rng)
    Q, _ = np.linalg.qr(rng.standard_normal((r, r)))
    A = Q[0::2].T @ rng.standard_normal((r // 2, n_in)) / 10
    B = rng.standard_normal((n_out, r // 2)) @ Q[1::2] / 10
    return unchanged_start(W, A, B)


INITS = {"orthogonal": Init("A and B random with B A = 0, both learn at once (r even)", orthogonal)}
