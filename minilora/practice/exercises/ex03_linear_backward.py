"""03 · A linear layer's backward

    y = x Wᵀ + b

    x, dx (batch, tokens, in)    W, dW (out, in)    b, db (out,)
    y, dy (batch, tokens, out)

dy is the gradient of a loss L in y: dy = ∂L/∂y, of the shape of y. Return
dx = ∂L/∂x, dW = ∂L/∂W and db = ∂L/∂b. Every row of x, over batch and tokens,
goes through the same W and b.

One number by hand, with two rows and every width 1: x = (2, 3), W = 5,
dy = (7, 11). dx = (35, 55), dW = 7 · 2 + 11 · 3 = 47, db = 18.
"""

import numpy as np


def linear_backward(dy, x, W):
    """Return dx, dW, db.

    >>> dx, dW, db = linear_backward(np.array([[[7.0], [11.0]]]), np.array([[[2.0], [3.0]]]), np.array([[5.0]]))
    >>> float(dx[0, 0, 0]), float(dW[0, 0]), float(db[0])
    (35.0, 47.0, 18.0)
    """
    ### BEGIN SOLUTION
    dx = dy @ W
    dW = np.einsum("bto,bti->oi", dy, x)
    db = dy.sum(axis=(0, 1))
    return dx, dW, db
    ### END SOLUTION


### THE CHECK

from ..exercise import Exercise, Viva
from ..parts import Gradient

EXERCISE = Exercise(
    title="A linear layer's backward",
    kind="write",
    minutes=15,
    difficulty=1,
    parts=[Gradient(linear_backward, "dx dW db", problem="linear")],
    hints=(
        "Write y of one row as a sum: y_o = Σ_i W_oi x_i + b_o. Where does one W_oi appear, and in how many rows?",
        "dW and db are sums over batch and tokens; dx is not. The shapes leave little choice for the order of factors.",
    ),
    viva=[
        Viva(
            "Why is dW a sum over the rows and dx not?",
            "Every row uses the same W, so that a change of W changes the loss through every row; a row of x changes "
            "its own row of y alone.",
            "Because the shapes would not fit otherwise.",
        ),
        Viva(
            "Which of the three gradients does a frozen layer still compute, and what may it forget?",
            "dx, for the layers below. It needs W alone for it, so that x need not be kept.",
            "None: it is frozen.",
        ),
    ],
    asks=["B1", "B3"],
    derivation="linear",
)
