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
    ### BEGIN SOLUTION
    D = dy.shape[-1]
    omega = theta ** (-np.arange(0, D, 2) / D)
    phi = positions[:, None, None] * omega
    da, db = np.split(dy, 2, axis=-1)
    return np.concatenate([da * np.cos(phi) + db * np.sin(phi), db * np.cos(phi) - da * np.sin(phi)], axis=-1)
    ### END SOLUTION


def rope_tables_backward(dy, cos, sin):
    """Return dx.

    >>> dx = rope_tables_backward(np.array([[[[3.0, 5.0]]]]), np.array([[2.0, 7.0]]), np.array([[4.0, 10.0]]))
    >>> dx.tolist()
    [[[[56.0, 23.0]]]]
    """
    ### BEGIN SOLUTION
    to_b, to_a = np.split(dy * sin[:, None], 2, axis=-1)
    return dy * cos[:, None] + np.concatenate([to_a, -to_b], axis=-1)
    ### END SOLUTION


### THE CHECK

from ...verify.problems import rope as bank
from ..exercise import Exercise, Viva
from ..parts import Gradient, same

rotation = Gradient(
    rope_backward, "dx", problem="rope", makes={"positions": lambda case: np.arange(case.inputs["x"].shape[1])}
)


def other_positions_refused(function):
    """At positions that do not count from 0, is dx another one than the same rows have in a longer sequence?"""
    rng = np.random.default_rng(3)
    positions, theta = np.array([4, 9, 1, 13]), 23.0
    longer = np.zeros((2, 14, 3, 6))
    longer[:, positions] = rng.standard_normal((2, 4, 3, 6))
    true = bank.backward(longer, longer, theta)["dx"][:, positions]
    try:
        return not same(function(longer[:, positions], positions, theta), true)
    except Exception:  # of the learner's function: anything
        return True


@rotation.rule(
    "{it} is right at the positions 0, 1, 2, ... and wrong at others",
    "What are the positions of a token that is decoded after a prompt of 100, and what does yours take?",
    other_positions_refused,
)
def positions_ignored(dy, positions, theta):
    return rope_backward(dy, np.arange(dy.shape[1]), theta)


EXERCISE = Exercise(
    title="Rotary positions",
    kind="write",
    minutes=20,
    difficulty=3,
    parts=[rotation, Gradient(rope_tables_backward, "dx", problem="rope_tables")],
    hints=(
        "Write the forward of one pair as a 2 × 2 matrix times (a, b). The backward of y = R x is the same for every "
        "matrix R: which?",
        "For the tables write the 2 × 2 matrix again, now with four different numbers. Follow each entry of sin: which "
        "entry of x does it multiply, and in which half of y does that arrive?",
    ),
    viva=[
        Viva(
            "Why does the score of a query and a key depend on the distance of their positions alone?",
            "Rotations in one plane add their angles: (R_s q)·(R_t k) = q·R_sᵀ R_t k = q·R_{t-s} k.",
            "Because the positions are subtracted before the rotation.",
        ),
        Viva(
            "One code pairs neighbours, another the two halves. Is one of them wrong, and can weights be exchanged?",
            "Neither is: they differ by a permutation within each head. The rows of W_q and W_k must be permuted so "
            "when weights move from one to the other.",
            "Neighbours are right and halves are a bug; weights can be exchanged as they are.",
        ),
    ],
    derivation="rope",
)
