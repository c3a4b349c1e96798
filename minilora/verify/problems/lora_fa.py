"""The LoRA-FA layer, y = x Wᵀ + s (x Aᵀ) Bᵀ with W and A frozen and s = α/r. The maths is in ops/lora.py."""

import numpy as np

from ..case import Case, relative_error
from ..problem import Factor, Problem
from .linear import outer_total, total
from .low_rank import SHAPES, other_shapes, scale_of


def draw(rng, shape):
    batch, tokens, width_in, width_out, r, alpha, _ = shape
    inputs = {"x": rng.standard_normal((batch, tokens, width_in)), "B": rng.standard_normal((width_out, r))}
    W, A = rng.standard_normal((width_out, width_in)), rng.standard_normal((r, width_in))
    sizes = {"alpha": alpha, "r": r, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    constants = {"W": W, "A": A, "alpha": float(alpha), "r": r}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)


def forward(x, B, W, A, alpha, r):
    return x @ W.T + alpha / r * x @ A.T @ B.T


def backward(dy, x, B, W, A, alpha, r):
    s = alpha / r
    h = x @ A.T
    return {"dx": dy @ W + s * dy @ B @ A, "dB": s * outer_total(dy, h)}


def terms(dy, x, B, W, A, alpha, r):
    return {"dx": {"the base path": dy @ W, "the low-rank path": alpha / r * dy @ B @ A}}


def complete(x, B, A, W=None, alpha=None, r=None, s=None):
    """Without W it is 0."""
    return {"W": np.zeros((len(B), x.shape[-1])) if W is None else W, "A": A, **scale_of(A, alpha, r, s)}


def dense_through_A(tensors, case):
    s, A = case.constants["alpha"] / case.constants["r"], case.constants["A"]
    return relative_error(tensors["dB"], s * outer_total(case.dy, case.inputs["x"]) @ A.T)


lora_fa = Problem(
    "lora_fa",
    forward,
    backward,
    draw,
    terms,
    laws={"dB = s G Aᵀ, because G = dyᵀ x reaches B only through the frozen A": dense_through_A},
    factors={"scale": Factor("the scale s = α/r", lambda alpha, r: alpha / r, ("dB",), ("the low-rank path",))},
    says={
        "no_base_path": "dx lacks the base path, through the frozen W",
        "no_low_rank_path": "dx lacks the low-rank path: A is frozen, but the gradient still passes through it",
    },
    asks={
        "no_base_path": "W gets no gradient: does that keep the gradient from passing through it to x?",
        "no_low_rank_path": "Does a frozen matrix stop the gradient, or only keep its own?",
        "no_scale_in_low_rank_path": "At α = 0 the adapter is switched off: is it switched off in your dx too?",
    },
    shapes=SHAPES,
    others=other_shapes,
    formula="y = x Wᵀ + s (x Aᵀ) Bᵀ, s = α/r, and A is frozen",
    complete=complete,
    optional="also without W (y = s x Aᵀ Bᵀ), or r (that of A), and with s for alpha/r",
    rows=True,
)

lora_fa.called_with("not_divided_by_r", r=1)(
    "the scale is α, not divided by the rank r, in {it}", "Which two numbers make up the scale in forward?"
)
lora_fa.computed("gradient_of_A", dB=lambda dy, x, B, alpha, r: outer_total(alpha / r * dy @ B, x))(
    "the dB returned is the gradient of A, which is frozen: only B is trained",
    "Which of the two matrices does LoRA-FA train, and which shape has it?",
)
lora_fa.computed("x_for_h", dB=lambda dy, x, alpha, r: alpha / r * outer_total(dy, x))(
    "dB is computed from the layer's input x: it needs only h = x Aᵀ, r entries a row, and x need not be kept",
    "What does B see in forward: x, or what A makes of it?",
)
lora_fa.computed("dh_for_h", dB=lambda dy, B, alpha, r: alpha / r * outer_total(dy, dy @ B))(
    "dB is computed from dh, the gradient of the input of B, instead of that input h",
    "If dy is doubled, by what does dB grow, and by what does yours?",
)
lora_fa.computed("product_of_sums", dB=lambda dy, x, A, alpha, r: alpha / r * np.outer(total(dy), total(x @ A.T)))(
    "dB is a product of two sums over the rows, but must be a sum of the products of each row",
    "Can the dy of one row meet the x of another row on its way to B?",
)
lora_fa.computed(
    "preconditioned",
    dB=lambda dy, x, A, alpha, r: outer_total(dy, x @ A.T) @ np.linalg.inv(A @ A.T) * (r / alpha),
)(
    "dB is the preconditioned dB (A Aᵀ)⁻¹/s² with which LoRA-FA's optimizer steps, not the gradient",
    "Is it the gradient that you want, or the step that is nearest to full fine-tuning?",
)
