"""A residual block, y = x + tanh(x Uᵀ) Vᵀ.

    a = x Uᵀ        h = tanh a        y = x + h Vᵀ        x, y (..., width)   U (hidden, width)   V (width, hidden)

Two paths lead from x to y, and the gradients that come back along them add up:

    da = (dy V) ∘ (1 - h²)        dx = dy + da U        dU = daᵀ x        dV = dyᵀ h

Source: He et al. (2016), "Deep residual learning for image recognition".
"""

import numpy as np

from ..case import Case, relative_error
from ..problem import Problem
from .linear import outer_total

# batch, tokens, width, hidden of each case: one is square
SHAPES = [(5, 3, 4, 7), (3, 4, 6, 5), (6, 2, 5, 8), (2, 5, 8, 3), (4, 3, 6, 6), (7, 4, 3, 9)]


def draw(rng, shape):
    batch, tokens, width, hidden = shape
    dy, x = rng.standard_normal((2, batch, tokens, width))
    U = rng.standard_normal((hidden, width)) / np.sqrt(width)
    sizes = {"batch": batch, "tokens": tokens, "width": width, "hidden": hidden}
    return Case(dy, {"x": x, "U": U, "V": rng.standard_normal((width, hidden))}, {}, sizes)


def forward(x, U, V):
    return x + np.tanh(x @ U.T) @ V.T


def branch(dy, x, U, V):
    """da and h"""
    h = np.tanh(x @ U.T)
    return dy @ V * (1 - h * h), h


def backward(dy, x, U, V):
    h = np.tanh(x @ U.T)
    da = dy @ V * (1 - h * h)
    dx = dy + da @ U
    dU = outer_total(da, x)
    dV = outer_total(dy, h)
    return {"dx": dx, "dU": dU, "dV": dV}


def terms(dy, x, U, V):
    da, _ = branch(dy, x, U, V)
    return {"dx": {"the skip path": dy, "the branch": da @ U}}


def exchange(tensors, case):
    x, U = case.inputs["x"], case.inputs["U"]
    return relative_error(outer_total(x, tensors["dx"] - case.dy), tensors["dU"].T @ U)


def growth(tensors, case):
    x, U, V = case.inputs.values()
    return relative_error(np.sum(tensors["dV"] * V), np.sum(case.dy * (forward(x, U, V) - x)))


residual = Problem(
    "residual",
    forward,
    backward,
    draw,
    terms,
    laws={
        "xᵀ (dx - dy) = dUᵀ U, because the branch sees x through U alone": exchange,
        "Σ dV ∘ V = Σ dy ∘ (y - x), because the branch is linear in V": growth,
    },
    says={
        "no_skip_path": "dx lacks the skip path: what reaches x around the branch is missing",
        "no_branch": "dx lacks the branch: only the skip path has come back",
        "branch_with_wrong_sign": "dx subtracts the branch from the skip path, but both are added",
    },
    asks={
        "no_skip_path": "If the branch gave 0 for every x, what would y be, and what then dx?",
        "no_branch": "By how many paths does x reach y?",
        "skip_path_twice": "Where in your backward is dy added to dx, and is it there only once?",
        "branch_twice": "Into which array does the branch write its gradient, and who adds that array to dx?",
        "branch_with_wrong_sign": "With which sign does the branch enter y?",
    },
    shapes=SHAPES,
    formula="y = x + tanh(x Uᵀ) Vᵀ",
    rows=True,
)
fault = residual.fault


def with_slope(name, slope):
    """Add a fault in which the derivative of tanh is another function of a and h."""

    def wrong(dy, x, U, V):
        a = x @ U.T
        da = dy @ V * slope(a, np.tanh(a))
        return {"dx": dy + da @ U, "dU": outer_total(da, x)}

    return residual.add(name, wrong)


residual.computed("x_on_skip_path", dx=lambda dy, x, U, V: x + branch(dy, x, U, V)[0] @ U)(
    "dx adds x itself on the skip path, not the gradient dy",
    "What travels back along the skip path: a value, or the gradient of one?",
)
residual.computed("paths_multiplied", dx=lambda dy, x, U, V: dy * (branch(dy, x, U, V)[0] @ U))(
    "dx multiplies the gradients of the two paths, but must add them",
    "The chain rule multiplies along one path: what does it do with paths that lie side by side?",
)
residual.called_with("gradient_shared_out", dy=lambda dy: dy / 2)(
    "{it} has only half of dy: it was shared out between the two paths",
    "If one addend of a sum grows by a little, does the sum grow by as much or by half?",
)
with_slope("no_tanh_derivative", lambda a, h: 1)(
    "the gradient of the branch, in {it}, lacks the derivative of tanh",
    "Where tanh is saturated, how much of the gradient can still come through?",
)
with_slope("tanh_derivative_of_a", lambda a, h: 1 - a * a)(
    "the derivative of tanh, in {it}, is made of a = x Uᵀ instead of h = tanh a",
    "Can the derivative of tanh be negative?",
)
with_slope("tanh_applied_twice", lambda a, h: 1 - np.tanh(h) ** 2)(
    "the derivative of tanh, in {it}, is taken at h instead of a: tanh is applied once too often",
    "At which point does forward pass through tanh, and which of the two did you keep?",
)
with_slope("h_not_squared", lambda a, h: 1 - h)(
    "the derivative of tanh, in {it}, has h instead of h²",
    "tanh is odd: is its derivative the same at a and at -a, and is yours?",
)
with_slope("sigmoid_derivative", lambda a, h: h * (1 - h))(
    "the derivative of tanh, in {it}, is that of the sigmoid",
    "How steep is tanh at 0, and how steep is the function that you differentiated?",
)
residual.computed("weight_from_a", dV=lambda dy, x, U: outer_total(dy, x @ U.T))(
    "dV is summed with a, from before tanh, instead of h", "What does V multiply in the forward?"
)
residual.called_with("dx_for_dy", only="dU dV", dy=lambda dy, x, U, V: backward(dy, x, U, V)["dx"])(
    "{it} is computed from dx instead of dy: the paths were added up before the branch was done",
    "The branch ends at y: whose gradient enters it there? Does your dy still hold that?",
)
residual.computed("y_for_x", dU=lambda dy, x, U, V: outer_total(branch(dy, x, U, V)[0], forward(x, U, V)))(
    "dU is summed with y instead of x, as if x had been overwritten by the sum",
    "Is the x that you kept for backward still the one that U has seen?",
)
