"""The LoRA-XS layer, y = x Wᵀ + s ((x Aᵀ) Rᵀ) Bᵀ with W, A = V_rᵀ and B = U_r Σ_r frozen, W = U Σ Vᵀ and s = α/r. The
maths is in ops/lora_xs.py."""

import numpy as np

from ... import ops
from ..case import Case, relative_error
from ..op import Op, S, drawn, on
from ..problem import Factor, Problem
from .linear import outer_total, total
from .low_rank import SHAPES, other_shapes, scale_of


def draw(rng, shape):
    batch, tokens, width_in, width_out, r, alpha, _ = shape
    inputs = {"x": rng.standard_normal((batch, tokens, width_in)), "R": rng.standard_normal((r, r))}
    W = rng.standard_normal((width_out, width_in))
    U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
    sizes = {"alpha": alpha, "r": r, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    constants = {"W": W, "A": Vt[:r], "B": U[:, :r] * sigma[:r], "alpha": float(alpha), "r": r}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)


def forward(x, R, W, A, B, alpha, r):
    return x @ W.T + alpha / r * x @ A.T @ R.T @ B.T


def backward(dy, x, R, W, A, B, alpha, r):
    h = x @ A.T
    du = alpha / r * dy @ B
    return {"dx": dy @ W + du @ R @ A, "dR": outer_total(du, h)}


def terms(dy, x, R, W, A, B, alpha, r):
    return {"dx": {"the base path": dy @ W, "the low-rank path": alpha / r * dy @ B @ R @ A}}


def complete(x, R, A, B, W=None, alpha=None, r=None, s=None):
    """Without W it is 0."""
    return {"W": np.zeros((len(B), x.shape[-1])) if W is None else W, "A": A, "B": B, **scale_of(A, alpha, r, s)}


def dense_between(tensors, case):
    A, B, s = case.constants["A"], case.constants["B"], case.constants["alpha"] / case.constants["r"]
    return relative_error(tensors["dR"], s * B.T @ outer_total(case.dy, case.inputs["x"]) @ A.T)


def sigma(B):
    """The singular values Σ_r in B = U_r Σ_r: the lengths of its columns."""
    return np.linalg.norm(B, axis=0)


lora_xs = Problem(
    "lora_xs",
    forward,
    backward,
    draw,
    terms,
    laws={"dR = s Bᵀ G Aᵀ, because G = dyᵀ x reaches R only through the frozen A and B": dense_between},
    factors={"scale": Factor("the scale s = α/r", lambda alpha, r: alpha / r, ("dR",), ("the low-rank path",))},
    says={
        "no_base_path": "dx lacks the base path, through the frozen W",
        "no_low_rank_path": "dx lacks the low-rank path: A and B are frozen, but the gradient still passes through "
        "them",
    },
    asks={
        "no_base_path": "W gets no gradient: does that keep the gradient from passing through it to x?",
        "no_low_rank_path": "Does a frozen matrix stop the gradient, or only keep its own?",
        "no_scale_in_low_rank_path": "At α = 0 the adapter is switched off: is it switched off in your dx too?",
    },
    shapes=SHAPES,
    others=other_shapes,
    formula="y = x Wᵀ + s ((x Aᵀ) Rᵀ) Bᵀ, s = α/r; A = V_rᵀ and B = U_r Σ_r are frozen, W = U Σ Vᵀ",
    complete=complete,
    optional="also without W (y = s x Aᵀ Rᵀ Bᵀ), or r (that of A), and with s for alpha/r",
    rows=True,
    pairs=False,
)

lora_xs.called_with("not_divided_by_r", r=1)(
    "the scale is α, not divided by the rank r, in {it}", "Which two numbers make up the scale in forward?"
)
lora_xs.computed("transposed", dR=lambda dy, x, A, B, alpha, r: outer_total(x @ A.T, alpha / r * dy @ B))(
    "dR is transposed: its rows belong to B, the side of the outputs, and its columns to A",
    "Over which index of R does forward sum with B, the first or the second?",
)
lora_xs.called_with("R_transposed_in_x", only="dx", R=lambda R: R.T)(
    "the low-rank path of dx goes back through Rᵀ, not through R",
    "Forward multiplies by Rᵀ on the right: by what does backward?",
)
lora_xs.called_with("no_R_in_x", only="dx", R=lambda R: np.eye(len(R)))(
    "the low-rank path of dx skips R: it goes from B straight to A",
    "Through which three matrices does x reach y, apart from W?",
)
lora_xs.called_with("no_sigma", B=lambda B: B / sigma(B))(
    "the Σ of B = U_r Σ_r is left out, in {it}: there B is taken as the singular vectors U_r alone",
    "How long are the columns of the B in forward?",
)
lora_xs.called_with("sigma_twice", B=lambda B: B * sigma(B))(
    "Σ is applied twice, in {it}: B = U_r Σ_r contains it already", "Which of A and B holds the singular values?"
)
lora_xs.computed("u_for_h", dR=lambda dy, x, R, A, B, alpha, r: outer_total(alpha / r * dy @ B, x @ A.T @ R.T))(
    "dR is computed from u = h Rᵀ, the output of R, instead of its input h",
    "If R is zero, as at the start, is dR zero, so that nothing is ever trained?",
)
lora_xs.computed("dh_for_du", dR=lambda dy, x, R, A, B, alpha, r: outer_total(alpha / r * dy @ B @ R, x @ A.T))(
    "dR is computed from dh, the gradient of the input of R, instead of du, that of its output",
    "If R is zero, as at the start, is dR zero, so that nothing is ever trained?",
)
lora_xs.computed("x_for_h", dR=lambda dy, x, B, alpha, r: outer_total(alpha / r * dy @ B, x))(
    "dR is computed from the layer's input x: it needs only h = x Aᵀ, r entries a row, and x need not be kept",
    "What does R see in forward: x, or what A makes of it?",
)
lora_xs.computed("gradient_of_A", dR=lambda dy, x, R, B, alpha, r: outer_total(alpha / r * dy @ B @ R, x))(
    "the dR returned is the gradient of A, which is frozen: only R is trained",
    "Which of the three matrices does LoRA-XS train, and which shape has it?",
)
lora_xs.computed("gradient_of_B", dR=lambda dy, x, R, A, alpha, r: alpha / r * outer_total(dy, x @ A.T @ R.T))(
    "the dR returned is the gradient of B, which is frozen: only R is trained",
    "Which of the three matrices does LoRA-XS train, and which shape has it?",
)
lora_xs.computed(
    "product_of_sums", dR=lambda dy, x, A, B, alpha, r: alpha / r * np.outer(total(dy @ B), total(x @ A.T))
)(
    "dR is a product of two sums over the rows, but must be a sum of the products of each row",
    "Can the dy of one row meet the x of another row on its way to R?",
)
lora_xs.multiplied("as_if_A_or_B_were_zero", dR=0)(
    "dR is zero, as the gradient of LoRA's A is as long as B is zero: here neither A nor B is ever zero",
    "At the start R is zero: is dR, which does not contain R?",
)


# ---- the functions of ops/lora_xs.py ----


def draw_op(size, rng):
    batch, T, n_in, n_out, r = (size() for _ in range(5))
    A, B = rng.standard_normal((r, n_in)), rng.standard_normal((n_out, r))
    inputs = {"x": rng.standard_normal((batch, T, n_in)), "R": rng.standard_normal((r, r))}
    return drawn(rng, (batch, T, n_out), inputs, A=A, B=B, s=S)


def op_forward(x, R, A, B, s):
    return ops.lora_xs_forward(x, R, on(x, A), on(x, B), s)


def op_backward(dy, h, x, R, A, B, s):
    dx, du = ops.lora_xs_backward(dy, R, on(x, A), on(x, B), s)
    return dx, ops.lora_xs_gradients(du, h)


OPS = {"low rank, LoRA-XS": Op(draw_op, op_forward, op_backward)}
