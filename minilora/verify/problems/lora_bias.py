"""The LoRA layer with a bias of its own, y = x Wᵀ + b + s ((x Aᵀ) Bᵀ + c) with W and b frozen. The maths is in
ops/lora_bias.py."""

import numpy as np

from ... import ops
from ..case import Case
from ..op import Op, S, drawn
from ..problem import Factor, Problem
from .linear import outer_total, total
from .low_rank import SHAPES, exchange, other_shapes, scale_of


def draw(rng, shape):
    batch, tokens, width_in, width_out, r, alpha, *_ = shape
    inputs = {
        "x": rng.standard_normal((batch, tokens, width_in)),
        "A": rng.standard_normal((r, width_in)),
        "B": rng.standard_normal((width_out, r)),
        "c": rng.standard_normal(width_out),
    }
    W, b = rng.standard_normal((width_out, width_in)), rng.standard_normal(width_out)
    constants = {"W": W, "b": b, "alpha": float(alpha), "r": r}
    sizes = {"alpha": alpha, "r": r, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)


def forward(x, A, B, c, W, b, alpha, r):
    return x @ W.T + b + alpha / r * (x @ A.T @ B.T + c)


def backward(dy, x, A, B, c, W, b, alpha, r):
    s, h = alpha / r, x @ A.T
    dh = s * dy @ B
    return {"dx": dy @ W + dh @ A, "dA": outer_total(dh, x), "dB": s * outer_total(dy, h), "dc": s * total(dy)}


def terms(dy, x, A, B, c, W, b, alpha, r):
    return {"dx": {"the base path": dy @ W, "the low-rank path": alpha / r * dy @ B @ A}}


def complete(x, A, B, c, W=None, b=None, alpha=None, r=None, s=None):
    W = np.zeros((len(B), x.shape[-1])) if W is None else W
    return {"W": W, "b": np.zeros(len(B)) if b is None else b, **scale_of(A, alpha, r, s)}


lora_bias = Problem(
    "lora_bias",
    forward,
    backward,
    draw,
    terms,
    laws={"Bᵀ dB = dA Aᵀ, because an invertible factor moved from B to A changes no output": exchange},
    factors={"scale": Factor("the scale s = α/r", lambda alpha, r: alpha / r, ("dA", "dB"), ("the low-rank path",))},
    says={
        "no_base_path": "dx lacks the base path, through the frozen W",
        "no_low_rank_path": "dx lacks the low-rank path, through B and A",
    },
    asks={
        "no_base_path": "W gets no gradient: does that keep the gradient from passing through it to x?",
        "no_low_rank_path": "By how many paths does x reach y?",
    },
    shapes=SHAPES,
    others=other_shapes,
    formula="y = x Wᵀ + b + s (x Aᵀ Bᵀ + c), s = α/r",
    complete=complete,
    optional="also without W and b (y = s (x Aᵀ Bᵀ + c)) or r (that of A), and with s for alpha/r",
    rows=True,
    simpler={"with the scale α/r = 1": {"alpha": lambda r: float(r)}},
)

lora_bias.computed("scale_missing_in_c", dc=lambda dy: total(dy))(
    "dc lacks the scale s: c is inside the bracket that s multiplies, not a bias added outside it",
    "At α = 0 the adapter is switched off: does c still move y?",
)
lora_bias.computed("scale_twice_in_c", dc=lambda dy, alpha, r: (alpha / r) ** 2 * total(dy))(
    "dc holds the scale s twice", "Was the dy that you summed already multiplied by s?"
)
lora_bias.called_with("not_divided_by_r", r=1)(
    "the scale is α, not divided by the rank r, in {it}", "Which two numbers make up the scale in forward?"
)
lora_bias.multiplied("c_in_its_own_gradient", dc=lambda c: c)(
    "dc holds the factor c: y is linear in c, so its derivative does not contain c",
    "If c is zero, as at the start, is dc zero, so that c is never trained?",
)
lora_bias.computed("through_B", dc=lambda dy, B, alpha, r: alpha / r * total(dy @ B @ B.T))(
    "dc goes through B: c is added after B, to the output, and not to h",
    "How many entries has c: as many as h, or as y?",
)


# ---- the functions of ops/lora_bias.py ----


def draw_op(size, rng):
    batch, T, n_in, n_out, r = (size() for _ in range(5))
    inputs = {
        "x": rng.standard_normal((batch, T, n_in)),
        "A": rng.standard_normal((r, n_in)),
        "B": rng.standard_normal((n_out, r)),
        "c": rng.standard_normal(n_out),
    }
    return drawn(rng, (batch, T, n_out), inputs, s=S)


def op_backward(dy, cache, x, A, B, c, s):
    dx, dh = ops.lora_backward(dy, A, B, s)
    dB = ops.lora_B_gradients(dy, cache.h, s)
    return dx, ops.lora_A_gradients(dh, cache.x), dB, ops.lora_bias_gradients(dy, s)


OPS = {"low rank, with a bias": Op(draw_op, ops.lora_bias_forward, op_backward)}
