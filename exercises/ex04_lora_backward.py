"""04 · LoRA's backward

    y = x Wᵀ + s (x ∘ keep) Aᵀ Bᵀ        s = α/r

    x, keep, dx (batch, tokens, in)    W (out, in)
    A, dA (r, in)    B, dB (out, r)    dy (batch, tokens, out)

W is frozen. keep is the mask of dropout, which only the low-rank path sees: 0
where x is dropped, 1/(1-p) elsewhere. dy is ∂L/∂y. Return dx, dA and dB. W
gets no gradient of its own.

One number by hand, with every matrix 1 × 1: x = 2, keep = 1.25 (p = 0.2),
W = 3, A = 5, B = 7, α = 4, r = 1, dy = 1. x ∘ keep = 2.5, h = 2.5 · 5 = 12.5,
s = 4: dB = 4 · 12.5 = 50, dA = 4 · 7 · 2.5 = 70,
dx = 3 + 4 · 7 · 5 · 1.25 = 178.
"""

import numpy as np


def lora_backward(dy, x, keep, W, A, B, alpha, p):
    """Return dx, dA, dB.

    >>> one = np.ones((1, 1, 1))
    >>> dx, dA, dB = lora_backward(one, 2 * one, 1.25 * one, 3 * one[0], 5 * one[0], 7 * one[0], 4.0, 0.2)
    >>> float(dx[0, 0, 0]), float(dA[0, 0]), float(dB[0, 0])
    (178.0, 70.0, 50.0)
    """
    raise NotImplementedError
