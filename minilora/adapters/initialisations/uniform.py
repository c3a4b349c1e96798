"""LoRA's own initialisation, as its library and PEFT have it.

    A uniform within ±1/√in        B = 0

so that ΔW = 0, and at the first step only B moves: dB = s G Aᵀ, while dA = s Bᵀ G = 0.

Source: Hu et al. (2021), "LoRA", section 4.1, which has A normal; loralib and PEFT draw it by Kaiming's rule with
a = √5, the default of PyTorch's Linear, and that is ±1/√in (init_lora_weights=True).
"""

import math

import numpy as np

from ...backend import Array, generator
from .start import Data, Init, Start, unchanged_start


def uniform(W: Array, r: int, s: float, data: Data) -> Start:
    n_out, n_in = W.shape
    A = generator(data.rng).uniform(-1, 1, (r, n_in)) / math.sqrt(n_in)
    return unchanged_start(W, A, np.zeros((n_out, r)))


INITS = {"uniform": Init("A uniform within ±1/√in, B = 0 (the default)", uniform)}
