"""13 · Layer norm and RMS norm

Both norms act on each row of x by itself: one token of one sample, C numbers.
With mean(a) = 1/C Σ_c a_c over the row,

    layer norm   y = g ∘ x̂ + b   x̂ = (x - μ)/σ   μ = mean(x)
                                                 σ = √(mean((x - μ)²) + ε)
    RMS norm     y = g ∘ x̂       x̂ = x/rms       rms = √(mean(x²) + ε)

    x, dx, dy (batch, tokens, C)    g, dg, b, db (C,)    ε a number, eps

dy is ∂L/∂y. Write two functions. layer_norm_backward returns dx, dg and db,
rms_norm_backward returns dx and dg. Every row uses the same g and b. b is not
given, since no gradient depends on it.

One row by hand, with C = 2, g = (3, 2) and dy = (2, 5).
Layer norm, ε = 3: x = (1, 3), so that μ = 2, σ = √(1 + 3) = 2 and
x̂ = (-0.5, 0.5). Then dx = (-0.75, 0.75), dg = (-1, 2.5), db = (2, 5).
RMS norm, ε = 6: x = (2, 4), so that rms = √(10 + 6) = 4 and x̂ = (0.5, 1).
Then dx = (0.6875, 0.875) and dg = (1, 5).

Layer norm is Ba, Kiros and Hinton (2016), RMS norm Zhang and Sennrich (2019).
"""

import numpy as np


def mean(a):
    """The mean of each row, (batch, tokens, 1)."""
    return a.mean(axis=-1, keepdims=True)


def layer_norm_backward(dy, x, g, eps):
    """Return dx, dg, db.

    >>> x, g, dy = np.array([[[1.0, 3.0]]]), np.array([3.0, 2.0]), np.array([[[2.0, 5.0]]])
    >>> dx, dg, db = layer_norm_backward(dy, x, g, 3.0)
    >>> dx.tolist(), dg.tolist(), db.tolist()
    ([[[-0.75, 0.75]]], [-1.0, 2.5], [2.0, 5.0])
    """
    ### BEGIN SOLUTION
    mu = mean(x)
    sigma = np.sqrt(mean((x - mu) ** 2) + eps)
    xhat = (x - mu) / sigma
    dxhat = dy * g
    dx = (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) / sigma
    return dx, (dy * xhat).sum(axis=(0, 1)), dy.sum(axis=(0, 1))
    ### END SOLUTION


def rms_norm_backward(dy, x, g, eps):
    """Return dx, dg.

    >>> x, g, dy = np.array([[[2.0, 4.0]]]), np.array([3.0, 2.0]), np.array([[[2.0, 5.0]]])
    >>> dx, dg = rms_norm_backward(dy, x, g, 6.0)
    >>> dx.tolist(), dg.tolist()
    ([[[0.6875, 0.875]]], [1.0, 5.0])
    """
    ### BEGIN SOLUTION
    rms = np.sqrt(mean(x**2) + eps)
    xhat = x / rms
    dxhat = dy * g
    dx = (dxhat - xhat * mean(dxhat * xhat)) / rms
    return dx, (dy * xhat).sum(axis=(0, 1))
    ### END SOLUTION


### THE CHECK

from ..exercise import Exercise, Viva
from ..parts import Gradient

EXERCISE = Exercise(
    title="Layer norm and RMS norm",
    kind="write",
    minutes=40,
    difficulty=3,
    needs=["03"],
    parts=[
        Gradient(layer_norm_backward, "dx dg db", problem="layer_norm", picture="dx"),
        Gradient(rms_norm_backward, "dx dg", problem="rms_norm", picture="dx"),
    ],
    hints=(
        "Begin with dx̂, the gradient in x̂. Then take one row, and write down by which paths one x_j of it reaches "
        "the outputs: by itself, and by every statistic of the row.",
        "Work out ∂σ/∂x_j, and write it with x̂_j. Your dx can be tested without a reference: shifting a row of x "
        "changes no output of layer norm, and scaling it hardly any output of either norm. What must dx then be "
        "orthogonal to?",
    ),
    viva=[
        Viva(
            "Which directions of dy does layer norm take out of dx, and why?",
            "With dx̂ = dy ∘ g, the part of dx̂ along (1, ..., 1) and, but for ε, the part along x̂: shifting or "
            "scaling a row of x changes no output, so that the loss has no slope there.",
            "None: the backward divides by σ, as the forward does.",
        ),
        Viva(
            "What does RMS norm save against layer norm, and what does it lose?",
            "The mean and its term in the backward, and the bias. A shift of the whole row is no longer taken out, and "
            "rms is not the standard deviation unless the mean is 0.",
            "It is the same function, written in a faster way.",
        ),
    ],
    derivation="layer_norm",
)
