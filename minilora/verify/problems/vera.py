"""The VeRA layer, y = x Wᵀ + b ∘ ((d ∘ (x Aᵀ)) Bᵀ) with W, A and B frozen. The maths is in ops/vera.py."""

import numpy as np

from ... import ops
from ..case import Case, relative_error
from ..op import Op, drawn, on
from ..problem import Problem
from .linear import total
from .low_rank import SHAPES, other_shapes


def draw(rng, shape):
    batch, tokens, width_in, width_out, r, *_ = shape
    inputs = {
        "x": rng.standard_normal((batch, tokens, width_in)),
        "d": rng.standard_normal(r),
        "b": rng.standard_normal(width_out),
    }
    shapes = {"W": (width_out, width_in), "A": (r, width_in), "B": (width_out, r)}
    constants = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    sizes = {"r": r, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)


def forward(x, d, b, W, A, B):
    return x @ W.T + b * (d * (x @ A.T) @ B.T)


def backward(dy, x, d, b, W, A, B):
    h = x @ A.T
    dq = b * dy @ B
    return {"dx": dy @ W + d * dq @ A, "dd": total(dq * h), "db": total(dy * (d * h @ B.T))}


def terms(dy, x, d, b, W, A, B):
    return {"dx": {"the base path": dy @ W, "the low-rank path": d * (b * dy @ B) @ A}}


def same_share(tensors, case):
    d, b = case.inputs["d"], case.inputs["b"]
    return relative_error(np.sum(b * tensors["db"]), np.sum(d * tensors["dd"]))


vera = Problem(
    "vera",
    forward,
    backward,
    draw,
    terms,
    laws={"⟨b, db⟩ = ⟨d, dd⟩, because a factor moved from d to b changes no output": same_share},
    says={
        "no_base_path": "dx lacks the base path, through the frozen W",
        "no_low_rank_path": "dx lacks the low-rank path: A and B are frozen, but the gradient still passes through "
        "them",
    },
    asks={
        "no_base_path": "W gets no gradient: does that keep the gradient from passing through it to x?",
        "no_low_rank_path": "Does a frozen matrix stop the gradient, or only keep its own?",
    },
    shapes=SHAPES,
    others=other_shapes,
    formula="y = x Wᵀ + b ∘ ((d ∘ (x Aᵀ)) Bᵀ)",
    rows=True,
    pairs=False,
)
fault = vera.fault


@fault(
    "the two vectors are exchanged: dd has the factor d instead of b, and db the factor b instead of d",
    "Which of the two vectors stands between h and y on the way back to d?",
    whole=True,
)
def vectors_exchanged(dy, x, d, b, W, A, B):
    h = x @ A.T
    return {"dd": total(d * (dy @ B) * h), "db": total(b * dy * (h @ B.T))}


vera.called_with("no_b_in_d", only="dd", b=1)(
    "dd lacks b: dy reaches d through b and B", "If b is zero, does d change y?"
)
vera.called_with("no_d_in_b", only="db", d=1)(
    "db lacks d: b multiplies (d ∘ h) Bᵀ, not h Bᵀ", "What exactly does b multiply in forward?"
)
vera.called_with("no_b_in_x", only="dx", b=1)(
    "the low-rank path of dx lacks b",
    "At the start b is zero, and the adapter is switched off: is it switched off in your dx too?",
)
vera.called_with("no_d_in_x", only="dx", d=1)(
    "the low-rank path of dx lacks d", "Through which four factors does x reach y, apart from W?"
)
vera.multiplied("d_in_its_own_gradient", dd=lambda d: d)(
    "dd holds the factor d: y is linear in d, so its derivative does not contain d", "If d is zero, is dd zero?"
)
vera.multiplied("b_in_its_own_gradient", db=lambda b: b)(
    "db holds the factor b: y is linear in b, so its derivative does not contain b",
    "If b is zero, as at the start, is db zero, so that nothing is ever trained?",
)
vera.called_with("scale_of_lora", A=lambda A: A / len(A))(
    "{it} is divided by the rank r, as by LoRA's scale: VeRA has no scale, d and b take its place",
    "Does forward have any factor other than b, d, A and B?",
)
vera.multiplied("as_if_b_were_zero", dd=0)(
    "dd is zero, which is so only as long as b is zero",
    "At the start of training dd is indeed zero: which vector makes it so, and what happens to that vector?",
)


# ---- the functions of ops/vera.py ----


def draw_op(size, rng):
    batch, T, n_in, n_out, r = (size() for _ in range(5))
    x, d, b = rng.standard_normal((batch, T, n_in)), rng.standard_normal(r), rng.standard_normal(n_out)
    A, B = rng.standard_normal((r, n_in)), rng.standard_normal((n_out, r))
    return drawn(rng, (batch, T, n_out), {"x": x, "d": d, "b": b}, A=A, B=B)


def vera_backward(dy, h, x, d, b, A, B):
    return ops.vera_backward(dy, on(x, A), on(x, B), d, b), *ops.vera_gradients(dy, h, on(x, B), d, b)


OPS = {
    "low rank, VeRA": Op(draw_op, lambda x, d, b, A, B: ops.vera_forward(x, on(x, A), on(x, B), d, b), vera_backward)
}
