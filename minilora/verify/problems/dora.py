"""DoRA with W frozen, s = α/r, V = W + s B A, and g = m/‖V‖ of each row: one value for each output.

    y = (x - x̃) Wᵀ + g ∘ (x̃ Vᵀ)        x̃ = x ∘ keep: what dropout leaves out of x still passes through W, as in PEFT

    G = dyᵀ x̃               the gradient of g ∘ V, summed over the rows of x
    dm = ⟨G, v̂⟩             n = ‖V‖, of each row; v̂ = V/n
    dV = g ∘ (G - v̂ ⟨G, v̂⟩)         the second term is the path through the norm
    dB = s dV Aᵀ            dA = s Bᵀ dV            dx = dy W ∘ (1 - keep) + (g ∘ dy) V ∘ keep

Source: Liu et al. (2024), "DoRA: weight-decomposed low-rank adaptation". Its section 4.3 holds n constant in backward,
which saves memory under autograd, and PEFT does so: there dV = g ∘ G, which is not the gradient. The maths without V is
in ops/dora.py.
"""

import numpy as np

from ... import ops
from ..case import Case, relative_error
from ..op import Op, S, drawn, on
from ..problem import Factor, Problem
from .dropout import draw_mask
from .linear import outer_total
from .linear import total as over_rows
from .low_rank import SHAPES, exchange, other_shapes, scale_of


def draw(rng, shape):
    batch, tokens, width_in, width_out, r, alpha, p = shape
    x = rng.standard_normal((batch, tokens, width_in))
    A, B = rng.standard_normal((r, width_in)), rng.standard_normal((width_out, r))
    m = 1 + rng.random(width_out)
    W = 2 * rng.standard_normal((width_out, width_in))
    constants = {"W": W, "keep": draw_mask(rng, x.shape, p), "alpha": float(alpha), "r": r, "p": p}
    sizes = {"alpha": alpha, "r": r, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out, "1-p": 1 - p}
    dy = rng.standard_normal((batch, tokens, width_out))
    return Case(dy, {"x": x, "m": m, "A": A, "B": B}, constants, sizes)


def total(a, axis=1):
    return a.sum(axis=axis, keepdims=True)


def merged(A, B, W, alpha, r):
    """V and the lengths n of its rows, (out, 1)"""
    V = W + alpha / r * B @ A
    return V, np.sqrt(total(V * V))


def forward(x, m, A, B, W, keep, alpha, r, p):
    V, n = merged(A, B, W, alpha, r)
    return (x - x * keep) @ W.T + (x * keep) @ (m[:, None] / n * V).T


def through(dV, A, B, s):
    """dA and dB"""
    return {"dA": s * B.T @ dV, "dB": s * dV @ A.T}


def parts_of_dV(dy, x, m, A, B, W, keep, alpha, r):
    """The two terms of dV: past the norm, and through it."""
    V, n = merged(A, B, W, alpha, r)
    g, unit, G = m[:, None] / n, V / n, outer_total(dy, x * keep)
    return g * G, -g * unit * total(G * unit)


def backward(dy, x, m, A, B, W, keep, alpha, r, p):
    V, n = merged(A, B, W, alpha, r)
    du = dy * (m / n[:, 0])
    dm = (outer_total(dy, x * keep) * V / n).sum(axis=1)
    dV = sum(parts_of_dV(dy, x, m, A, B, W, keep, alpha, r))
    return {"dx": dy @ W * (1 - keep) + du @ V * keep, "dm": dm, **through(dV, A, B, alpha / r)}


def terms(dy, x, m, A, B, W, keep, alpha, r, p):
    _, n = merged(A, B, W, alpha, r)
    du, s = dy * (m / n[:, 0]), alpha / r
    paths = {
        "the path of what was dropped": dy @ W * (1 - keep),
        "the base path": du @ W * keep,
        "the low-rank path": s * du @ B @ A * keep,
    }
    past, by_norm = (through(dV, A, B, s) for dV in parts_of_dV(dy, x, m, A, B, W, keep, alpha, r))
    return {"dx": paths} | {
        name: {"the path past the norm": past[name], "the path through the norm": by_norm[name]} for name in past
    }


def masked(dy, x, m, A, B, W, keep, alpha, r, p):
    V, n = merged(A, B, W, alpha, r)
    return {"dx": (dy @ W, (dy * (m / n[:, 0]) @ V - dy @ W) / (1 - p))}


def complete(x, m, A, B, W, keep=None, alpha=None, r=None, p=None, s=None):
    """Without keep there is no dropout."""
    keep = np.ones(x.shape) if keep is None else keep
    return {"W": W, "keep": keep, **scale_of(A, alpha, r, s), "p": 1 - 1 / keep.max() if p is None else p}


def one_over_norm(A, B, W, alpha, r):
    return 1 / merged(A, B, W, alpha, r)[1][:, 0]


def linear_in_m(tensors, case):
    x, m, A, B = case.inputs.values()
    y = forward(x, m, A, B, **case.constants) - forward(x, 0 * m, A, B, **case.constants)
    return relative_error(m * tensors["dm"], over_rows(case.dy * y))


def orthogonal_to_V(tensors, case):
    x, m, A, B = case.inputs.values()
    W, keep, alpha, r, _ = case.constants.values()
    V, n = merged(A, B, W, alpha, r)
    dV = m[:, None] / n * (outer_total(case.dy, x * keep) - tensors["dm"][:, None] * V / n)
    return relative_error((B * tensors["dB"]).sum(axis=1), -(W * dV).sum(axis=1))


dora = Problem(
    "dora",
    forward,
    backward,
    draw,
    terms,
    laws={
        "Bᵀ dB = dA Aᵀ, because an invertible factor moved from B to A changes no output": exchange,
        "m ∘ dm is dy ∘ y summed over the rows, without what y is at m = 0, because the rest is linear in m": (
            linear_in_m
        ),
        "⟨B, dB⟩ = -⟨W, dV⟩ in every row, because V/‖V‖ stays when a row of W and of B grow by one factor": (
            orthogonal_to_V
        ),
    },
    factors={
        "scale": Factor("the scale s = α/r", lambda alpha, r: alpha / r, ("dA", "dB"), ("the low-rank path",)),
        "norm": Factor("the factor 1/‖V‖", one_over_norm, ("dm",)),
    },
    says={
        "no_path_through_the_norm": "{it} holds the norm ‖V‖ constant, as PEFT and section 4.3 of the DoRA paper do: "
        "a convention, not a mistake of algebra, but not the gradient",
        "no_path_of_what_was_dropped": "dx lacks what was dropped: it is zero there, but W still sees all of x",
        "no_base_path": "dx lacks the base path, through the frozen W",
        "no_low_rank_path": "dx passes through W alone, not through V = W + s B A",
    },
    asks={
        "no_path_through_the_norm": "Does ‖V‖ change when B changes, and do you want the gradient, or PEFT's step?",
        "path_through_the_norm_with_wrong_sign": "If a row of V grows longer, does m/‖V‖ grow or shrink?",
        "path_through_the_norm_twice": "‖V‖ is a root: what is the derivative of √z?",
        "no_path_of_what_was_dropped": "Which layer still sees the x that dropout leaves out?",
        "no_base_path": "W gets no gradient: does that keep the gradient from passing through it to x?",
        "no_low_rank_path": "By how many paths does x reach y?",
        "no_norm": "What does m multiply in forward: V, or V divided by its length?",
    },
    shapes=SHAPES,
    others=other_shapes,
    formula="y = (x - x ∘ keep) Wᵀ + (x ∘ keep) W'ᵀ, W' = m ∘ V/‖V‖ of each row, V = W + s B A, s = α/r; keep is 0 "
    "where x is dropped, else 1/(1-p)",
    complete=complete,
    masked=masked,
    optional="also without keep and p (y = x W'ᵀ), or r (that of A), and with s for alpha/r",
    rows=True,
    simpler={"without dropout (keep = 1, p = 0)": {"keep": lambda keep: np.ones_like(keep), "p": 0.0}},
)
fault = dora.fault


def norm_held_constant(dy, x, m, A, B, W, keep, alpha, r, p):
    """dA and dB as PEFT has them: the fault no_path_through_the_norm."""
    return through(parts_of_dV(dy, x, m, A, B, W, keep, alpha, r)[0], A, B, alpha / r)


@fault(
    "{it} takes the norm of each column of V, but m is a length for each output, a row",
    "How many entries does m have: as many as W has rows, or columns?",
)
def norm_of_columns(dy, x, m, A, B, W, keep, alpha, r, p):
    V, _ = merged(A, B, W, alpha, r)
    n, G = np.sqrt(total(V * V, axis=0)), outer_total(dy, x * keep)
    dV = m[:, None] / n * (G - V / n * total(G * V / n, axis=0))
    dx = dy @ W * (1 - keep) + dy * m @ (V / n) * keep
    return {"dx": dx, "dm": (G * V / n).sum(axis=1), **through(dV, A, B, alpha / r)}


def with_norm(n, dy, x, m, A, B, W, keep, alpha, r):
    """dx and dm with n instead of ‖V‖"""
    V, _ = merged(A, B, W, alpha, r)
    dx = dy @ W * (1 - keep) + dy * (m / n[:, 0]) @ V * keep
    return {"dx": dx, "dm": (outer_total(dy, x * keep) * V / n).sum(axis=1)}


@fault(
    "{it} takes the norm of the frozen W, not that of V = W + s B A",
    "Which matrix has rows of the length m in forward, at every step of training?",
)
def norm_of_W(dy, x, m, A, B, W, keep, alpha, r, p):
    n = np.sqrt(total(W * W))
    dV = m[:, None] / n * outer_total(dy, x * keep)
    return with_norm(n, dy, x, m, A, B, W, keep, alpha, r) | through(dV, A, B, alpha / r)


@fault(
    "{it} takes the norm of W + B A, without the scale s = α/r",
    "What stands in the denominator of forward: the length of W + B A, or of W + s B A?",
)
def norm_without_scale(dy, x, m, A, B, W, keep, alpha, r, p):
    return with_norm(merged(A, B, W, r, r)[1], dy, x, m, A, B, W, keep, alpha, r)


@fault(
    "the path through the norm of {it} has V instead of V/‖V‖",
    "The derivative of ‖V‖ is a vector: of which length?",
)
def V_of_its_own_length(dy, x, m, A, B, W, keep, alpha, r, p):
    _, n = merged(A, B, W, alpha, r)
    past, by_norm = parts_of_dV(dy, x, m, A, B, W, keep, alpha, r)
    return through(past + n * by_norm, A, B, alpha / r)


@fault(
    "{it} applies dropout on the low-rank path alone, but m/‖V‖ multiplies the product of W with the dropped-out x too",
    "m/‖V‖ multiplies a product with W: is it that of x, or of the x that dropout left?",
)
def mask_on_one_path(dy, x, m, A, B, W, keep, alpha, r, p):
    V, n = merged(A, B, W, alpha, r)
    du, s = dy * (m / n[:, 0]), alpha / r
    dm = over_rows(dy * (x @ W.T + s * (x * keep) @ A.T @ B.T)) / n[:, 0]
    past, _ = parts_of_dV(dy, x, m, A, B, W, keep, alpha, r)
    return {"dx": du @ W + s * du @ B @ A * keep, "dm": dm} | through(past - (m * dm)[:, None] * V / n**2, A, B, s)


dora.called_with("no_mask_in_parameters", only="dm dA dB", keep=1)(
    "{it} is summed with x instead of the x that dropout left", "Which x did V see in the forward?"
)
dora.called_with("no_mask_in_x", only="dx", keep=1)(
    "dx lacks the dropout mask", "By which of its two paths can an x that was dropped still change the output?"
)
dora.called_with("mask_not_rescaled", keep=lambda keep, p: keep * (1 - p))(
    "the dropout mask lacks its factor 1/(1-p), in {it}",
    "What else does dropout do to the entries that survive, so that their mean stays the same?",
)
dora.called_with("mask_twice", keep=lambda keep: keep * keep)(
    "the dropout mask, or its factor 1/(1-p), is applied twice, in {it}", "Which values does keep have already?"
)
dora.called_with("magnitude_forgotten", only="dx dA dB", m=lambda m: np.ones_like(m))(
    "{it} lacks the magnitude m: V is normalised, and not scaled again",
    "If m is doubled, what V makes of x doubles: what do these gradients do?",
)
dora.multiplied("magnitude_in_its_own_gradient", dm=lambda m: m)(
    "dm holds the factor m: y is linear in m, so its derivative does not contain m", "If m is zero, is dm zero?"
)
dora.multiplied("magnitude_frozen", dm=0)(
    "dm is zero: the magnitude is never trained", "Which three tensors does DoRA train?"
)


# ---- the functions of ops/dora.py ----


def draw_op(size, rng):
    batch, T, n_in, n_out, r = (size() for _ in range(5))
    inputs = {
        "u": rng.standard_normal((batch, T, n_out)),
        "A": rng.standard_normal((r, n_in)),
        "B": rng.standard_normal((n_out, r)),
        "m": 1 + rng.random(n_out),
    }
    return drawn(rng, (batch, T, n_out), inputs, W=2 * rng.standard_normal((n_out, n_in)), s=S)


def dora_backward(dy, cache, u, A, B, m, W, s):
    W, (_, n, P) = on(u, W), cache
    dm = ops.dora_m_gradients(dy, cache.u, n)
    dA, dB = ops.dora_A_gradients(dm, n, W, A, B, m, s), ops.dora_B_gradients(dm, n, P, m, s)
    return ops.dora_backward(dy, n, m), dA, dB, dm


OPS = {
    "magnitude, DoRA": Op(draw_op, lambda u, A, B, m, W, s: ops.dora_forward(u, on(u, W), A, B, m, s), dora_backward),
}
