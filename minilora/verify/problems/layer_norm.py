"""Layer norm. The maths is in ops/layer_norm.py."""

from typing import Any

import numpy as np

from ..case import Case
from ..problem import Factor, Problem
from .linear import total

# batch, tokens, width of each case
SHAPES = [(5, 3, 6), (4, 5, 7), (3, 4, 9), (6, 2, 5), (2, 7, 8), (7, 6, 4)]


def draw(rng, shape):
    batch, tokens, width = shape
    x = 1 + 2 * rng.standard_normal((batch, tokens, width))
    inputs = {"x": x, "g": rng.standard_normal(width), "b": rng.standard_normal(width)}
    sizes = {"batch": batch, "tokens": tokens, "width": width}
    return Case(rng.standard_normal(x.shape), inputs, {"eps": 1e-2 * tokens}, sizes)


def mean(a):
    return a.mean(axis=-1, keepdims=True)


def standardise(x, eps):
    """x̂ and σ"""
    centred = x - mean(x)
    sigma = np.sqrt(mean(centred * centred) + eps)
    return centred / sigma, sigma


def forward(x, g, b, eps):
    xhat, _ = standardise(x, eps)
    return xhat * g + b


def backward(dy, x, g, b, eps):
    xhat, sigma = standardise(x, eps)
    dxhat = dy * g
    dx = (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) / sigma
    dg = total(dy * xhat)
    db = total(dy)
    return {"dx": dx, "dg": dg, "db": db}


def terms(dy, x, g, b, eps):
    xhat, sigma = standardise(x, eps)
    dxhat = dy * g
    return {
        "dx": {
            "the direct term dx̂/σ": dxhat / sigma,
            "the mean term": -mean(dxhat) / sigma + 0 * x,
            "the variance term": -xhat * mean(dxhat * xhat) / sigma,
        }
    }


def row_sums(tensors, case):
    dx = tensors["dx"]
    return float(np.abs(dx.sum(axis=-1)).max() / np.abs(dx).max())


SIMPLER: dict[str, dict[str, Any]] = {
    "with almost no ε (1e-12)": {"eps": 1e-12},
    "with the gain g = 1": {"g": lambda g: np.ones_like(g)},
}

layer_norm = Problem(
    "layer_norm",
    forward,
    backward,
    draw,
    terms,
    laws={"each row of dx sums to 0, because shifting x changes no output": row_sums},
    factors={"division": Factor("the factor 1/σ", lambda x, eps: 1 / standardise(x, eps)[1], ("dx",))},
    says={
        "no_mean_term": "dx lacks the mean term, the path of the gradient through the mean μ",
        "no_variance_term": "dx lacks the variance term, the path of the gradient through σ",
    },
    asks={
        "no_mean_term": "If every x of a row grows by the same amount, how much does the output change, "
        "and what must dx then sum to?",
        "no_variance_term": "σ is computed from x as well: which term of dx comes from its change?",
        "no_division": "If x is scaled by 10, the output stays the same: what then happens to dx?",
    },
    shapes=SHAPES,
    formula="y = x̂ ∘ g + b, x̂ = (x - μ)/σ, σ = √(mean((x - μ)²) + ε), over the features of each row",
    aliases=("ln",),
    rows=True,
    simpler=SIMPLER,
)
fault = layer_norm.fault


def gradient(dxhat, xhat, sigma, mean=mean):
    """dx from other values, or with other means"""
    return (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) / sigma


def with_dx(name, dx):
    """Add a fault in which dx is another function of dx̂, x̂ and σ."""
    return layer_norm.computed(name, dx=lambda dy, x, g, eps: dx(dy * g, *standardise(x, eps)))


def with_sigma(sigma, dy, x, g):
    """dx and dg with another σ"""
    xhat = (x - mean(x)) / sigma
    return {"dx": gradient(dy * g, xhat, sigma), "dg": total(dy * xhat)}


def row_sum(a):
    return a.sum(axis=-1, keepdims=True)


def over(*axes):
    """The mean over these axes."""
    return lambda a: a.mean(axis=axes, keepdims=True)


def with_statistics(mean, dy, x, g, eps):
    """dx and dg with the statistics of other axes"""
    centred = x - mean(x)
    sigma = np.sqrt(mean(centred * centred) + eps)
    return {"dx": gradient(dy * g, centred / sigma, sigma, mean), "dg": total(dy * centred / sigma)}


with_dx("statistics_as_constants", lambda dxhat, xhat, sigma: dxhat / sigma)(
    "dx treats μ and σ as constants: the mean term and the variance term are both missing",
    "By how many paths does one x reach the outputs of its row?",
)
layer_norm.called_with("gain_forgotten", only="dx", g=1)(
    "dx is computed from dy without the gain g",
    "By what is x̂ multiplied on its way to y, and what does that do to dy on the way back?",
)
layer_norm.add(
    "unbiased_variance",
    lambda dy, x, g, b, eps: with_sigma(np.sqrt(x.var(axis=-1, keepdims=True, ddof=1) + eps), dy, x, g),
)(
    "{it} uses the unbiased variance, divided by C - 1, but forward divides by C",
    "Is σ in the backward the same number as σ in the forward?",
)


@fault(
    "dx is the gradient of another layer norm, with the unbiased variance: forward divides it by C, not C - 1",
    "What are the defaults of the variance in NumPy and in PyTorch, and which of them did forward use?",
)
def gradient_of_unbiased_variance(dy, x, g, b, eps):
    sigma, width = np.sqrt(x.var(axis=-1, keepdims=True, ddof=1) + eps), x.shape[-1]
    xhat, dxhat = (x - mean(x)) / sigma, dy * g
    return {"dx": (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat) * width / (width - 1)) / sigma}


with_dx("means_over_the_batch", lambda dxhat, xhat, sigma: gradient(dxhat, xhat, sigma, over(0, 1)))(
    "dx takes its means over the rows of the batch, but the statistics belong to each row by itself",
    "Whose mean and variance does layer norm use: a feature's over the batch, or a row's over its features?",
)
layer_norm.called_with("eps_forgotten", only="dx dg", eps=0)(
    "{it} leaves ε out of σ, but forward has it", "Which σ did forward divide by?"
)
layer_norm.add("eps_outside_root", lambda dy, x, g, b, eps: with_sigma(x.std(axis=-1, keepdims=True) + eps, dy, x, g))(
    "{it} adds ε outside the root, √var + ε, but forward adds it inside, √(var + ε)",
    "Is ε added to the variance or to the standard deviation?",
)


@fault(
    "dx is the gradient of another layer norm, with σ = √var + ε: forward has √(var + ε)",
    "Is ε added to the variance or to the standard deviation?",
)
def gradient_of_eps_outside_root(dy, x, g, b, eps):
    std = x.std(axis=-1, keepdims=True)
    sigma, dxhat, centred = std + eps, dy * g, x - mean(x)
    return {"dx": (dxhat - mean(dxhat) - centred / std * mean(dxhat * centred / sigma)) / sigma}


layer_norm.add("statistics_over_tokens", lambda dy, x, g, b, eps: with_statistics(over(1, 2), dy, x, g, eps))(
    "{it} takes the statistics over tokens and features together, but each token has its own",
    "Does another token of the sample change what layer norm does to this one?",
)
layer_norm.add("statistics_over_the_batch", lambda dy, x, g, b, eps: with_statistics(over(0, 1), dy, x, g, eps))(
    "{it} takes the statistics of each feature over the batch, as batch norm does",
    "Which axis does forward normalise: the features of one row, or one feature of all rows?",
)
with_dx("means_over_tokens", lambda dxhat, xhat, sigma: gradient(dxhat, xhat, sigma, over(1, 2)))(
    "the means in dx are taken over tokens and features together, but each token has its own",
    "Over which axis did forward take μ, and over which do you take the mean of dx̂?",
)
layer_norm.computed(
    "centred_for_normalised", dx=lambda dy, x, g, eps: gradient(dy * g, x - mean(x), standardise(x, eps)[1])
)("the variance term of dx uses x - μ instead of x̂", "Is ∂σ/∂x equal to (x - μ)/C or to x̂/C?")
with_dx("sums_for_means", lambda dxhat, xhat, sigma: gradient(dxhat, xhat, sigma, mean=row_sum))(
    "the mean and variance terms of dx are sums over the features, but must be means",
    "Each x enters the mean with the weight 1/C: where has that gone?",
)
layer_norm.computed("gain_from_x", dg=lambda dy, x: total(dy * x))(
    "dg is summed with x instead of x̂", "What does g multiply in the forward?"
)
layer_norm.multiplied("gain_in_its_own_gradient", dg=lambda g: g)(
    "dg holds the factor g: it is summed with dx̂ instead of dy",
    "The output is linear in g: can its derivative with respect to g still contain g?",
)
