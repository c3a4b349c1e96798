"""Rotary positions, from the angles or with tables of cos and sin. The maths is in ops/rope.py.

With tables, as kernels take them, the two entries of a pair may have different sines (H turns each pair by 90°):

    y = x ∘ cos + H x ∘ sin      H (a, b) = (-b, a)      dx = dy ∘ cos + Hᵀ (dy ∘ sin)      cos, sin (tokens, D)
"""

import numpy as np

from ..case import Case, relative_error
from ..problem import Problem

# batch, tokens, heads, D of each case
SHAPES = [(3, 5, 2, 4), (2, 7, 3, 8), (4, 3, 5, 6), (5, 4, 7, 10), (6, 8, 4, 12), (7, 6, 8, 14)]


def draw(rng, shape):
    batch, tokens, heads, D = shape
    x, dy = rng.standard_normal((2, *shape))
    sizes = {"batch": batch, "tokens": tokens, "heads": heads, "D": D}
    return Case(dy, {"x": x}, {"theta": 10.0 + 7 * tokens}, sizes)


def frequencies(D, theta):
    """θ^(-2i/D) of pair i"""
    return theta ** (-np.arange(0, D, 2) / D)


def angles(x, theta):
    """φ = t θ^(-2i/D), (tokens, 1, D/2)"""
    return np.arange(x.shape[1])[:, None, None] * frequencies(x.shape[-1], theta)


def halves(x):
    return np.split(x, 2, axis=-1)


def rotate(x, phi):
    a, b = halves(x)
    return np.concatenate([a * np.cos(phi) - b * np.sin(phi), b * np.cos(phi) + a * np.sin(phi)], axis=-1)


def forward(x, theta):
    return rotate(x, angles(x, theta))


def backward(dy, x, theta):
    return {"dx": rotate(dy, -angles(x, theta))}


def terms(dy, x, theta):
    phi = angles(x, theta)
    a, b = halves(dy)
    return {
        "dx": {
            "the cos term": np.concatenate([a * np.cos(phi), b * np.cos(phi)], axis=-1),
            "the sin term": np.concatenate([b * np.sin(phi), -a * np.sin(phi)], axis=-1),
        }
    }


def lengths(x):
    """‖·‖² of each pair"""
    a, b = halves(x)
    return a * a + b * b


def lengths_kept(tensors, case):
    before, after = lengths(case.dy), lengths(tensors["dx"])
    return float(np.abs(after - before).max() / before.max())


def first_position(tensors, case):
    return float(np.abs(tensors["dx"] - case.dy)[:, 0].max() / np.abs(case.dy).max())


rope = Problem(
    "rope",
    forward,
    backward,
    draw,
    terms,
    laws={
        "each pair of dx is as long as that of dy, because a rotation keeps lengths": lengths_kept,
        "dx = dy at position 0, where the angle is 0": first_position,
    },
    says={
        "sin_term_with_wrong_sign": "dx is rotated by φ, as in forward, but the gradient is rotated back",
        "no_sin_term": "dx lacks the sin term, by which the two halves are mixed",
        "no_cos_term": "dx lacks the cos term, by which each half keeps a part of itself",
    },
    asks={
        "sin_term_with_wrong_sign": "What is the transpose of a rotation matrix?",
        "no_sin_term": "How many outputs does one entry of x reach?",
        "no_cos_term": "At position 0 nothing is turned: what is dx there?",
    },
    shapes=SHAPES,
    formula="(a, b) → (a cos φ - b sin φ, b cos φ + a sin φ), the halves of each head, φ = t θ^(-2i/D), t = 0, 1, ...",
    aliases=("rotary",),
)
fault = rope.fault

rope.computed("not_rotated", dx=lambda dy: dy.copy())(
    "dx is dy itself: the rotation has no backward", "Does a change of x reach y unturned?"
)
rope.computed(
    "positions_from_one", dx=lambda dy, x, theta: rotate(dy, -angles(x, theta) - frequencies(x.shape[-1], theta))
)(
    "the positions in the angles of dx count from 1, but forward counts from 0",
    "By which angle does forward turn the first token?",
)


@fault(
    "the positions in the angles of dx run on from sample to sample, but each sample begins at 0",
    "At which position does the second sample of a batch begin?",
)
def positions_run_on(dy, x, theta):
    batch, tokens, _, D = x.shape
    t = np.arange(batch * tokens).reshape(batch, tokens, 1, 1)
    return {"dx": rotate(dy, -t * frequencies(D, theta))}


rope.computed(
    "heads_for_positions",
    dx=lambda dy, x, theta: rotate(dy, -np.arange(x.shape[2])[:, None] * frequencies(x.shape[-1], theta)),
)("the angles of dx grow with the head, not with the token", "Which axis of x is the position?")
rope.computed("cos_and_sin_exchanged", dx=lambda dy, x, theta: rotate(dy, angles(x, theta) - np.pi / 2))(
    "cos and sin are exchanged in dx", "At position 0 nothing is turned: which of the two factors is 1 there?"
)


@fault(
    "the sin term of dx has the same sign in both halves, which is not a rotation",
    "What is the determinant of your 2 × 2 matrix?",
)
def same_sign_in_both_halves(dy, x, theta):
    phi = angles(x, theta)
    a, b = halves(dy)
    return {"dx": np.concatenate([a * np.cos(phi) + b * np.sin(phi), b * np.cos(phi) + a * np.sin(phi)], axis=-1)}


@fault(
    "only the first half of dx is rotated: the second half is that of dy",
    "Which of the two entries of a pair does forward change?",
)
def first_half_only(dy, x, theta):
    first, _ = halves(rotate(dy, -angles(x, theta)))
    return {"dx": np.concatenate([first, halves(dy)[1]], axis=-1)}


@fault(
    "dx follows another convention, not a wrong one: it pairs neighbours, as the paper does; "
    "forward here pairs entry i of the first half with entry i of the second",
    "With which entry does forward mix the first entry of a head?",
)
def neighbours_paired(dy, x, theta):
    turned = rotate(np.concatenate([dy[..., ::2], dy[..., 1::2]], axis=-1), -angles(x, theta))
    return {"dx": np.stack(halves(turned), axis=-1).reshape(dy.shape)}


rope.computed("one_frequency", dx=lambda dy, x: rotate(dy, -np.arange(x.shape[1])[:, None, None]))(
    "all pairs of dx are turned by the same angle, but each pair has a frequency of its own",
    "How far is the last pair turned from one token to the next, and how far the first?",
)
rope.called_with("exponent_halved", theta=lambda theta: np.sqrt(theta))(
    "the exponent of θ in dx lacks the factor 2", "Does i in the exponent count the pairs of a head, or its entries?"
)
rope.called_with("exponent_inverted", theta=lambda theta: 1 / theta)(
    "the exponent of θ in dx has the wrong sign: later pairs turn faster, but must turn slower",
    "Which pair turns fastest in forward?",
)
rope.called_with("exponent_over_all_heads", theta=lambda x, theta: theta ** (1 / x.shape[2]))(
    "the exponent of θ in dx divides by the width of all heads together, but D is the width of one head",
    "Do two heads of one token turn by the same angles?",
)


# with tables of cos and sin


def draw_tables(rng, shape):
    batch, tokens, heads, D = shape
    x, dy = rng.standard_normal((2, *shape))
    cos, sin = rng.standard_normal((2, tokens, D))
    sizes = {"batch": batch, "tokens": tokens, "heads": heads, "D": D}
    return Case(dy, {"x": x}, {"cos": cos, "sin": sin}, sizes)


def turned(x):
    """H x: each pair by 90°"""
    a, b = halves(x)
    return np.concatenate([-b, a], axis=-1)


def tables_forward(x, cos, sin):
    return x * cos[:, None] + turned(x) * sin[:, None]


def tables_terms(dy, x, cos, sin):
    return {"dx": {"the cos term": dy * cos[:, None], "the sin term": -turned(dy * sin[:, None])}}


def tables_backward(dy, x, cos, sin):
    return {"dx": dy * cos[:, None] - turned(dy * sin[:, None])}


def along_x(tensors, case):
    x = case.inputs["x"]
    y = tables_forward(x, **case.constants)
    return relative_error((x * tensors["dx"]).sum(axis=-1), (case.dy * y).sum(axis=-1))


rope_tables = Problem(
    "rope_tables",
    tables_forward,
    tables_backward,
    draw_tables,
    tables_terms,
    laws={"x·dx is dy·y in each head, because y is linear in x": along_x},
    says={
        "sin_term_with_wrong_sign": "the sin term of dx is turned as in forward, but the gradient is turned back",
        "no_sin_term": "dx lacks the sin term, by which the two halves are mixed",
        "no_cos_term": "dx lacks the cos term, by which each half keeps a part of itself",
    },
    asks={
        "sin_term_with_wrong_sign": "What is the transpose of a turn by 90°?",
        "no_sin_term": "How many outputs does one entry of x reach?",
        "no_cos_term": "Where sin is 0 nothing is turned: what is dx there?",
    },
    shapes=SHAPES,
    formula="y = x ∘ cos + (-b, a) ∘ sin, x = (a, b): the halves of each head, and cos and sin differ in them",
)
fault = rope_tables.fault


def with_sin_term(name, term):
    """Add a fault in which the sin term of dx is another function of dy and sin."""
    return rope_tables.computed(name, dx=lambda dy, cos, sin: dy * cos[:, None] + term(dy, sin[:, None]))


with_sin_term("turned_before_sin", lambda dy, sin: -turned(dy) * sin)(
    "dx turns dy first and multiplies by sin afterwards: that is right only where both halves of sin are equal",
    "Which entry of sin did forward multiply a by, on its way to the second half of y?",
)
with_sin_term("forward_again", lambda dy, sin: turned(dy) * sin)(
    "dx is what forward makes of dy: nothing is transposed",
    "Which matrix leads from x to y, and which from dy to dx?",
)
with_sin_term("same_sign_in_both_halves", lambda dy, sin: np.concatenate(halves(dy * sin)[::-1], axis=-1))(
    "the sin term of dx has the same sign in both halves", "With which signs do a and b enter the two halves of y?"
)
with_sin_term("halves_not_exchanged", lambda dy, sin: dy * sin)(
    "the sin term of dx stays in its own half, but sin carries each half into the other",
    "Which half of y does a reach by way of sin?",
)


def first_half_twice(table):
    return np.tile(halves(table)[0], 2)


rope_tables.called_with(
    "first_half_of_the_tables", cos=lambda cos: first_half_twice(cos), sin=lambda sin: first_half_twice(sin)
)(
    "dx takes the first half of cos and sin for both halves: here they differ",
    "How many columns do the tables have, and how many of them does your dx read?",
)
rope_tables.called_with("cos_and_sin_exchanged", cos=lambda sin: sin, sin=lambda cos: cos)(
    "cos and sin are exchanged in dx", "Which of the two tables multiplies x without exchanging its halves?"
)


@fault(
    "only the first half of dx goes through the tables: the second half is that of dy",
    "Which of the two halves does forward change?",
)
def second_half_left_out(dy, x, cos, sin):
    first, _ = halves(tables_backward(dy, x, cos, sin)["dx"])
    return {"dx": np.concatenate([first, halves(dy)[1]], axis=-1)}
