"""The linear layer. The maths is in ops/linear.py."""

import numpy as np

from ..case import Case, relative_error
from ..problem import Problem

# batch, tokens, in, out of each case: one is square
SHAPES = [(5, 3, 4, 6), (3, 4, 7, 5), (6, 2, 8, 3), (2, 6, 5, 9), (4, 3, 7, 7), (7, 5, 3, 2)]


def draw(rng, shape):
    batch, tokens, width_in, width_out = shape
    x = rng.standard_normal((batch, tokens, width_in))
    inputs = {"x": x, "W": rng.standard_normal((width_out, width_in)), "b": rng.standard_normal(width_out)}
    sizes = {"batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, {}, sizes)


def rows(a):
    """The number of rows."""
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


def linear_in(name, forward):
    """The law of an input p that y is linear in: p ∘ dp is dy ∘ y, summed over the rows."""

    def law(tensors, case):
        y = forward(**case.inputs, **case.constants)
        return relative_error(case.inputs[name] * tensors[f"d{name}"], total(case.dy * y))

    return law


def exchange(tensors, case):
    x, W = case.inputs["x"], case.inputs["W"]
    return relative_error(outer_total(x, tensors["dx"]), tensors["dW"].T @ W)


linear = Problem(
    "linear",
    forward,
    backward,
    draw,
    laws={"xᵀ dx = dWᵀ W, because a change of basis of x that W undoes changes no output": exchange},
    shapes=SHAPES,
    formula="y = x Wᵀ + b",
    rows=True,
)

linear.computed("product_of_sums", dW=lambda dy, x: np.outer(total(dy), total(x)))(
    "dW is the product of two sums over the rows, but must be the sum of the products of each row",
    "Can the dy of one row meet the x of another row on its way to W?",
)
linear.called_with("y_for_dy", dy=forward)(
    "{it} is computed from the output y instead of its gradient dy",
    "What travels backward through the layer: a value or a sensitivity of the loss?",
)
linear.called_with("bias_in_dx", only="dx", dy=lambda dy, b: dy - b)(
    "dx subtracts the bias b from dy before it goes back through W, but b has no part in dx",
    "If b were larger, would y react more strongly to x?",
)
linear.called_with("inverse_of_weight", only="dx", W=lambda W: np.linalg.pinv(W).T)(
    "dx goes back through the (pseudo-)inverse of W, not through W itself",
    "Does backward look for the x that gives a y, or for how much each x changes the loss?",
)
linear.multiplied("averaged_over_outputs", dx=lambda W: 1 / len(W))(
    "dx is a mean over the outputs, but must be a sum",
    "One x feeds every output of its row: how do the effects of several paths on the loss combine?",
)
linear.called_with("rows_mixed", only="dx", dy=lambda dy: 0 * dy + total(dy))(
    "dx adds up all the rows and is the same for each, but every row has a dx of its own",
    "Which is shared by the rows and which is not: W or x?",
)
linear.multiplied("bias_taken_as_constant", db=0)(
    "db is zero, as though b were no parameter", "If b grows a little, does y stay as it is?"
)
