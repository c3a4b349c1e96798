"""The LoKr layer, y = x (W + s w₁ ⊗ w₂)ᵀ with W frozen and s = α/r. The maths is in ops/lokr.py.

Each row of x is a matrix X (i₁, i₂), each of y a matrix Y (o₁, o₂), row by row:

    Y = s w₁ X w₂ᵀ      dX = s w₁ᵀ dY w₂        dw₁ = s Σ dY w₂ Xᵀ      dw₂ = s Σ dYᵀ w₁ X
"""

import numpy as np

from ... import ops
from ..case import Case, relative_error
from ..op import Op, S, drawn
from ..problem import Factor, Problem, other_rows

# batch, tokens, i₁, i₂, o₁, o₂, alpha, r of each case: one is square
SHAPES = [
    (5, 3, 2, 3, 4, 5, 7, 2),
    (4, 6, 3, 5, 2, 4, 16, 3),
    (3, 2, 4, 2, 3, 6, 14, 8),
    (2, 4, 5, 4, 3, 2, 3, 5),
    (7, 2, 3, 3, 3, 3, 11, 6),
    (6, 5, 2, 6, 5, 3, 4, 7),
]


def other_shapes(rng, shapes):
    """As other_rows, and other α: none is an integer, so that none equals r."""
    alphas = rng.permutation(16)[:6] + 3.5
    return [(*shape[:6], alpha, shape[7]) for shape, alpha in zip(other_rows(rng, shapes), alphas, strict=True)]


def draw(rng, shape):
    batch, tokens, i1, i2, o1, o2, alpha, r = shape
    x = rng.standard_normal((batch, tokens, i1 * i2))
    inputs = {"x": x, "w1": rng.standard_normal((o1, i1)), "w2": rng.standard_normal((o2, i2))}
    constants = {"W": rng.standard_normal((o1 * o2, i1 * i2)), "alpha": float(alpha), "r": r}
    sizes = {"alpha": alpha, "r": r, "batch": batch, "tokens": tokens, "in": i1 * i2, "out": o1 * o2}
    sizes |= {"i1": i1, "i2": i2, "o1": o1, "o2": o2}
    return Case(rng.standard_normal((batch, tokens, o1 * o2)), inputs, constants, sizes)


def matrices(x, rows):
    """(batch, tokens, rows · columns) -> (batch, tokens, rows, columns)"""
    return x.reshape(*x.shape[:2], rows, x.shape[-1] // rows)


def by_columns(x, rows):
    """As matrices(), where a row of x holds its matrix column by column."""
    return matrices(x, x.shape[-1] // rows).swapaxes(2, 3)


def forward(x, w1, w2, W, alpha, r):
    return x @ (W + alpha / r * np.kron(w1, w2)).T


def through(dY, X, w1, w2, s):
    """dw₁ and dw₂"""
    return {"dw1": s * np.einsum("btpu,uv,btqv->pq", dY, w2, X), "dw2": s * np.einsum("btpu,pq,btqv->uv", dY, w1, X)}


def backward(dy, x, w1, w2, W, alpha, r):
    dY, X = matrices(dy, w1.shape[0]), matrices(x, w1.shape[1])
    dX = alpha / r * w1.T @ dY @ w2
    return {"dx": dy @ W + dX.reshape(x.shape), **through(dY, X, w1, w2, alpha / r)}


def terms(dy, x, w1, w2, W, alpha, r):
    return {"dx": {"the base path": dy @ W, "the adapter path": alpha / r * dy @ np.kron(w1, w2)}}


def complete(x, w1, w2, W=None, alpha=None, r=None, s=None):
    W = np.zeros((len(w1) * len(w2), x.shape[-1])) if W is None else W
    r = 1 if r is None else r
    return {"W": W, "alpha": r * (1 if s is None else s) if alpha is None else alpha, "r": r}


def same_share(tensors, case):
    one, two = (np.sum(case.inputs[name] * tensors[f"d{name}"]) for name in ("w1", "w2"))
    return relative_error(one, two)


lokr = Problem(
    "lokr",
    forward,
    backward,
    draw,
    terms,
    laws={"⟨w₁, dw₁⟩ = ⟨w₂, dw₂⟩, because a factor moved from w₁ to w₂ changes no output": same_share},
    factors={"scale": Factor("the scale s = α/r", lambda alpha, r: alpha / r, ("dw1", "dw2"), ("the adapter path",))},
    asks={"scale_twice": "Does s multiply each of the two matrices, or their product once?"},
    shapes=SHAPES,
    others=other_shapes,
    formula="y = x (W + s w₁ ⊗ w₂)ᵀ, s = α/r; block (p, q) of w₁ ⊗ w₂ is w₁_pq w₂",
    complete=complete,
    optional="also without W (y = s x (w₁ ⊗ w₂)ᵀ), and with s for alpha/r",
    rows=True,
)
fault = lokr.fault


@fault(
    "{it} is the gradient for w₂ ⊗ w₁: the blocks of ΔW are w₁_pq w₂, so w₁ weights the blocks, and w₂ is the block",
    "Of which of the two is there a copy in every block of ΔW?",
    whole=True,
)
def factors_exchanged(dy, x, w1, w2, W, alpha, r):
    g = backward(dy, x, w2, w1, W, alpha, r)
    return {"dx": g["dx"], "dw1": g["dw2"], "dw2": g["dw1"]}


@fault(
    "{it} reads the rows of x column by column, and those of dy row by row: X is (i₁, i₂), and i₂ runs fastest",
    "Which entry of a row of x comes next after X_00: X_01 or X_10?",
)
def x_by_columns(dy, x, w1, w2, W, alpha, r):
    return through(matrices(dy, w1.shape[0]), by_columns(x, w1.shape[1]), w1, w2, alpha / r)


@fault(
    "{it} reads the rows of dy column by column: Y is (o₁, o₂), and o₂ runs fastest",
    "Which entry of a row of y comes next after Y_00: Y_01 or Y_10?",
)
def dy_by_columns(dy, x, w1, w2, W, alpha, r):
    dY, X = by_columns(dy, w1.shape[0]), matrices(x, w1.shape[1])
    dX = alpha / r * w1.T @ dY @ w2
    return {"dx": dy @ W + dX.reshape(x.shape), **through(dY, X, w1, w2, alpha / r)}


@fault(
    "the adapter path in dx is written column by column: dX is (i₁, i₂), and i₂ runs fastest",
    "In which order does forward read x into X, and in which do you write dX into dx?",
)
def dx_by_columns(dy, x, w1, w2, W, alpha, r):
    dX = alpha / r * w1.T @ matrices(dy, w1.shape[0]) @ w2
    return {"dx": dy @ W + dX.swapaxes(2, 3).reshape(x.shape)}


lokr.called_with("blocks_not_weighted_by_w1", only="dw2", w1=lambda w1: np.ones_like(w1))(
    "dw₂ adds up the blocks of the gradient unweighted: each must be multiplied by its w₁_pq",
    "If w₁_pq is zero, does w₂ reach the outputs of that block from its inputs?",
)
lokr.called_with("blocks_summed_without_w2", only="dw1", w2=lambda w2: np.ones_like(w2))(
    "dw₁ adds up the entries of each block of the gradient unweighted: each must be multiplied by its entry of w₂",
    "What does w₁_pq multiply in its block?",
)
lokr.multiplied("mean_over_a_block", dw1=lambda w2: 1 / w2.size)(
    "dw₁ is a mean over the entries of a block, but must be a sum",
    "All entries of a block have the same w₁_pq: do their contributions add up or average?",
)
lokr.multiplied("mean_over_the_blocks", dw2=lambda w1: 1 / w1.size)(
    "dw₂ is a mean over the blocks, but must be a sum",
    "All blocks have the same w₂: do their contributions add up or average?",
)
lokr.called_with("not_divided_by_r", r=1)(
    "the scale is α, not divided by the rank r, in {it}", "Which two numbers make up the scale in forward?"
)
lokr.multiplied("as_if_w1_were_zero", dw2=0)(
    "dw₂ is zero, which is so only as long as w₁ is zero",
    "At the start of training dw₂ is indeed zero: which matrix makes it so, and what happens to that matrix?",
)


# ---- the functions of ops/lokr.py ----


def draw_op(size, rng):
    batch, T, i1, o1, i2, o2 = (size() for _ in range(6))
    inputs = {"x": rng.standard_normal((batch, T, i1 * i2)), "w1": rng.standard_normal((o1, i1))}
    return drawn(rng, (batch, T, o1 * o2), inputs | {"w2": rng.standard_normal((o2, i2))}, s=S)


def lokr_backward(dy, x, _, w1, w2, s):
    dx, dZ = ops.lokr_backward(dy, w1, w2, s)
    return dx, ops.lokr_w1_gradients(dy, x, w2, s), ops.lokr_w2_gradients(dZ, x)


def draw_low_rank(size, rng):
    case = draw_op(size, rng)
    (o2, i2), r = case.inputs.pop("w2").shape, size()
    case.inputs.update(a=rng.standard_normal((o2, r)), b=rng.standard_normal((r, i2)))
    return case


def low_rank_forward(x, w1, a, b, s):
    return ops.lokr_forward(x, w1, a @ b, s)


def low_rank_backward(dy, x, _, w1, a, b, s):
    dx, dw1, dw2 = lokr_backward(dy, x, _, w1, a @ b, s)
    return dx, dw1, *ops.lokr_low_rank_gradients(dw2, a, b)


OPS = {
    "Kronecker": Op(draw_op, ops.lokr_forward, lokr_backward),
    "Kronecker, low rank": Op(draw_low_rank, low_rank_forward, low_rank_backward),
}
