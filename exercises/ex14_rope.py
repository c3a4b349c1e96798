"""14 · Rotary positions

Each pair of numbers of a head is turned by an angle that grows with the
position of its token (Su et al., 2021). D is the width of a head, and even.
The pairs are taken as in Hugging Face's Llama: number i of the first half with
number i of the second half, i = 0, ..., D/2 - 1. With these halves x = (a, b),

    y = (a cos φ - b sin φ,  b cos φ + a sin φ)      φ_i = t ω_i
                                                     ω_i = θ^(-2i/D)

    x, dx, y, dy (batch, tokens, heads, D)     a, b (batch, tokens, heads, D/2)
    positions (tokens,): the t of each token, in any order and from any start,
    the same for every sample
    theta: the number θ

dy is ∂L/∂y. rope_backward returns dx = ∂L/∂x.

Kernels are handed tables of cos and sin instead, and multiply whole arrays:

    y = x ∘ cos + (-b, a) ∘ sin                cos, sin (tokens, D)

rope_tables_backward returns dx for this form. Take the tables as they come: an
entry of the first half and its partner in the second may have different cos
and sin, here they do, and then y is not a rotation.

By hand, D = 2, where ω_0 = 1. With position t = π/2 (a rotation by 90°; in use
t is an integer), dy = (3, 5): y = (-b, a), and dx = (5, -3).
With cos = (2, 7), sin = (4, 10) and the same dy: y = (2a - 4b, 7b + 10a), and
dx = (56, 23).
"""

import numpy as np


def rope_backward(dy, positions, theta):
    """Return dx.

    >>> dx = rope_backward(np.array([[[[3.0, 5.0]]]]), np.array([np.pi / 2]), 10000.0)
    >>> dx.round(12).tolist()
    [[[[5.0, -3.0]]]]
    """
    raise NotImplementedError


def rope_tables_backward(dy, cos, sin):
    """Return dx.

    >>> dx = rope_tables_backward(np.array([[[[3.0, 5.0]]]]), np.array([[2.0, 7.0]]), np.array([[4.0, 10.0]]))
    >>> dx.tolist()
    [[[[56.0, 23.0]]]]
    """
    raise NotImplementedError
