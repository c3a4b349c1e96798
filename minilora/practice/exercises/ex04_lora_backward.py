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
    ### BEGIN SOLUTION
    s = alpha / len(A)
    dropped = x * keep
    h = dropped @ A.T
    dh = s * dy @ B
    dx = dy @ W + dh @ A * keep
    dA = np.einsum("btr,bti->ri", dh, dropped)
    dB = s * np.einsum("bto,btr->or", dy, h)
    return dx, dA, dB
    ### END SOLUTION


### THE CHECK

from ..exercise import Exercise, Viva
from ..parts import Gradient

EXERCISE = Exercise(
    title="LoRA's backward",
    kind="write",
    minutes=30,
    difficulty=3,
    needs=["03"],
    parts=[Gradient(lora_backward, "dx dA dB", problem="low_rank")],
    hints=(
        "Name what lies between A and B: h = (x ∘ keep) Aᵀ, y = x Wᵀ + s h Bᵀ. Each is a linear layer as in exercise "
        "03: go back through them one at a time, from y.",
        "x reaches y by two paths, and dx is the sum of both. On which of them does the mask lie, and on which s?",
    ),
    viva=[
        Viva(
            "Bᵀ dB = dA Aᵀ holds for every right gradient of this layer. Why, and what can it not see?",
            "Moving an invertible factor from B to A changes no output, so that the loss is constant along that "
            "direction. It says nothing of dx, and a factor that dA and dB share, such as a missing s, passes.",
            "It is a property of low-rank matrices, and proves the gradient right.",
        ),
        Viva(
            "At the start B = 0. Which gradients are zero, and why does training still move?",
            "dA is zero, since dh = s dy B; dB is not, since h is not. After one step B is not zero, and A learns too.",
            "All of them are zero at first, and the optimizer's noise breaks the symmetry.",
        ),
    ],
    asks=["B1", "B2", "B5"],
    derivation="lora",
)
