"""15 · Grouped queries

Several query heads share one key head and one value head:

    for each head:    S = q kᵀ/√D + mask      P = softmax(S)      y = P v

    q, y, dy, dq (batch, tokens, heads, D)
    k, v, dk, dv (batch, tokens, groups, D)
    mask (tokens, tokens): row i is query i; 0 where it sees the key, -1e9
    where it does not

heads is a multiple of groups. The heads of a group stand side by side, in the
order of the groups: with 6 heads and 2 groups, heads 0, 1, 2 read key and
value head 0, and heads 3, 4, 5 read key and value head 1.

dy is ∂L/∂y. Return dq, dk, dv, each in the shape of what it belongs to.
Nothing is kept from the forward.

One number by hand, with one group of two heads, one token and D = 1: the one
weight P is 1 in both heads, whatever q and k are. So y = v in each, and with
dy = (5, 7) for the two heads, dv = 12; dq and dk are 0.
"""

import numpy as np


def gqa_backward(dy, q, k, v, mask):
    """Return dq, dk, dv.

    >>> dy, q = np.array([5.0, 7.0]).reshape(1, 1, 2, 1), np.array([2.0, 3.0]).reshape(1, 1, 2, 1)
    >>> dq, dk, dv = gqa_backward(dy, q, np.full((1, 1, 1, 1), 4.0), np.full((1, 1, 1, 1), 6.0), np.zeros((1, 1)))
    >>> float(dv[0, 0, 0, 0]), float(dk[0, 0, 0, 0]), dq.shape
    (12.0, 0.0, (1, 1, 2, 1))
    """
    ### BEGIN SOLUTION
    batch, tokens, heads, D = q.shape
    in_groups = batch, tokens, k.shape[2], -1, D
    q, dy = q.reshape(in_groups), dy.reshape(in_groups)  # (batch, tokens, groups, heads of a group, D)
    S = np.einsum("bigrd,bjgd->bgrij", q, k) / np.sqrt(D) + mask
    P = np.exp(S - S.max(axis=-1, keepdims=True))
    P /= P.sum(axis=-1, keepdims=True)
    dP = np.einsum("bigrd,bjgd->bgrij", dy, v)
    dS = P * (dP - (P * dP).sum(axis=-1, keepdims=True)) / np.sqrt(D)
    dq = np.einsum("bgrij,bjgd->bigrd", dS, k)
    dk = np.einsum("bgrij,bigrd->bjgd", dS, q)
    dv = np.einsum("bgrij,bigrd->bjgd", P, dy)
    return dq.reshape(batch, tokens, heads, D), dk, dv
    ### END SOLUTION


### THE CHECK

from ..exercise import Exercise, Viva
from ..parts import Gradient

EXERCISE = Exercise(
    title="Grouped queries",
    kind="write",
    minutes=20,
    difficulty=3,
    needs=["12"],
    parts=[Gradient(gqa_backward, "dq dk dv", problem="grouped_query_attention", picture="dq dk dv")],
    hints=(
        "Either repeat each key and value head for the query heads that read it, or split the axis of the heads in "
        "two. Then it is exercise 12, with one step more at the end.",
        "One key head was read by several query heads: how do their gradients come together? And if you split the "
        "axis of the heads, which part comes first: the group, or the head in it?",
    ),
    viva=[
        Viva(
            "What do grouped queries save, in the cache of generation and in training?",
            "The cache and the projections of k and v shrink by heads/groups. The scores do not: P has a row for each "
            "query and query head, as before, and takes as many FLOPs.",
            "All of attention becomes cheaper by heads/groups.",
        ),
        Viva(
            "A test of a grouped backward passes with 4 heads in 4 groups and with 8 heads in 1. What can still be "
            "wrong?",
            "Which head reads which group. With one head to a group, or with one group, h mod groups and the right "
            "order agree. A test needs several groups of several heads, and two different numbers.",
            "Nothing, these are the two extremes.",
        ),
    ],
    asks=["E1"],
    derivation="attention",
)
