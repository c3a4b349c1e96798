"""RMS norm. The maths is in ops/rms_norm.py."""

import numpy as np

from ..case import Case, relative_error
from ..problem import Factor, Problem
from .layer_norm import SIMPLER, mean, over
from .linear import linear_in, total

# batch, tokens, width of each case
SHAPES = [(5, 3, 6), (4, 6, 7), (3, 4, 9), (6, 2, 5), (2, 7, 8), (7, 5, 4)]


def draw(rng, shape):
    batch, tokens, width = shape
    x = 1 + 2 * rng.standard_normal((batch, tokens, width))
    sizes = {"batch": batch, "tokens": tokens, "width": width}
    inputs = {"x": x, "g": rng.standard_normal(width)}
    return Case(rng.standard_normal(x.shape), inputs, {"eps": 1e-2 * tokens}, sizes)


def normalise(x, eps):
    """x̂ and rms"""
    rms = np.sqrt(mean(x * x) + eps)
    return x / rms, rms


def forward(x, g, eps):
    xhat, _ = normalise(x, eps)
    return xhat * g


def backward(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    dx = (dxhat - xhat * mean(dxhat * xhat)) / rms
    dg = total(dy * xhat)
    return {"dx": dx, "dg": dg}


def terms(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    dxhat = dy * g
    return {"dx": {"the direct term dx̂/rms": dxhat / rms, "the rms term": -xhat * mean(dxhat * xhat) / rms}}


def along_x(tensors, case):
    x, eps = case.inputs["x"], case.constants["eps"]
    _, rms = normalise(x, eps)
    return relative_error(mean(x * tensors["dx"]), eps / rms**2 * mean(case.dy * forward(**case.inputs, eps=eps)))


rms_norm = Problem(
    "rms_norm",
    forward,
    backward,
    draw,
    terms,
    laws={
        "each row of dx is orthogonal to x, up to (ε/rms²) dy·y: scaling x changes the output through ε alone": along_x,
        "g ∘ dg is dy ∘ y summed over the rows, because y is linear in g": linear_in("g", forward),
    },
    factors={"division": Factor("the factor 1/rms", lambda x, eps: 1 / normalise(x, eps)[1], ("dx",))},
    says={
        "no_rms_term": "dx treats the rms as a constant: the rms term is missing",
        "no_direct_term": "dx lacks the direct term: only the path through the rms is left",
        "rms_term_with_wrong_sign": "the rms term of dx is added, but must be subtracted",
        "rms_term_twice": "the rms term of dx is twice as large: the 2 of the square is not cancelled by the 1/2 of "
        "the root",
        "division_twice": "dx is divided by the mean square, but must be divided by its root",
    },
    asks={
        "no_rms_term": "By how many paths does one x reach the outputs of its row?",
        "no_direct_term": "If the rms did not change at all, would the output still feel a change of x?",
        "rms_term_with_wrong_sign": "When a positive x grows, does the rms grow or shrink, "
        "and what does that do to the outputs of the row?",
        "rms_term_twice": "What is the derivative of √s, and what of the 2 that the square brings is then left?",
        "no_division": "If x is scaled by 10, the output stays the same: what then happens to dx?",
        "division_twice": "If x is scaled by 10 and the output stays the same, by how much does dx shrink: 10 or 100?",
    },
    shapes=SHAPES,
    formula="y = x̂ ∘ g, x̂ = x/rms, rms = √(mean(x²) + ε), over the features of each row",
    rows=True,
    simpler=SIMPLER,
)
fault = rms_norm.fault


def gradient(dxhat, xhat, rms, mean=mean):
    """dx from other values, or with another mean"""
    return (dxhat - xhat * mean(dxhat * xhat)) / rms


def with_dx(name, dx):
    """Add a fault in which dx is another function of dx̂, x̂ and the rms."""
    return rms_norm.computed(name, dx=lambda dy, x, g, eps: dx(dy * g, *normalise(x, eps)))


def with_rms(rms, dy, x, g, mean=mean):
    """dx and dg with another rms"""
    return {"dx": gradient(dy * g, x / rms, rms, mean), "dg": total(dy * x / rms)}


with_dx("rms_term_not_divided", lambda dxhat, xhat, rms: dxhat / rms - xhat * mean(dxhat * xhat))(
    "the rms term of dx lacks the factor 1/rms, which the direct term has",
    "Both terms must scale alike when x is scaled: do they?",
)
rms_norm.computed("input_for_normalised", dx=lambda dy, x, g, eps: gradient(dy * g, x, normalise(x, eps)[1]))(
    "the rms term of dx uses x instead of x̂", "Is ∂rms/∂x equal to x/C or to x̂/C?"
)
with_dx("sum_for_mean", lambda dxhat, xhat, rms: (dxhat - xhat * (dxhat * xhat).sum(axis=-1, keepdims=True)) / rms)(
    "the rms term of dx is a sum over the features, but must be a mean",
    "Each x² enters the mean square with the weight 1/C: where has that gone?",
)
with_dx("mean_without_xhat", lambda dxhat, xhat, rms: (dxhat - xhat * mean(dxhat)) / rms)(
    "the mean in the rms term of dx is that of dx̂ alone, but must be that of dx̂ ∘ x̂",
    "If the rms changes, how much does each output of the row change: all by the same amount?",
)
with_dx("mean_alone", lambda dxhat, xhat, rms: (dxhat - mean(dxhat * xhat)) / rms)(
    "the rms term of dx is the mean itself, the same for the whole row: its factor x̂ is missing",
    "Which x of a row moves the rms the most?",
)
with_dx("mean_term_of_layer_norm", lambda dxhat, xhat, rms: (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) / rms)(
    "dx subtracts the mean of dx̂ as well: the mean term of layer norm, which RMS norm does not have",
    "Does the forward subtract a mean from x?",
)
with_dx("mean_over_the_batch", lambda dxhat, xhat, rms: gradient(dxhat, xhat, rms, over(0, 1)))(
    "dx takes its mean over the rows of the batch, but the rms belongs to each row by itself",
    "Over what does the forward take the mean of the squares: over rows, or over the features of one row?",
)
rms_norm.called_with("gain_forgotten", only="dx", g=1)(
    "dx is computed from dy without the gain g",
    "By what is x̂ multiplied on its way to y, and what does that do to dy on the way back?",
)


@fault(
    "the rms term of dx takes its mean without the gain g, which the direct term has",
    "Which gradient arrives at x̂, and do both terms start from it?",
)
def gain_forgotten_in_the_mean(dy, x, g, eps):
    xhat, rms = normalise(x, eps)
    return {"dx": (dy * g - xhat * mean(dy * xhat)) / rms}


rms_norm.computed("gain_out_of_the_mean", dx=lambda dy, x, g, eps: g * gradient(dy, *normalise(x, eps)))(
    "dx has the gain g in front of everything, but it belongs inside the mean",
    "g differs from feature to feature: can it be taken out of a mean over the features?",
)
rms_norm.called_with("eps_forgotten", eps=0)(
    "{it} leaves ε out of the rms, but forward has it", "Which rms did forward divide by?"
)
rms_norm.add("eps_outside_root", lambda dy, x, g, eps: with_rms(np.sqrt(mean(x * x)) + eps, dy, x, g))(
    "{it} adds ε outside the root, √mean(x²) + ε, but forward adds it inside",
    "Is ε added to the mean of the squares or to its root?",
)


@fault(
    "dx is the gradient of another RMS norm, with √mean(x²) + ε: forward has ε inside the root",
    "Is ε added to the mean of the squares or to its root?",
)
def gradient_of_eps_outside_root(dy, x, g, eps):
    root = np.sqrt(mean(x * x))
    rms, dxhat = root + eps, dy * g
    return {"dx": (dxhat - x / root * mean(dxhat * x / rms)) / rms}


@fault(
    "{it} divides the sum of the squares by C - 1, but forward takes their mean, over C",
    "Is a mean subtracted from x before it is squared, so that one degree of freedom is lost?",
)
def divided_by_C_minus_1(dy, x, g, eps):
    return with_rms(np.sqrt(mean(x * x) * x.shape[-1] / (x.shape[-1] - 1) + eps), dy, x, g)


rms_norm.add("rms_over_tokens", lambda dy, x, g, eps: with_rms(np.sqrt(over(1, 2)(x * x) + eps), dy, x, g, over(1, 2)))(
    "{it} takes the rms over tokens and features together, but each token has its own",
    "Does another token of the sample change what RMS norm does to this one?",
)
with_dx("mean_over_tokens", lambda dxhat, xhat, rms: gradient(dxhat, xhat, rms, over(1, 2)))(
    "the mean in dx is taken over tokens and features together, but each token has its own",
    "Over which axis did forward take the rms, and over which do you take the mean of dx̂ ∘ x̂?",
)
rms_norm.computed("gain_from_x", dg=lambda dy, x: total(dy * x))(
    "dg is summed with x instead of x̂", "What does g multiply in the forward?"
)
rms_norm.multiplied("gain_in_its_own_gradient", dg=lambda g: g)(
    "dg holds the factor g: it is summed with dx̂ instead of dy",
    "The output is linear in g: can its derivative with respect to g still contain g?",
)
