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
    ### BEGIN SOLUTION
    K, C = np.sqrt(2 / np.pi), 0.044715
    tanh = np.tanh(K * (x + C * x**3))
    du = K * (1 + 3 * C * x**2)
    return dy * (1 + tanh + x * (1 - tanh**2) * du) / 2
    ### END SOLUTION


def swiglu_backward(dy, gate, up):
    """Return dgate, dup.

    >>> dgate, dup = swiglu_backward(np.array([[[4.0]]]), np.array([[[0.0]]]), np.array([[[3.0]]]))
    >>> float(dgate[0, 0, 0]), float(dup[0, 0, 0])
    (6.0, 0.0)
    """
    ### BEGIN SOLUTION
    sigma = 1 / (1 + np.exp(-gate))
    silu = gate * sigma
    dgate = dy * up * (sigma + silu * (1 - sigma))
    dup = dy * silu
    return dgate, dup
    ### END SOLUTION


### THE CHECK

from ..exercise import Exercise, Viva
from ..parts import Gradient

EXERCISE = Exercise(
    title="GELU and SwiGLU",
    kind="write",
    minutes=20,
    difficulty=2,
    parts=[
        Gradient(gelu_backward, "dx", problem="gelu"),
        Gradient(swiglu_backward, "dgate dup", problem="swiglu"),
    ],
    hints=(
        "Both are products of the input and something that depends on it. Write the product rule first, with a name "
        "for each of its two terms.",
        "tanh' is a function of tanh, and σ' one of σ: neither needs a new exponential. Test the slope of GELU at a "
        "large positive and a large negative x, where you know it; test SwiGLU with up = 0.",
    ),
    viva=[
        Viva(
            "What must be kept of GELU's forward for its backward, and what is the least?",
            "x is enough, and the slope can be computed from it again; or the slope alone, one array, since "
            "dx = dy ∘ slope. The output alone is not enough: GELU is not monotonic, so that two x have one y.",
            "The output y, as with ReLU.",
        ),
        Viva(
            "SwiGLU has three matrices where an MLP with GELU has two. What follows for its width, and for LoRA?",
            "At an equal number of parameters its hidden width is 2/3 of the other's. LoRA has three targets there, "
            "gate_proj, up_proj and down_proj: code that adapts a fixed pair leaves one out.",
            "It has a third more parameters, and LoRA adapts the two matrices that every MLP has.",
        ),
    ],
    derivation="gelu",
)
