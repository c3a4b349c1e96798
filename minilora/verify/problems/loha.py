"""The LoHa layer, y = x (W + ΔW)ᵀ with ΔW = s (B₁A₁) ∘ (B₂A₂), W frozen and s = α/r. The maths is in ops/loha.py.

This file uses the dense gradient of ΔW, as the paper does: G = s dyᵀ x, T₁ = G ∘ (B₂A₂), T₂ = G ∘ (B₁A₁), and
dB₁ = T₁ A₁ᵀ, dA₁ = B₁ᵀ T₁.
"""

import numpy as np

from ... import ops
from ..case import Case, relative_error
from ..op import Op, S, drawn
from ..problem import Factor, Problem
from .linear import outer_total
from .low_rank import SHAPES, other_shapes, scale_of


def draw(rng, shape):
    batch, tokens, width_in, width_out, r, alpha, _ = shape
    inputs = {"x": rng.standard_normal((batch, tokens, width_in))}
    for i in "12":
        inputs |= {f"B{i}": rng.standard_normal((width_out, r)), f"A{i}": rng.standard_normal((r, width_in))}
    constants = {"W": rng.standard_normal((width_out, width_in)), "alpha": float(alpha), "r": r}
    sizes = {"alpha": alpha, "r": r, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)


def delta(B1, A1, B2, A2, alpha, r):
    return alpha / r * (B1 @ A1) * (B2 @ A2)


def forward(x, B1, A1, B2, A2, W, alpha, r):
    return x @ (W + delta(B1, A1, B2, A2, alpha, r)).T


def through(G, B1, A1, B2, A2, first, second):
    """The gradients of the four factors, with `first` instead of B₂A₂ and `second` instead of B₁A₁."""
    T1, T2 = G * first, G * second
    return {"dB1": T1 @ A1.T, "dA1": B1.T @ T1, "dB2": T2 @ A2.T, "dA2": B2.T @ T2}


def backward(dy, x, B1, A1, B2, A2, W, alpha, r):
    G = alpha / r * outer_total(dy, x)
    dx = dy @ (W + delta(B1, A1, B2, A2, alpha, r))
    return {"dx": dx, **through(G, B1, A1, B2, A2, B2 @ A2, B1 @ A1)}


def terms(dy, x, B1, A1, B2, A2, W, alpha, r):
    return {"dx": {"the base path": dy @ W, "the adapter path": dy @ delta(B1, A1, B2, A2, alpha, r)}}


def complete(x, B1, A1, B2, A2, W=None, alpha=None, r=None, s=None):
    W = np.zeros((len(B1), x.shape[-1])) if W is None else W
    return {"W": W, **scale_of(A1, alpha, r, s)}


def exchange(tensors, case):
    A, B = case.inputs["A1"], case.inputs["B1"]
    return relative_error(B.T @ tensors["dB1"], tensors["dA1"] @ A.T)


def same_share(tensors, case):
    one, two = (np.sum(case.inputs[name] * tensors[f"d{name}"]) for name in ("B1", "B2"))
    return relative_error(one, two)


loha = Problem(
    "loha",
    forward,
    backward,
    draw,
    terms,
    laws={
        "B₁ᵀ dB₁ = dA₁ A₁ᵀ, because an invertible factor moved from B₁ to A₁ changes no output": exchange,
        "⟨B₁, dB₁⟩ = ⟨B₂, dB₂⟩, because a factor moved from B₁ to B₂ changes no output": same_share,
    },
    factors={
        "scale": Factor(
            "the scale s = α/r", lambda alpha, r: alpha / r, ("dB1", "dA1", "dB2", "dA2"), ("the adapter path",)
        )
    },
    asks={"scale_twice": "Does s multiply each of the two products B A, or their product once?"},
    shapes=SHAPES,
    others=other_shapes,
    formula="y = x (W + ΔW)ᵀ, ΔW = s (B₁A₁) ∘ (B₂A₂) entry by entry, s = α/r",
    complete=complete,
    optional="also without W (y = x ΔWᵀ), or r (that of A₁), and with s for alpha/r",
    rows=True,
)
fault = loha.fault


@fault(
    "{it} lacks the other product: T is s G ∘ (B₂A₂) for B₁ and A₁, and here it is s G, as for a sum",
    "If B₂A₂ is zero somewhere, can B₁A₁ change ΔW there?",
)
def other_product_left_out(dy, x, B1, A1, B2, A2, W, alpha, r):
    return through(alpha / r * outer_total(dy, x), B1, A1, B2, A2, 1, 1)


@fault(
    "{it} holds its own product B A where the other belongs: for B₁ and A₁, T is s G ∘ (B₂A₂)",
    "ΔW is linear in B₁: can B₁ stand in its own gradient?",
)
def own_product_for_the_other(dy, x, B1, A1, B2, A2, W, alpha, r):
    return through(alpha / r * outer_total(dy, x), B1, A1, B2, A2, B1 @ A1, B2 @ A2)


@fault(
    "{it} holds only the r products of equal index, B₁_k ∘ B₂_k with A₁_k ∘ A₂_k; but every k is paired with every l",
    "How many terms does the product of two sums of r terms have?",
)
def pairs_of_equal_index(dy, x, B1, A1, B2, A2, W, alpha, r):
    A, B, s = A1 * A2, B1 * B2, alpha / r
    G = s * outer_total(dy, x)
    dA, dB = B.T @ G, G @ A.T
    return {"dx": dy @ (W + s * B @ A), "dB1": dB * B2, "dA1": dA * A2, "dB2": dB * B1, "dA2": dA * A1}


@fault(
    "{it} is made with the matrix G = dyᵀ x of the sums over the rows, not with the sum of the rows' products",
    "Can the dy of one row meet the x of another row on its way to a weight?",
)
def product_of_sums(dy, x, B1, A1, B2, A2, W, alpha, r):
    G = alpha / r * np.outer(dy.sum(axis=(0, 1)), x.sum(axis=(0, 1)))
    return through(G, B1, A1, B2, A2, B2 @ A2, B1 @ A1)


loha.computed("dx_of_the_sum", dx=lambda dy, B1, A1, B2, A2, W, alpha, r: dy @ (W + alpha / r * (B1 @ A1 + B2 @ A2)))(
    "dx passes through the sum of B₁A₁ and B₂A₂, not through their product",
    "What is ΔW at the start, where A₂ is zero?",
)
loha.called_with("not_divided_by_r", r=1)(
    "the scale is α, not divided by the rank r, in {it}", "Which two numbers make up the scale in forward?"
)
loha.called_with("divided_by_r_squared", r=lambda r: r * r)(
    "the scale is α/r², as if by the rank of ΔW, in {it}; forward has α/r",
    "Which r stands in the scale: that of B₁A₁, or that of ΔW?",
)
loha.multiplied("as_if_A2_were_zero", dB1=0, dA1=0, dB2=0)(
    "{it} is zero, which is so only as long as A₂ is zero",
    "At the start of training A₂ is zero, and it alone has a gradient: what does its first step change?",
)


# ---- the functions of ops/loha.py ----


def draw_op(size, rng):
    batch, T, n_in, n_out, r = (size() for _ in range(5))
    inputs = {"x": rng.standard_normal((batch, T, n_in))}
    for i in "12":
        inputs |= {f"B{i}": rng.standard_normal((n_out, r)), f"A{i}": rng.standard_normal((r, n_in))}
    return drawn(rng, (batch, T, n_out), inputs, s=S)


def loha_backward(dy, cache, x, B1, A1, B2, A2, s):
    dx, dh = ops.loha_backward(dy, B1, A1, B2, A2, s)
    dA1, dA2 = ops.loha_A_gradients(dh, cache.x, A1, A2)
    dB1, dB2 = ops.loha_B_gradients(dy, cache.h, B1, B2, s)
    return dx, dB1, dA1, dB2, dA2


OPS = {"low rank, LoHa": Op(draw_op, ops.loha_forward, loha_backward)}
