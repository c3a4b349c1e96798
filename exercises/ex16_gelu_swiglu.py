"""16 · GELU and SwiGLU

Two activations, entry by entry. GELU in its tanh form, which GPT-2 has
(Hendrycks and Gimpel, 2016):

    y = x (1 + tanh u)/2        u = K (x + C x³)    K = √(2/π)    C = 0.044715

SwiGLU, which Llama has, takes two inputs of one shape (Shazeer, 2020, eq. 5):

    y = silu(gate) ∘ up         silu(z) = z σ(z)    σ(z) = 1/(1 + e^(-z))

    x, gate, up, y, dy and every gradient (batch, tokens, width)

dy is ∂L/∂y. gelu_backward returns dx, for the tanh form and no other;
swiglu_backward returns dgate and dup.

One number by hand. GELU: x = 1, dy = 2. u = 0.797885 · 1.044715 = 0.833562,
tanh u = 0.682384, y = 0.841192, and dx = 2 · 1.082964 = 2.165928.
SwiGLU: gate = 0, up = 3, dy = 4. σ = 0.5 and silu = 0: dgate = 6, dup = 0.
"""

import numpy as np


def gelu_backward(dy, x):
    """Return dx.

    >>> round(float(gelu_backward(np.array([[[2.0]]]), np.array([[[1.0]]]))[0, 0, 0]), 6)
    2.165928
    """
    raise NotImplementedError


def swiglu_backward(dy, gate, up):
    """Return dgate, dup.

    >>> dgate, dup = swiglu_backward(np.array([[[4.0]]]), np.array([[[0.0]]]), np.array([[[3.0]]]))
    >>> float(dgate[0, 0, 0]), float(dup[0, 0, 0])
    (6.0, 0.0)
    """
    raise NotImplementedError
