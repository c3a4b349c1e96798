"""The linear layer. The maths is in ops/linear.py."""

import numpy as np

from ..case import Case, relative_error
from ..problem import Problem

# batch, tokens, in, out of each case: one is square
SHAPES = [(5, 3, 4, 6), (3, 4, 7, 5), (6, 2, 8, 3), (2, 6, 5, 9), (4, 3, 7, 7), (7, 5, 3, 2)]


def draw(rng, i):
    batch, tokens, width_in, width_out = SHAPES[i]
    x = rng.standard_normal((batch, tokens, width_in))
    inputs = {"x": x, "W": rng.standard_normal((width_out, width_in)), "b": rng.standard_normal(width_out)}
    sizes = {"batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, {}, sizes)


def rows(a):
    """How many there are."""
    return a.shape[0] * a.shape[1]


def total(a):
    """Σ_n a_n, over every row."""
    return a.sum(axis=(0, 1))


def outer_total(a, b):
    """Σ_n a_n b_nᵀ, over every row."""
    return np.tensordot(a, b, axes=((0, 1), (0, 1)))


def forward(x, W, b):
    return x @ W.T + b


def backward(dy, x, W, b):
    dx = dy @ W
    dW = outer_total(dy, x)
    db = total(dy)
    return {"dx": dx, "dW": dW, "db": db}


def exchange(tensors, case):
    x, W = case.inputs["x"], case.inputs["W"]
    return relative_error(outer_total(x, tensors["dx"]), tensors["dW"].T @ W)


linear = Problem(
    "linear",
    forward,
    backward,
    draw,
    laws={"xᵀ dx = dWᵀ W, because a change of basis of x that W undoes changes no output": exchange},
    formula="y = x Wᵀ + b",
    rows=True,
)
fault = linear.fault


@fault(
    "dW is the product of two sums over the rows, but must be the sum of the products of each row",
    "Can the dy of one row meet the x of another row on its way to W?",
)
def product_of_sums(dy, x, W, b):
    return {"dW": np.outer(total(dy), total(x))}


@fault(
    "{it} is computed from the output y instead of its gradient dy",
    "What travels backward through the layer: a value or a sensitivity of the loss?",
)
def y_for_dy(dy, x, W, b):
    return backward(forward(x, W, b), x, W, b)


@fault(
    "dx takes the bias b off dy before it goes back through W, but b has no part in dx",
    "If b were larger, would y react more strongly to x?",
)
def bias_in_dx(dy, x, W, b):
    return {"dx": (dy - b) @ W}


@fault(
    "dx goes back through the (pseudo-)inverse of W, not through W itself",
    "Does backward look for the x that gives a y, or for how much each x weighs in the loss?",
)
def inverse_of_weight(dy, x, W, b):
    return {"dx": dy @ np.linalg.pinv(W).T}


@fault(
    "dx is a mean over the outputs, but must be a sum",
    "One x feeds every output of its row: how do the effects of several paths on the loss combine?",
)
def averaged_over_outputs(dy, x, W, b):
    return {"dx": dy @ W / len(W)}


@fault(
    "dx adds up all the rows and is the same for each, where every row has a dx of its own",
    "Which is shared by the rows and which is not: W or x?",
)
def rows_mixed(dy, x, W, b):
    return {"dx": total(dy) @ W + 0 * x}


@fault("db is zero, as though b were no parameter", "If b grows a little, does y stay as it is?")
def bias_taken_as_constant(dy, x, W, b):
    return {"db": 0 * b}
