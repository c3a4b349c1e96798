"""DoRA, y = g ∘ (x Vᵀ) with V = W + s B A, W frozen, and g = m/‖V‖ of each row: a length for each output.

    G = dyᵀ x               the gradient of g ∘ V, summed over the rows of x
    dm = ⟨G, V⟩/n           n = ‖V‖, of each row; v̂ = V/n
    dV = g ∘ (G - v̂ ⟨G, v̂⟩)       the second term is the path through the norm
    dB = s dV Aᵀ            dA = s Bᵀ dV            dx = (g ∘ dy) V

Source: Liu et al. (2024), "DoRA: weight-decomposed low-rank adaptation". Its section 4.3 holds n constant in backward,
which saves memory under autograd, and PEFT does so: there dV = g ∘ G, which is not the gradient.
"""

import numpy as np

from ..case import Case
from ..problem import Factor, Problem
from .linear import linear_in, outer_total
from .low_rank import SHAPES, exchange, other_shapes, scale_of


def draw(rng, shape):
    batch, tokens, width_in, width_out, r, alpha, _ = shape
    x = rng.standard_normal((batch, tokens, width_in))
    A, B = rng.standard_normal((r, width_in)), rng.standard_normal((width_out, r))
    m = 1 + rng.random(width_out)
    constants = {"W": 2 * rng.standard_normal((width_out, width_in)), "alpha": float(alpha), "r": r}
    sizes = {"alpha": alpha, "r": r, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    dy = rng.standard_normal((batch, tokens, width_out))
    return Case(dy, {"x": x, "m": m, "A": A, "B": B}, constants, sizes)


def total(a, axis=1):
    return a.sum(axis=axis, keepdims=True)


def merged(A, B, W, alpha, r):
    """V and the lengths n of its rows, (out, 1)"""
    V = W + alpha / r * B @ A
    return V, np.sqrt(total(V * V))


def forward(x, m, A, B, W, alpha, r):
    V, n = merged(A, B, W, alpha, r)
    return x @ (m[:, None] / n * V).T


def through(dV, A, B, s):
    """dA and dB"""
    return {"dA": s * B.T @ dV, "dB": s * dV @ A.T}


def backward(dy, x, m, A, B, W, alpha, r):
    V, n = merged(A, B, W, alpha, r)
    g, unit = m[:, None] / n, V / n
    G = outer_total(dy, x)
    dV = g * (G - unit * total(G * unit))
    dm = (G * unit).sum(axis=1)
    return {"dx": dy * g[:, 0] @ V, "dm": dm, **through(dV, A, B, alpha / r)}


def complete(x, m, A, B, W, alpha=None, r=None, s=None):
    return {"W": W, **scale_of(A, alpha, r, s)}


def one_over_norm(A, B, W, alpha, r):
    return 1 / merged(A, B, W, alpha, r)[1][:, 0]


dora = Problem(
    "dora",
    forward,
    backward,
    draw,
    laws={
        "Bᵀ dB = dA Aᵀ, because an invertible factor moved from B to A changes no output": exchange,
        "m ∘ dm is dy ∘ y summed over the rows, because y is linear in m": linear_in("m", forward),
    },
    factors={
        "scale": Factor("the scale s = α/r", lambda alpha, r: alpha / r, ("dA", "dB")),
        "norm": Factor("the factor 1/‖V‖", one_over_norm, ("dm",)),
    },
    asks={"no_norm": "What does m multiply in forward: V, or V divided by its length?"},
    shapes=SHAPES,
    others=other_shapes,
    formula="y = x W'ᵀ, W' = m ∘ V/‖V‖ of each row, V = W + s B A, s = α/r",
    complete=complete,
    optional="also without r (that of A), and with s for alpha/r",
    rows=True,
)
fault = dora.fault


@fault(
    "{it} holds the norm ‖V‖ constant: the convention of PEFT and of section 4.3 of the DoRA paper, not the gradient",
    "Does ‖V‖ change when B changes, and do you want the gradient, or PEFT's step?",
)
def norm_held_constant(dy, x, m, A, B, W, alpha, r):
    _, n = merged(A, B, W, alpha, r)
    return through(m[:, None] / n * outer_total(dy, x), A, B, alpha / r)


@fault(
    "{it} takes the norm of each column of V, but m is a length for each output, a row",
    "How many entries does m have: as many as W has rows, or columns?",
)
def norm_of_columns(dy, x, m, A, B, W, alpha, r):
    V, _ = merged(A, B, W, alpha, r)
    n, G = np.sqrt(total(V * V, axis=0)), outer_total(dy, x)
    dV = m[:, None] / n * (G - V / n * total(G * V / n, axis=0))
    return {"dx": dy * m @ (V / n), "dm": (G * V / n).sum(axis=1), **through(dV, A, B, alpha / r)}


@fault(
    "{it} takes the norm of the frozen W, not that of V = W + s B A",
    "Which matrix has rows of the length m in forward, at every step of training?",
)
def norm_of_W(dy, x, m, A, B, W, alpha, r):
    V, _ = merged(A, B, W, alpha, r)
    n, G = np.sqrt(total(W * W)), outer_total(dy, x)
    return {"dx": dy * (m / n[:, 0]) @ V, "dm": (G * V / n).sum(axis=1), **through(m[:, None] / n * G, A, B, alpha / r)}


dora.called_with("magnitude_forgotten", only="dx dA dB", m=lambda m: np.ones_like(m))(
    "{it} lacks the magnitude m: V is normalised, and not scaled again",
    "If m is doubled, the output doubles: what do these gradients do?",
)
dora.multiplied("magnitude_in_its_own_gradient", dm=lambda m: m)(
    "dm holds the factor m: y is linear in m, and its derivative does not", "If m is zero, is dm zero?"
)
dora.multiplied("magnitude_frozen", dm=0)(
    "dm is zero: the magnitude is never trained", "Which three tensors does DoRA train?"
)
dora.computed(
    "no_low_rank_path", dx=lambda dy, m, A, B, W, alpha, r: dy * (m / merged(A, B, W, alpha, r)[1][:, 0]) @ W
)("dx passes through W alone, not through V = W + s B A", "By how many paths does x reach y?")
