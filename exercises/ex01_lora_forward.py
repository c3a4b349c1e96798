"""01 · The forward

A LoRA layer adds a product of two small matrices to a frozen one (Hu et al.,
2021, equation 3):

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ        s = α/r

    x (..., in)    W (out, in)    b (out,)
    A (r, in)      B (out, r)     y (..., out)

x has any number of axes before its last one, or none. The rank r is read off
A; where r = 0 there is no low-rank path. Never form the (out, in) matrix B A:
for large layers it is as large as W.

One number by hand, with every matrix 1 × 1: x = 2, W = 3, b = 4, A = 5, B = 6,
α = 7, r = 1. x Wᵀ + b = 10, x Aᵀ = 10, (x Aᵀ) Bᵀ = 60, s = 7,
y = 10 + 7 · 60 = 430.
"""

import numpy as np


def lora_forward(x, W, b, A, B, alpha):
    """Return y.

    >>> lora_forward(np.array([2.0]), np.array([[3.0]]), np.array([4.0]), np.array([[5.0]]), np.array([[6.0]]), 7.0)
    array([430.])
    """
    raise NotImplementedError
