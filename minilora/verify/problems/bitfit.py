"""BitFit: the layers of a block of which only the biases are trained. The maths is in ops/linear.py.

linear          y = x Wᵀ + b                    dx = dy W                       db = Σ dy
layer norm      y = g ∘ x̂ + b                   x̂ = (x - μ) / σ                 db = Σ dy
                dx = (dx̂ - mean dx̂ - x̂ mean(dx̂ ∘ x̂)) / σ,  dx̂ = g ∘ dy        σ = √(var x + eps)
"""

import numpy as np

from ..case import Case
from ..problem import Problem
from .linear import SHAPES, total

# ---- the linear layer ----


def draw(rng, shape):
    batch, tokens, width_in, width_out = shape
    inputs = {"x": rng.standard_normal((batch, tokens, width_in)), "b": rng.standard_normal(width_out)}
    sizes = {"batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    constants = {"W": rng.standard_normal((width_out, width_in))}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)


def forward(x, b, W):
    return x @ W.T + b


def backward(dy, x, b, W):
    return {"dx": dy @ W, "db": total(dy)}


bitfit = Problem(
    "bitfit",
    forward,
    backward,
    draw,
    says={"averaged_over_rows": "db is a mean over the rows, but must be a sum: every row adds b"},
    asks={"averaged_over_rows": "If b grows by 1, by how much does the sum of all outputs grow?"},
    shapes=SHAPES,
    formula="y = x Wᵀ + b, W frozen",
    rows=True,
)

bitfit.computed("averaged_over_samples", db=lambda dy: total(dy) / len(dy))(
    "db is a mean over the samples of the batch, but must be a sum",
    "Is the loss divided by the batch in here, or has whoever computed dy done that?",
)
bitfit.computed("summed_over_one_axis", db=lambda dy: dy.sum(axis=1)[0])(
    "db sums the tokens of the first sample alone", "Over which of the axes of dy is b broadcast in forward?"
)
bitfit.computed("stopped_at_W", dx=lambda dy, W: dy @ W * 0)(
    "dx is zero, as though nothing passed through a frozen W: the layers below have biases to train too",
    "W is frozen: does that stop the gradient that passes through it, or only its own?",
)
bitfit.computed("started_from_b", db=lambda dy, b: b + total(dy))(
    "db still holds b itself: the sum starts from the bias, not from zero",
    "What must db be where dy is zero?",
)


# ---- the layer norm ----


def draw_norm(rng, shape):
    batch, tokens, width, _ = shape
    inputs = {"x": rng.standard_normal((batch, tokens, width)), "b": rng.standard_normal(width)}
    constants = {"g": rng.standard_normal(width), "eps": 0.1}
    sizes = {"batch": batch, "tokens": tokens, "width": width}
    return Case(rng.standard_normal((batch, tokens, width)), inputs, constants, sizes)


def normed(x, eps):
    """x̂ and σ"""
    sigma = np.sqrt(((x - x.mean(axis=-1, keepdims=True)) ** 2).mean(axis=-1, keepdims=True) + eps)
    return (x - x.mean(axis=-1, keepdims=True)) / sigma, sigma


def norm_forward(x, b, g, eps):
    return g * normed(x, eps)[0] + b


def norm_backward(dy, x, b, g, eps):
    x_hat, sigma = normed(x, eps)
    d = g * dy
    dx = (d - d.mean(axis=-1, keepdims=True) - x_hat * (d * x_hat).mean(axis=-1, keepdims=True)) / sigma
    return {"dx": dx, "db": total(dy)}


bitfit_norm = Problem(
    "bitfit_norm",
    norm_forward,
    norm_backward,
    draw_norm,
    says={"averaged_over_rows": "db is a mean over the rows, but must be a sum: every row adds b"},
    asks={"averaged_over_rows": "If b grows by 1, by how much does the sum of all outputs grow?"},
    shapes=SHAPES,
    formula="y = g ∘ (x - μ) / √(var x + eps) + b, g frozen",
    rows=True,
)

bitfit_norm.computed("gain_in_b", db=lambda dy, g: total(g * dy))(
    "db holds the gain g: b is added after g", "If g is zero, does b still move y?"
)
bitfit_norm.computed("gradient_of_the_gain", db=lambda dy, x, eps: total(dy * normed(x, eps)[0]))(
    "db is the gradient of the gain, Σ dy ∘ x̂: the gain is frozen here", "What does y hold that b multiplies?"
)
bitfit_norm.called_with("no_gain_in_x", only="dx", g=1)(
    "dx lacks the gain g, which is frozen and not 1", "Does a frozen gain leave dy as it is on its way to x?"
)
bitfit_norm.computed("through_the_shift", db=lambda dy: total(dy - dy.mean(axis=-1, keepdims=True)))(
    "db has the mean of dy subtracted, as dx has: the norm subtracts the mean of x, not that of b",
    "Is b added before or after the mean is subtracted?",
)
