"""The AdaLoRA layer, y = x Wᵀ + s ((x Aᵀ) ∘ e) Bᵀ with W frozen and s = α/r₀, and its penalty, ‖A Aᵀ - I‖ + ‖Bᵀ B - I‖.
The maths is in ops/adalora.py."""

import numpy as np

from ... import ops
from ..case import Case, relative_error
from ..op import Op, S, drawn
from ..problem import Factor, Problem
from .linear import outer_total, total
from .low_rank import SHAPES, other_shapes

# ---- the layer ----


def draw(rng, shape):
    batch, tokens, width_in, width_out, r, alpha, _ = shape
    inputs = {
        "x": rng.standard_normal((batch, tokens, width_in)),
        "A": rng.standard_normal((r, width_in)),
        "e": rng.standard_normal(r),
        "B": rng.standard_normal((width_out, r)),
    }
    r0 = 2 * r + 1  # more than half of the triplets have been pruned
    constants = {"W": rng.standard_normal((width_out, width_in)), "alpha": float(alpha), "r0": r0}
    sizes = {"alpha": alpha, "r": r, "r0": r0, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)


def forward(x, A, e, B, W, alpha, r0):
    return x @ W.T + alpha / r0 * (x @ A.T * e) @ B.T


def backward(dy, x, A, e, B, W, alpha, r0):
    s = alpha / r0
    h = x @ A.T
    dq = s * dy @ B
    dh = dq * e
    return {"dx": dy @ W + dh @ A, "dA": outer_total(dh, x), "de": total(dq * h), "dB": s * outer_total(dy, h * e)}


def terms(dy, x, A, e, B, W, alpha, r0):
    return {"dx": {"the base path": dy @ W, "the low-rank path": alpha / r0 * (dy @ B * e) @ A}}


def complete(x, A, e, B, W=None, alpha=None, r0=None, s=None):
    """alpha and r0: where they are not given, r0 is the rank of A, and α = s r0, or r0. Without W it is 0."""
    r0 = len(A) if r0 is None else r0
    W = np.zeros((len(B), x.shape[-1])) if W is None else W
    return {"W": W, "alpha": r0 * (1 if s is None else s) if alpha is None else alpha, "r0": r0}


def same_share(tensors, case):
    A, e, B = (case.inputs[name] for name in "AeB")
    of_e, of_A, of_B = e * tensors["de"], (A * tensors["dA"]).sum(axis=1), (B * tensors["dB"]).sum(axis=0)
    return max(relative_error(of_e, of_A), relative_error(of_e, of_B))


adalora = Problem(
    "adalora",
    forward,
    backward,
    draw,
    terms,
    laws={
        "e_k de_k = ⟨A_k, dA_k⟩ = ⟨B_:k, dB_:k⟩, because a factor moved within a triplet changes no output": same_share
    },
    factors={
        "scale": Factor("the scale s = α/r₀", lambda alpha, r0: alpha / r0, ("dA", "de", "dB"), ("the low-rank path",))
    },
    says={
        "no_base_path": "dx lacks the base path, through the frozen W",
        "no_low_rank_path": "dx lacks the low-rank path, through B, e and A",
    },
    asks={
        "no_scale": "Through which factors does h reach y, and which of them does each gradient still hold?",
        "no_base_path": "W gets no gradient: does that keep the gradient from passing through it to x?",
        "no_low_rank_path": "By how many paths does x reach y?",
    },
    shapes=SHAPES,
    others=other_shapes,
    formula="y = x Wᵀ + s ((x Aᵀ) ∘ e) Bᵀ, s = α/r₀; r₀ is the initial rank, before anything was pruned",
    complete=complete,
    optional="also without W (y = s ((x Aᵀ) ∘ e) Bᵀ) or r0 (the rank of A), and with s for alpha/r0",
    rows=True,
    pairs=False,
)

adalora.called_with("divided_by_the_rank_now", r0=lambda A: len(A))(
    "{it} has the scale α/r with the rank that is left after pruning; the scale stays α/r₀, with the initial rank",
    "If a triplet that contributes nothing is pruned, may the others then contribute more?",
)
adalora.called_with("no_e_in_A", only="dA", e=1)(
    "dA lacks e: on its way from B to A each column of the gradient is multiplied by its singular value",
    "If e_k is zero, does the row A_k change y?",
)
adalora.called_with("no_e_in_B", only="dB", e=1)(
    "dB lacks e: what B multiplies is h ∘ e, not h", "If e_k is zero, does the column B_:k change y?"
)
adalora.called_with("no_e_in_x", only="dx", e=1)(
    "the low-rank path of dx lacks e",
    "At the start e is zero, and the adapter is switched off: is it switched off in your dx too?",
)
adalora.multiplied("e_in_its_own_gradient", de=lambda e: e)(
    "de holds the factor e: it is summed with h ∘ e instead of h, but y is linear in e",
    "If e is zero, as at the start, is de zero, so that nothing is ever trained?",
)
adalora.multiplied("as_if_e_were_zero", dA=0, dB=0)(
    "{it} is zero, which is so only as long as e is zero",
    "At the start of training dA and dB are indeed zero: which vector makes them so, and what happens to it?",
)


# ---- the penalty ----

# r, in, out of each case: in one r is above both, so that neither can be orthonormal
PENALTY_SHAPES = [(2, 5, 6), (3, 7, 4), (4, 6, 9), (5, 8, 7), (6, 4, 5), (7, 9, 8)]


def draw_penalty(rng, shape):
    r, width_in, width_out = shape
    inputs = {"A": rng.standard_normal((r, width_in)), "B": rng.standard_normal((width_out, r))}
    sizes = {"r": r, "in": width_in, "out": width_out}
    return Case(np.array(rng.uniform(1.2, 1.8)), inputs, {}, sizes)  # dR is neither 1 nor 2


def errors(A, B):
    """A Aᵀ - I and Bᵀ B - I"""
    return A @ A.T - np.eye(len(A)), B.T @ B - np.eye(len(A))


def size(E):
    return np.sqrt((E * E).sum())


def penalty(A, B):
    E_A, E_B = errors(A, B)
    return size(E_A) + size(E_B)


def penalty_backward(dR, A, B):
    E_A, E_B = errors(A, B)
    return {"dA": 2 * dR * E_A @ A / size(E_A), "dB": 2 * dR * B @ E_B / size(E_B)}


def is_symmetric(tensors, case):
    A, B = case.inputs["A"], case.inputs["B"]
    products = tensors["dA"] @ A.T, B.T @ tensors["dB"]
    return max(relative_error(product, product.T) for product in products)


def of_norms(A, B):
    """(‖A Aᵀ - I‖, ‖Bᵀ B - I‖), by which dA and dB are too large where the norm is missing"""
    return tuple(map(size, errors(A, B)))


orthogonality = Problem(
    "orthogonality",
    penalty,
    penalty_backward,
    draw_penalty,
    laws={"dA Aᵀ and Bᵀ dB are symmetric, because a rotation of the triplets changes no norm": is_symmetric},
    asks={"counted_twice": "The derivative of A Aᵀ has two terms: had you counted both before you multiplied by 2?"},
    shapes=PENALTY_SHAPES,
    others=lambda rng, shapes: [shapes[i] for i in rng.permutation(len(shapes))],
    formula="R = ‖A Aᵀ - I‖ + ‖Bᵀ B - I‖, Frobenius' norm, not squared; dy, as an argument, is dR",
    aliases=("adalora_penalty",),
    pairs=False,
)

orthogonality.multiplied("squared", dA=lambda A, B: 2 * of_norms(A, B)[0], dB=lambda A, B: 2 * of_norms(A, B)[1])(
    "{it} is the gradient of the squared norm, the AdaLoRA paper's penalty; forward has PEFT's, which takes the root",
    "Close to orthonormal rows, does the gradient of a norm become small, as that of its square does?",
)
orthogonality.multiplied("two_forgotten", dA=0.5, dB=0.5)(
    "{it} lacks the 2: A stands in A Aᵀ twice, and B in Bᵀ B", "In how many places does an entry of A stand in A Aᵀ?"
)
orthogonality.multiplied("norm_forgotten", dA=lambda A, B: of_norms(A, B)[0], dB=lambda A, B: of_norms(A, B)[1])(
    "{it} is not divided by ‖E‖, E = A Aᵀ - I or Bᵀ B - I: the derivative of a norm has length 1",
    "What is the derivative of the root of a sum of squares?",
)
orthogonality.computed(
    "no_identity",
    dA=lambda dR, A: 2 * dR * A @ A.T @ A / size(A @ A.T),
    dB=lambda dR, B: 2 * dR * B @ B.T @ B / size(B.T @ B),
)(
    "{it} lacks the identity I: it is the gradient of ‖A Aᵀ‖ or ‖Bᵀ B‖, which pulls the factor to zero",
    "Is your gradient zero where the rows are orthonormal?",
)
orthogonality.computed(
    "of_the_other_side",
    dA=lambda dR, A: 2 * dR * A @ (A.T @ A - np.eye(A.shape[1])) / size(A.T @ A - np.eye(A.shape[1])),
    dB=lambda dR, B: 2 * dR * (B @ B.T - np.eye(len(B))) @ B / size(B @ B.T - np.eye(len(B))),
)(
    "{it} is the gradient for Aᵀ A or B Bᵀ, the long sides: the triplets are the rows of A and the columns of B",
    "Of A (r, in), which can be orthonormal where r is small: the r rows, or the columns?",
)


# ---- the functions of ops/adalora.py ----


def draw_op(size, rng):
    batch, T, n_in, n_out, r = (size() for _ in range(5))
    shapes = {"x": (batch, T, n_in), "A": (r, n_in), "B": (n_out, r), "e": (r,)}
    return drawn(rng, (batch, T, n_out), {name: rng.standard_normal(shape) for name, shape in shapes.items()}, s=S)


def adalora_backward(dy, cache, x, A, B, e, s):
    dx, dh = ops.adalora_backward(dy, A, B, e, s)
    return dx, ops.lora_A_gradients(dh, cache.x), *ops.adalora_gradients(dy, cache.h, B, e, s)


def draw_penalty_op(size, rng):
    return drawn(rng, (), {"A": rng.standard_normal((size(), size()))})


OPS = {
    "low rank, AdaLoRA": Op(draw_op, ops.adalora_forward, adalora_backward),
    "orthogonality": Op(
        draw_penalty_op, ops.orthogonality_forward, lambda dR, E, A: (ops.orthogonality_gradients(dR, E, A),)
    ),
    "orthogonality, squared": Op(
        draw_penalty_op,
        ops.squared_orthogonality_forward,
        lambda dR, E, A: (ops.squared_orthogonality_gradients(dR, E, A),),
    ),
}
