"""SwiGLU. The maths is in ops/swiglu.py."""

import numpy as np

from ..case import Case, relative_error
from ..problem import Problem

# batch, tokens, hidden of each case
SHAPES = [(3, 4, 7), (5, 2, 8), (4, 6, 5), (2, 7, 9), (7, 3, 4), (6, 5, 3)]


def draw(rng, shape):
    inputs = {"gate": 1.5 * rng.standard_normal(shape), "up": rng.standard_normal(shape)}
    return Case(rng.standard_normal(shape), inputs, {}, dict(zip(["batch", "tokens", "hidden"], shape, strict=True)))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def silu(z):
    return z * sigmoid(z)


def product_rule(z):
    """The two terms of silu'(z)."""
    sigma = sigmoid(z)
    return sigma, z * sigma * (1 - sigma)


def silu_slope(z):
    """silu'(z)"""
    return sum(product_rule(z))


def forward(gate, up):
    return silu(gate) * up


def backward(dy, gate, up):
    return {"dgate": dy * up * silu_slope(gate), "dup": dy * silu(gate)}


def terms(dy, gate, up):
    direct, through_sigma = product_rule(gate)
    return {"dgate": {"the direct term σ": dy * up * direct, "the sigmoid term zσ(1 - σ)": dy * up * through_sigma}}


def along_up(tensors, case):
    return relative_error(case.inputs["up"] * tensors["dup"], case.dy * forward(**case.inputs))


swiglu = Problem(
    "swiglu",
    forward,
    backward,
    draw,
    terms,
    laws={"up ∘ dup is dy ∘ y, because y is linear in up": along_up},
    says={
        "no_sigmoid_term": "dgate lacks the term zσ(1 - σ) of silu': σ is not differentiated",
        "no_direct_term": "dgate lacks the direct term σ of silu'",
        "sigmoid_term_with_wrong_sign": "dgate subtracts the term zσ(1 - σ) of silu', but must add it",
    },
    asks={
        "no_sigmoid_term": "In how many places does z occur in z σ(z), and how many terms does the product rule have?",
        "no_direct_term": "For a large z, silu(z) is z itself: what must its slope be there, and what is yours?",
        "sigmoid_term_with_wrong_sign": "Does σ grow or fall with z?",
    },
    shapes=SHAPES,
    formula="y = silu(gate) ∘ up, silu(z) = z σ(z)",
    rows=True,
    pairs=False,
)
fault = swiglu.fault


def with_slope(name, slope):
    """Add a fault in which silu'(z) in dgate is another function of z and σ(z)."""
    return swiglu.computed(name, dgate=lambda dy, gate, up: dy * up * slope(gate, sigmoid(gate)))


swiglu.computed(
    "roles_swapped", dgate=lambda dy, up: dy * silu(up), dup=lambda dy, gate, up: dy * gate * silu_slope(up)
)(
    "gate and up are swapped: {it} is the gradient of gate ∘ silu(up)",
    "Which of the two does forward pass through SiLU?",
)


@fault(
    "{it} is the gradient of a sigmoid gate, σ(gate) ∘ up: the factor z of silu(z) = z σ(z) is missing",
    "How does SwiGLU differ from GLU, the first gated linear unit?",
)
def sigmoid_for_silu(dy, gate, up):
    sigma = sigmoid(gate)
    return {"dgate": dy * up * sigma * (1 - sigma), "dup": dy * sigma}


swiglu.computed(
    "relu_for_silu", dgate=lambda dy, gate, up: dy * up * (gate > 0), dup=lambda dy, gate: dy * np.maximum(gate, 0)
)("{it} is the gradient of a ReLU gate, max(gate, 0) ∘ up", "Is silu(z) zero for a negative z?")
with_slope("z_forgotten", lambda z, sigma: sigma + sigma * (1 - sigma))(
    "the second term of silu' in dgate is σ(1 - σ), without the factor z",
    "In the product rule, which factor stays as it is when σ is differentiated?",
)
with_slope("one_minus_sigma_forgotten", lambda z, sigma: sigma + z * sigma)(
    "the second term of silu' in dgate lacks the factor 1 - σ",
    "For a very large z, σ no longer moves: what must become of the second term there?",
)
with_slope("slope_of_tanh", lambda z, sigma: sigma + z * (1 - sigma * sigma))(
    "dgate takes 1 - σ² for the derivative of σ: that is the form of tanh's",
    "Which function has the derivative σ(1 - σ), and which 1 - σ²?",
)
with_slope("one_minus_silu", lambda z, sigma: sigma + z * sigma * (1 - z * sigma))(
    "the second term of silu' in dgate uses 1 - silu(z), not 1 - σ(z)",
    "Whose derivative brings the factor 1 - σ: that of silu, or that of σ?",
)
with_slope("silu_not_differentiated", lambda z, sigma: z * sigma)(
    "dgate multiplies by silu(gate), not by the derivative silu'(gate)",
    "What is silu at 0, and what is its slope there?",
)
with_slope("silu_left_out_of_dgate", lambda z, sigma: 1)(
    "dgate takes up alone for the slope: SiLU is left out", "What does gate pass through before it is multiplied by up?"
)
swiglu.computed("slope_at_up", dgate=lambda dy, up: dy * up * silu_slope(up))(
    "dgate takes silu' of up, not of gate", "At which point does the chain rule take the derivative of the activation?"
)
swiglu.called_with("up_forgotten", only="dgate", up=1)(
    "dgate lacks the factor up", "If up is zero, the output does not move with gate: what must dgate be?"
)
swiglu.computed("silu_left_out_of_dup", dup=lambda dy, gate: dy * gate)(
    "dup multiplies by gate itself, not by silu(gate)",
    "By what is up multiplied in the forward: by gate, or by silu(gate)?",
)
swiglu.computed("slope_for_silu", dup=lambda dy, gate: dy * silu_slope(gate))(
    "dup multiplies by the derivative silu'(gate), not by silu(gate)",
    "On the path of up, is there an activation to be differentiated?",
)
swiglu.computed("silu_of_up", dup=lambda dy, up: dy * silu(up))(
    "dup multiplies by silu(up), not by silu(gate)", "The output is linear in up: can dup still depend on up?"
)
swiglu.multiplied("output_for_silu", dup=lambda up: up)(
    "dup multiplies by the whole output y: the factor up is still in it",
    "The output is linear in up: what is left of y after differentiation with respect to up?",
)
