"""GELU, in its tanh form. The maths is in ops/gelu.py."""

import math

import numpy as np

from ..case import Case
from ..problem import Problem

K = math.sqrt(2 / math.pi)
C = 0.044715

# batch, tokens, width of each case
SHAPES = [(4, 3, 7), (5, 6, 4), (3, 5, 8), (6, 4, 3), (2, 7, 9), (7, 2, 6)]


def draw(rng, shape):
    batch, tokens, width = shape
    x = 1.5 * rng.standard_normal((batch, tokens, width))
    return Case(rng.standard_normal(x.shape), {"x": x}, {}, {"batch": batch, "tokens": tokens, "width": width})


def inner(x):
    """tanh u and u', for u = K (x + C x³)"""
    return np.tanh(K * (x + C * x * x * x)), K * (1 + 3 * C * x * x)


def product_rule(x, tanh, du):
    """The two terms of dy/dx."""
    return (1 + tanh) / 2, x * (1 - tanh * tanh) * du / 2


def slope(x, tanh, du):
    """dy/dx"""
    return sum(product_rule(x, tanh, du))


def forward(x):
    tanh, _ = inner(x)
    return x * (1 + tanh) / 2


def backward(dy, x):
    return {"dx": dy * slope(x, *inner(x))}


def terms(dy, x):
    direct, through_tanh = product_rule(x, *inner(x))
    return {"dx": {"the direct term (1 + tanh u)/2": dy * direct, "the tanh term": dy * through_tanh}}


gelu = Problem(
    "gelu",
    forward,
    backward,
    draw,
    terms,
    says={
        "no_tanh_term": "dx lacks the tanh term: x is differentiated, but not what it is multiplied by",
        "tanh_term_with_wrong_sign": "the tanh term of dx is subtracted, but must be added",
        "counted_twice": "dx lacks the factor 1/2: it is twice as large",
        "tanh_term_twice": "the tanh term of dx lacks the factor 1/2, which the direct term has",
    },
    asks={
        "no_tanh_term": "In how many places does x occur in y, and how many terms does the product rule have?",
        "no_direct_term": "For a large x the output is x itself: what must the slope be there, and what is yours?",
        "tanh_term_with_wrong_sign": "With which signs do the two terms of the product rule come?",
        "counted_twice": "For a large x the output is x itself: what must the slope be there?",
        "tanh_term_twice": "The 1/2 stands in front of the whole product: how many of its terms does it reach?",
    },
    shapes=SHAPES,
    formula="y = x (1 + tanh u)/2, u = √(2/π) (x + 0.044715 x³)",
    aliases=("gelu_tanh", "gelu_new"),
    rows=True,
    pairs=False,
)


def erf_slope(x):
    """dy/dx of the exact form"""
    normal = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2 + x * normal


def sigmoid_slope(x):
    """dy/dx of x σ(1.702x)"""
    sigma = 1 / (1 + np.exp(-1.702 * x))
    return sigma + 1.702 * x * sigma * (1 - sigma)


def with_slope(name, slope):
    """Add a fault in which dy/dx is another function of x, tanh u and u'."""
    return gelu.computed(name, dx=lambda dy, x: dy * slope(x, *inner(x)))


with_slope("no_inner_derivative", lambda x, tanh, du: slope(x, tanh, 1))(
    "the tanh term of dx lacks the inner derivative u'",
    "tanh is taken of u, not of x: what does the chain rule ask for?",
)
with_slope("no_cubic_term", lambda x, tanh, du: slope(x, tanh, K))(
    "the inner derivative u' in dx lacks the term of the cube, 3Cx²",
    "How many terms does u have, and how many does your u' have?",
)
with_slope("three_forgotten", lambda x, tanh, du: slope(x, tanh, K * (1 + C * x * x)))(
    "the inner derivative u' in dx lacks the 3 that comes from the cube", "What is the derivative of x³?"
)
with_slope("power_not_lowered", lambda x, tanh, du: slope(x, tanh, K * (1 + 3 * C * x * x * x)))(
    "the inner derivative u' in dx keeps the cube x³, but its power falls to x²",
    "u is an odd function of x: is your u' even?",
)
with_slope("root_forgotten", lambda x, tanh, du: slope(x, tanh, du / K))(
    "the inner derivative u' in dx lacks the factor √(2/π)",
    "Which constant multiplies all of u, and what becomes of it when u is differentiated?",
)
with_slope("coefficient_forgotten", lambda x, tanh, du: slope(x, tanh, K * (1 + 3 * x * x)))(
    "the inner derivative u' in dx lacks the coefficient 0.044715 of the cube",
    "Compare the coefficients of u and of your u', term by term: is each still there?",
)
with_slope("two_forgotten_in_sigmoid", lambda x, tanh, du: slope(x, tanh, du / 2))(
    "the tanh term of dx is half as large: with (1 + tanh u)/2 = σ(2u), the 2 of 2u' is missing",
    "Of which argument is σ taken here, and what is the derivative of that argument?",
)
with_slope("tanh_not_squared", lambda x, tanh, du: (1 + tanh + x * (1 - tanh) * du) / 2)(
    "dx takes 1 - tanh u for the derivative of tanh, which is 1 - tanh² u",
    "tanh is odd, so its slope is the same at u and at -u: is yours?",
)
with_slope("tanh_not_differentiated", lambda x, tanh, du: (1 + tanh + x * du) / 2)(
    "the tanh term of dx lacks the factor 1 - tanh² u: the derivative of tanh was forgotten",
    "For a very large x, tanh u no longer moves: what must become of the tanh term there?",
)
with_slope("x_forgotten", lambda x, tanh, du: slope(1, tanh, du))(
    "the tanh term of dx lacks the factor x",
    "In the product rule, which factor stays as it is when the tanh is differentiated?",
)
with_slope("output_for_input", lambda x, tanh, du: (1 + tanh) / 2 + forward(x) * (1 - tanh * tanh) * du / 2)(
    "the tanh term of dx is multiplied by the output y, but must be multiplied by x",
    "Which of the two did forward keep for the backward: x or y?",
)
with_slope("cube_missing_in_u", lambda x, tanh, du: slope(x, np.tanh(K * x), du))(
    "dx takes the tanh of √(2/π) x: its u lacks the cube",
    "Is the tanh u in the backward the same number as the tanh u in the forward?",
)
with_slope("tanh_of_x", lambda x, tanh, du: slope(x, np.tanh(x), du))(
    "dx takes the tanh of x, not of u", "What did forward take the tanh of?"
)
gelu.computed("erf_form", dx=lambda dy, x: dy * erf_slope(x))(
    "dx is the gradient of the exact GELU, x Φ(x) with the error function: forward has the tanh form",
    "Its two forms agree to three decimals only: which of them did forward compute?",
)
gelu.computed("sigmoid_form", dx=lambda dy, x: dy * sigmoid_slope(x))(
    "dx is the gradient of the sigmoid form x σ(1.702x): forward has the tanh form",
    "Which approximation of GELU did forward compute?",
)
gelu.computed("output_for_slope", dx=lambda dy, x: dy * forward(x))(
    "dx multiplies dy by the output y, not by the slope dy/dx",
    "What is the slope at x = 0, and what is the output there?",
)
