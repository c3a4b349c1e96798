"""Dropout, with the mask as an argument. The maths is in ops/dropout.py."""

from ..case import Case, relative_error
from ..problem import Factor, Problem

# batch, tokens, width and p of each case
SHAPES = [(5, 3, 8, 0.2), (4, 7, 6, 0.1), (3, 5, 9, 0.3), (6, 2, 7, 0.4), (2, 8, 5, 0.15), (7, 4, 10, 0.25)]


def draw(rng, shape):
    *size, p = shape
    dy, x = rng.standard_normal((2, *size))
    sizes = dict(zip(["batch", "tokens", "width"], size, strict=True)) | {"1-p": 1 - p}
    return Case(dy, {"x": x}, {"keep": draw_mask(rng, size, p), "p": p}, sizes)


def draw_mask(rng, shape, p):
    """0 with probability p, else 1/(1-p)."""
    return (rng.random(shape) >= p) / (1 - p)


def forward(x, keep, p):
    return x * keep


def backward(dy, x, keep, p):
    return {"dx": dy * keep}


def masked(dy, x, keep, p):
    return {"dx": (0 * dy, dy / (1 - p))}


def at_dropped(tensors, case):
    dx, kept = tensors["dx"], case.constants["keep"] != 0
    return relative_error(dx, dx * kept)


dropout = Problem(
    "dropout",
    forward,
    backward,
    draw,
    laws={"dx is 0 where x was dropped, because such an x changes no output": at_dropped},
    factors={"rescaling": Factor("the factor 1/(1-p)", lambda p: 1 / (1 - p), ("dx",))},
    says={
        "no_rescaling": "dx lacks the factor 1/(1-p) at the entries that were kept",
        "rescaling_twice": "dx applies the mask twice, and with it the factor 1/(1-p)",
        "upstream_forgotten": "dx is the mask alone, without the upstream gradient dy",
    },
    asks={
        "no_rescaling": "What else does forward do to the entries that survive, so that the mean of y is x?",
        "rescaling_twice": "How often is x multiplied by the mask on its way to y?",
    },
    shapes=SHAPES,
    formula="y = x ∘ keep; keep is 0 where x is dropped, else 1/(1-p)",
    rows=True,
    pairs=False,
    masked=masked,
)

dropout.called_with("mask_forgotten", keep=1)(
    "dx lacks the mask: dy passes as though nothing had been dropped",
    "How much does the loss change if you change an x that forward has set to 0?",
)
dropout.called_with("rescaled_not_masked", keep=lambda p: 1 / (1 - p))(
    "dx is rescaled by 1/(1-p) everywhere, but what was dropped is not set to 0",
    "Forward does two things to x: which of them is missing on the way back?",
)
dropout.called_with("mask_inverted", keep=lambda keep, p: 1 / (1 - p) - keep)(
    "dx uses the mask inverted: the gradient passes where x was dropped",
    "Does a 0 in the mask mean kept or dropped?",
)
dropout.multiplied("divided_by_p", dx=lambda p: (1 - p) / p)(
    "dx is rescaled by 1/p, not by 1/(1-p)", "Is p the probability to drop or to keep?"
)
dropout.called_with("first_mask_for_all", keep=lambda keep: keep[:1])(
    "dx uses the mask of the first sample for all of them", "Were the same features dropped in every sample?"
)
dropout.multiplied("multiplied_by_x", dx=lambda x: x)(
    "dx is multiplied by x, which the derivative of y by x no longer contains",
    "y is linear in x: on what does its slope depend?",
)
