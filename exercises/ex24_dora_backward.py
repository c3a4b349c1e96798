"""24 · DoRA's backward

    V = W + s B A       s = α/r       n_o = ‖V_o‖, the length of row o of V
    g = m/n             y = g ∘ (x Vᵀ)

    x, dx (batch, tokens, in)    W, V (out, in)    A, dA (r, in)
    B, dB (out, r)    m, dm, n, g (out,)    y, dy (batch, tokens, out)

DoRA (Liu et al., 2024) trains the length of each row of the weight, m, apart
from its direction, which A and B turn. W is frozen. α is called alpha, and r
is that of A. dy is ∂L/∂y.

Write two functions. row_lengths returns n. dora_backward returns dx, dA, dB
and dm, the gradients of y as it stands above. squares is given: of W, a layer
needs it only once.

Neither may form an (out, in) array: V, B A and dyᵀ x are each as large as W.
Write dora_backward with them first, if you like: the check looks at your
numbers before it looks at your memory.

One layer by hand, with in = 2, out = r = 1 and one token: W = (1, 5),
A = (2, -1), B = 0.5, α = 2, so s = 2. Then V = (3, 4), n = 5, and with m = 10
g = 2. For x = (1, 1), y = 2 · 7 = 14. With dy = 1, dx = (6, 8),
dA = (0.32, -0.24), dB = 1.76 and dm = 1.4.
"""

import numpy as np


def squares(M):
    """The squared length of each row, (out,), without an array of the size of M."""
    return np.einsum("oi,oi->o", M, M)


def row_lengths(W, A, B, alpha):
    """Return n.

    >>> row_lengths(np.array([[1.0, 5.0]]), np.array([[2.0, -1.0]]), np.array([[0.5]]), 2.0)
    array([5.])
    """
    raise NotImplementedError


def dora_backward(dy, x, W, A, B, m, alpha):
    """Return dx, dA, dB, dm.

    >>> W, A, B, m = np.array([[1.0, 5.0]]), np.array([[2.0, -1.0]]), np.array([[0.5]]), np.array([10.0])
    >>> dx, dA, dB, dm = dora_backward(np.ones((1, 1, 1)), np.ones((1, 1, 2)), W, A, B, m, 2.0)
    >>> dx[0, 0].tolist(), dA.round(9).tolist(), dB.round(9).tolist(), dm.round(9).tolist()
    ([6.0, 8.0], [[0.32, -0.24]], [[1.76]], [1.4])
    """
    raise NotImplementedError
