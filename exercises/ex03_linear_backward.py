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
    raise NotImplementedError
