"""12 · Attention's backward

a. Every head by itself, with a softmax over the keys:

    S = q kᵀ/√D + mask        P = softmax(S)        y = P v

    q, k, v, y, dy and dq, dk, dv (batch, tokens, heads, D)
    mask (tokens, tokens): the same for every sample and head. Row i is query
    i; 0 where it sees the key, -1e9 where it does not

dy is ∂L/∂y. Return dq, dk, dv. Nothing is kept from the forward.

One number by hand, with D = 1, two keys and no mask, for one query: q = 1,
k = (0, ln 3), v = (4, 8), dy = 1. S = (0, ln 3), P = (1/4, 3/4), y = 7.
∂P[1]/∂S[1] = P[1] (1 - P[1]) = 3/16, and what P[1] gains P[0] loses: y rises
by 3/16 · (8 - 4) = 3/4 for each unit of S[1]. So dk[1] = 3/4, and
dv = (1/4, 3/4).

b. In cross-attention x asks, and a memory answers (the encoder's output):

    q = project(x, 0)      k = project(memory, 1)      v = project(memory, 2)
    project(z, i) = z W[i]ᵀ + s (z A[i]ᵀ) B[i]ᵀ        s = α/r

    x, dx (batch, queries, in)      memory, dmemory (batch, keys, in)
    dq (batch, queries, out)        dk, dv (batch, keys, out)
    W (3, out, in), frozen          A, dA (3, r, in)    B, dB (3, out, r)

Index 0 is for q, 1 for k, 2 for v. Given dq, dk and dv, the gradients of a
loss in q, k and v, return dx, dmemory, dA and dB. There may be as many queries
as keys, or not. With every length 1, x = 2, W = (3, 5, 7), A = (1, 1, 1),
B = (1, 2, 3), α = 4, dq = 1: dx = 3 + 4 · 1 · 1 = 7, dB[0] = 4 · 1 · 2 = 8.
"""

import numpy as np


def attention_backward(dy, q, k, v, mask):
    """Return dq, dk, dv.

    >>> dy, q, k, v = np.array([[1, 0], [1, 1], [0, np.log(3)], [4, 8]]).reshape(4, 1, 2, 1, 1)
    >>> dq, dk, dv = attention_backward(dy, q, k, v, np.zeros((2, 2)))
    >>> dk.ravel().round(4), dv.ravel().round(4)
    (array([-0.75,  0.75]), array([0.25, 0.75]))
    """
    raise NotImplementedError


def cross_attention_backward(dq, dk, dv, x, memory, W, A, B, alpha):
    """Return dx, dmemory, dA, dB.

    >>> one, three = np.ones((1, 1, 1)), np.ones((3, 1, 1))
    >>> W, B = np.array([3.0, 5, 7]).reshape(3, 1, 1), np.array([1.0, 2, 3]).reshape(3, 1, 1)
    >>> dx, dmemory, dA, dB = cross_attention_backward(one, one, one, 2 * one, 6 * one, W, three, B, 4.0)
    >>> float(dx[0, 0, 0]), float(dB[0, 0, 0])
    (7.0, 8.0)
    """
    raise NotImplementedError
