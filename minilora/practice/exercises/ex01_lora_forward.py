"""01 · The forward

A LoRA layer adds a product of two small matrices to a frozen one (Hu et al.,
2021, equation 3):

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ        s = α/r

    x (..., in)    W (out, in)    b (out,)
    A (r, in)      B (out, r)     y (..., out)

x has any number of axes before its last one, or none. The rank r is read off
A; where r = 0 there is no low-rank path. Never form the (out, in) matrix B A:
for large layers it is as large as W.

One number by hand, with every matrix 1 × 1: x = 2, W = 3, b = 4, A = 5, B = 6,
α = 7, r = 1. x Wᵀ + b = 10, x Aᵀ = 10, (x Aᵀ) Bᵀ = 60, s = 7,
y = 10 + 7 · 60 = 430.
"""

import numpy as np


def lora_forward(x, W, b, A, B, alpha):
    """Return y.

    >>> lora_forward(np.array([2.0]), np.array([[3.0]]), np.array([4.0]), np.array([[5.0]]), np.array([[6.0]]), 7.0)
    array([430.])
    """
    ### BEGIN SOLUTION
    r = len(A)
    y = x @ W.T + b
    return y + alpha / r * (x @ A.T) @ B.T if r else y
    ### END SOLUTION


### THE CHECK


from ...verify.problems.low_rank import forward as low_rank
from ..measure import peak_bytes
from ..exercise import Exercise, Viva
from ..parts import Value

# rows of x, in, out, r of each case
SHAPES = [((4,), 5, 3, 2), ((2, 3), 4, 6, 3), ((), 7, 5, 4), ((3, 2, 2), 6, 6, 5), ((5,), 3, 8, 1), ((3,), 4, 5, 0)]


def draw(rng, i):
    rows, width_in, width_out, r = SHAPES[i]
    x = rng.standard_normal((*rows, width_in))
    W, b = rng.standard_normal((width_out, width_in)), rng.standard_normal(width_out)
    A, B = rng.standard_normal((r, width_in)), rng.standard_normal((width_out, r))
    return {"x": x, "W": W, "b": b, "A": A, "B": B, "alpha": r + float(rng.uniform(1.5, 9))}


def truth(x, W, b, A, B, alpha):
    r = len(A)
    return b + (low_rank(x, A, B, W, 1.0, alpha, r, 0.0) if r else x @ W.T)


def forms_the_product(function):
    """Does it take the memory of an (out, in) matrix, 32 MB here, beside those that it is given?"""
    n = 2000
    x, W, b, A, B = np.zeros((1, n)), np.zeros((n, n)), np.zeros(n), np.zeros((1, n)), np.zeros((n, 1))
    return peak_bytes(function, x, W, b, A, B, 2.0) > 8 * n * n / 2


forward = Value(lora_forward, "y", truth=truth, draw=draw)


def base(x, W, b):
    return x @ W.T + b


def low(x, A, B):
    return (x @ A.T) @ B.T


@forward.mistake("{it} has no scale: the low-rank path is not multiplied by α/r", "At α = 0, what must y be?")
def no_scale(x, W, b, A, B, alpha):
    return base(x, W, b) + low(x, A, B)


@forward.mistake("the scale in {it} is α, not divided by r", "Which two numbers make up the scale?")
def not_divided_by_r(x, W, b, A, B, alpha):
    return base(x, W, b) + alpha * low(x, A, B)


@forward.mistake("the scale in {it} is α/√r, that of rsLoRA", "Which of the two scales does the equation have?")
def divided_by_root_r(x, W, b, A, B, alpha):
    return base(x, W, b) + (alpha / np.sqrt(len(A)) * low(x, A, B) if len(A) else 0)


@forward.mistake("the scale in {it} is upside down, r/α", "If α is doubled, does the low-rank path grow or shrink?")
def scale_inverted(x, W, b, A, B, alpha):
    return base(x, W, b) + len(A) / alpha * low(x, A, B)


@forward.mistake("the scale α/r is on the base path of {it} too", "Does α change what the frozen layer does?")
def scale_on_both_paths(x, W, b, A, B, alpha):
    return alpha / len(A) * (base(x, W, b) + low(x, A, B)) if len(A) else base(x, W, b)


@forward.mistake("the bias is missing in {it}", "What is y where x is zero?")
def no_bias(x, W, b, A, B, alpha):
    return lora_forward(x, W, 0, A, B, alpha)


@forward.mistake("the bias is in {it} once too often: on the low-rank path too", "What is y where x is zero?")
def bias_twice(x, W, b, A, B, alpha):
    return base(x, W, b) + (alpha / len(A) * (low(x, A, B) + b) if len(A) else 0)


@forward.mistake("{it} has no low-rank path", "Which two paths lead from x to y?")
def no_low_rank_path(x, W, b, A, B, alpha):
    return base(x, W, b)


@forward.mistake("{it} has no base path: the frozen W is left out", "What must y be where B = 0?")
def no_base_path(x, W, b, A, B, alpha):
    return b + (alpha / len(A) * low(x, A, B) if len(A) else np.zeros((*x.shape[:-1], len(W))))


@forward.mistake(
    "{it} divides by r = 0: an adapter of rank 0 must leave the frozen layer as it is",
    "What does an A without rows add to y?",
)
def no_rank_zero(x, W, b, A, B, alpha):
    with np.errstate(divide="raise", invalid="raise"):
        return base(x, W, b) + alpha / len(A) * low(x, A, B)


@forward.mistake(
    "{it} multiplies A and B in an order in which their shapes do not fit",
    "Write the shape of x above x, of A above A, of B above B: in which order can they be multiplied?",
)
def wrong_order(x, W, b, A, B, alpha):
    return base(x, W, b) + alpha / max(len(A), 1) * x @ (A @ B).T


@forward.mistake(
    "{it} transposes x, and so works for a matrix x alone",
    "What is x.T when x has three axes, and what when it has one?",
)
def transposed_batch(x, W, b, A, B, alpha):
    return (W @ x.T).T + b + (alpha / len(A) * (B @ (A @ x.T)).T if len(A) else 0)


@forward.rule(
    "{it} forms the (out, in) matrix B A, which is as large as W",
    "How many entries does B A have, and how many does x Aᵀ have?",
    forms_the_product,
)
def product_formed(x, W, b, A, B, alpha):
    return x @ (W + alpha / max(len(A), 1) * B @ A).T + b


EXERCISE = Exercise(
    title="The forward",
    kind="write",
    minutes=10,
    difficulty=1,
    parts=[forward],
    hints=(
        "Write the base path first, and check the shape of x @ A.T before you go on to B.",
        "There are three products, and no result has more columns than out. What is left when A has no rows?",
    ),
    viva=[
        Viva(
            "Why is the low-rank path computed as (x Aᵀ) Bᵀ and not as x (B A)ᵀ?",
            "r (in + out) products a row, and a result of r numbers, instead of an (out, in) matrix that must be "
            "formed, held, and formed again after every step.",
            "It makes no difference, since the product is associative.",
        ),
        Viva(
            "What does α do that the learning rate does not?",
            "It scales the function that is computed, at every value of A and B, also after training; the rate scales "
            "steps. With Adam the first step's ΔW grows with s, with SGD with s².",
            "Nothing, α is a learning rate.",
        ),
    ],
    asks=["A1", "C1", "J5"],
)
