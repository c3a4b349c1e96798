"""LoRA's initialisation with a normal A.

    A normal, of standard deviation 1/r        B = 0

Source: Hu et al. (2021), "LoRA", section 4.1 ("a random Gaussian initialization for A and zero for B"), which does not
say how wide; 1/r is PEFT's. x Aᵀ then has the variance in/r² for x of variance 1, where uniform.py has 1/3.
"""

import numpy as np

from ...backend import Array, generator
from .start import Data, Init, Start, unchanged_start


def gaussian(W: Array, r: int, s: float, data: Data) -> Start:
    n_out, n_in = W.shape
    return unchanged_start(W, generator(data.rng).standard_normal((r, n_in)) / r, np.zeros((n_out, r)))


INITS = {"gaussian": Init("A normal with standard deviation 1/r, B = 0", gaussian)}
