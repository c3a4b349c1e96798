"""Mean squared error. The maths is in ops/mean_squared_error.py."""

import numpy as np

from ..case import Case, relative_error
from ..problem import Factor, Problem

# batch, tokens, width of each case
SHAPES = [(3, 5, 4), (4, 2, 7), (2, 6, 5), (6, 3, 8), (7, 4, 3), (5, 7, 6)]


def draw(rng, shape):
    dL = np.array(rng.uniform(1.2, 1.8))  # neither 1 nor 2
    target = 1 + rng.standard_normal(shape)
    sizes = dict(zip(["batch", "tokens", "width"], shape, strict=True))
    return Case(dL, {"y": rng.standard_normal(shape)}, {"target": target}, sizes)


def forward(y, target):
    residual = y - target
    return (residual * residual).mean()


def backward(dL, y, target):
    return {"dy": dL * 2 * (y - target) / y.size}


def terms(dL, y, target):
    return {"dy": {"the term of y": dL * 2 * y / y.size, "the term of the target": -dL * 2 * target / y.size}}


def along_residual(tensors, case):
    y, target = case.inputs["y"], case.constants["target"]
    return relative_error((tensors["dy"] * (y - target)).sum(), 2 * case.dy * forward(y, target))


mean_squared_error = Problem(
    "mean_squared_error",
    forward,
    backward,
    draw,
    terms,
    laws={"dy · (y - t) is 2 dL L, because scaling the residual by c scales L by c²": along_residual},
    factors={"mean": Factor("the factor 1/n", lambda y: 1 / y.size, ("dy",))},
    says={
        "no_mean": "dy is not divided by n: it is the gradient of a sum, but the loss is a mean",
        "sign_flipped": "dy has the wrong sign: the residual is taken as target minus y",
        "no_term_of_the_target": "dy lacks the target: it is the gradient of the mean of y²",
        "term_of_the_target_with_wrong_sign": "dy adds the target to y, but the residual is their difference",
    },
    asks={
        "no_mean": "If every entry occurred twice, the loss would stay the same: how would each entry of dy change?",
        "sign_flipped": "If y lies above the target and grows, does the loss grow or fall?",
        "no_term_of_the_target": "At which y is the loss smallest, and is your gradient zero there?",
        "term_of_the_target_with_wrong_sign": "At which y is the loss smallest, and is your gradient zero there?",
    },
    shapes=SHAPES,
    formula="L = mean((y - target)²); dy, as an argument, is dL",
    aliases=("mse", "mse_loss"),
    rows=True,
)

mean_squared_error.multiplied("two_forgotten", dy=0.5)(
    "dy lacks the 2 that comes from the square",
    "What is the derivative of a square, and does this loss have a 1/2 that would cancel it?",
)
mean_squared_error.multiplied("divided_by_samples", dy=lambda y: y.size / len(y))(
    "dy is divided by the number of samples, not by the number of all entries",
    "Over how many numbers does forward take the mean?",
)
mean_squared_error.multiplied("power_not_lowered", dy=lambda y, target: y - target)(
    "dy keeps the square of the residual, but the power falls to 1",
    "Can your dy be negative, and must it not be where y lies below the target?",
)
mean_squared_error.computed("absolute_error", dy=lambda dL, y, target: dL * np.sign(y - target) / y.size)(
    "dy is the gradient of the mean absolute error: it holds only the signs of the residual",
    "Must an entry that is far off have a larger gradient than one that is nearly right?",
)
mean_squared_error.multiplied("root_of_the_loss", dy=lambda y, target: 0.5 / np.sqrt(forward(y, target)))(
    "dy is the gradient of the root of the loss, the RMSE", "Does forward take a root at its end?"
)
mean_squared_error.computed(
    "mean_of_the_residuals", dy=lambda dL, y, target: np.full_like(y, dL * 2 * (y - target).mean() / y.size)
)(
    "every entry of dy is the same: it holds the mean of the residuals, but each entry has its own",
    "Which terms of the sum contain one given y?",
)
mean_squared_error.called_with("loss_for_upstream", dL=forward)(
    "dy is multiplied by the loss itself", "What comes from above: the value of the loss, or its gradient dL?"
)
