"""17 · The embedding and its tied head

One table E is read by its rows at the input, and multiplied with at the head:

    x = E[ids]    ...the layers in between...    h    logits = h Eᵀ

    E, dE (V, C)    ids (batch, tokens), integers from 0 to V - 1
    x, dx, dy, h, dh (batch, tokens, C)    logits, dlogits (batch, tokens, V)

a. embedding_backward(dy, ids, V): the look-up y = E[ids] alone, dy = ∂L/∂y.
   Return dE. The same id may occur at many places. No id means padding.
b. tied_backward(dlogits, dx, h, ids, E): both uses. dlogits = ∂L/∂logits, and
   dx = ∂L/∂x has come back through the layers already. Return dE, for the one
   table, and dh = ∂L/∂h as it leaves the head.
c. merge_tied(E, A, B, alpha, adapted): a LoRA adapter of the table,

       ΔE = s (B A)ᵀ    s = α/r    A (r, V)    B (C, r)

   acts where `adapted` says: on the look-up ("embed"), on the head ("head"),
   or on both with the same A and B ("both"); the other use reads E. Return
   the tables (embed, head) of a model without an adapter that computes the
   same. E is still the base of other adapters, and must not change. With
   "both", return the same array object twice: the tables stay tied.

By hand, V = 2, C = 1, E = (2, 3). a: ids = (1, 1), dy = (5, 7): dE = (0, 12).
b: with those ids, dx = (5, 7), h = (1, 4), dlogits = ((1, 10), (2, 20)):
dE = (9, 102), dh = (32, 64).
c: A = (1, 4), B = 5, α = 3, r = 1: ΔE = (15, 60), E + ΔE = (17, 63).
"""

import numpy as np


def embedding_backward(dy, ids, V):
    """Return dE.

    >>> embedding_backward(np.array([[[5.0], [7.0]]]), np.array([[1, 1]]), 2).tolist()
    [[0.0], [12.0]]
    """
    raise NotImplementedError


def tied_backward(dlogits, dx, h, ids, E):
    """Return dE, dh.

    >>> dlogits, dx, h = np.array([[[1.0, 10.0], [2.0, 20.0]]]), np.array([[[5.0], [7.0]]]), np.array([[[1.0], [4.0]]])
    >>> dE, dh = tied_backward(dlogits, dx, h, np.array([[1, 1]]), np.array([[2.0], [3.0]]))
    >>> dE.tolist(), dh.tolist()
    ([[9.0], [102.0]], [[[32.0], [64.0]]])
    """
    raise NotImplementedError


def merge_tied(E, A, B, alpha, adapted):
    """Return embed, head.

    >>> embed, head = merge_tied(np.array([[2.0], [3.0]]), np.array([[1.0, 4.0]]), np.array([[5.0]]), 3.0, "head")
    >>> embed.tolist(), head.tolist()
    ([[2.0], [3.0]], [[17.0], [63.0]])
    """
    raise NotImplementedError
