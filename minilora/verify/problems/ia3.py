"""(IA)³ on either side of a frozen linear layer. The maths is in ops/ia3.py.

out side        y = l ∘ (x Wᵀ + b)          dx = (l ∘ dy) W         dl = Σ dy ∘ (x Wᵀ + b)
in side         y = (l ∘ x) Wᵀ + b          dx = l ∘ (dy W)         dl = Σ (dy W) ∘ x
"""

# ruff: noqa: E741  (l is the paper's letter)

from ... import ops
from ..case import Case, relative_error
from ..op import Op, drawn
from ..problem import Problem
from .linear import linear_in, total
from .low_rank import SHAPES, other_shapes


def draw_with(width_of_l):
    def draw(rng, shape):
        batch, tokens, width_in, width_out, *_ = shape
        sizes = {"batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
        inputs = {"x": rng.standard_normal((batch, tokens, width_in)), "l": rng.standard_normal(sizes[width_of_l])}
        constants = {"W": rng.standard_normal((width_out, width_in)), "b": rng.standard_normal(width_out)}
        return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)

    return draw


def complete(x, l, W, b=None):
    return {"W": W, "b": 0 if b is None else b}


# ---- on the out side ----


def forward(x, l, W, b):
    return l * (x @ W.T + b)


def backward(dy, x, l, W, b):
    return {"dx": l * dy @ W, "dl": total(dy * (x @ W.T + b))}


ia3 = Problem(
    "ia3",
    forward,
    backward,
    draw_with("out"),
    laws={"l ∘ dl is dy ∘ y summed over the rows, because y is linear in l": linear_in("l", forward)},
    shapes=SHAPES,
    others=other_shapes,
    formula="y = l ∘ (x Wᵀ + b)",
    complete=complete,
    optional="also without b",
    rows=True,
)

ia3.called_with("bias_not_scaled", only="dl", b=0)(
    "dl lacks the bias: l rescales x Wᵀ + b, and not x Wᵀ alone", "Is b added before or after l multiplies?"
)
ia3.computed("added_to_y", dl=lambda dy: total(dy))(
    "dl lacks the output x Wᵀ + b that l multiplies: it is the gradient of a vector that is added",
    "What is y where l is zero?",
)
ia3.called_with("no_l_in_x", only="dx", l=1)(
    "dx lacks l: dy passes l on its way to W", "Where l is zero, does x change y?"
)
ia3.multiplied("after_l", dl=lambda l: l)(
    "dl is summed with y, which holds l already, instead of x Wᵀ + b",
    "Did you keep the output before or after l?",
)
ia3.computed("of_the_in_side", dl=lambda dy, x, W: total(dy @ W * x))(
    "dl is the gradient of the in side, Σ (dy W) ∘ x, one entry for each input: here l rescales the outputs",
    "How many entries has l: as many as x has features, or y?",
)


# ---- on the in side ----


def feed_forward(x, l, W, b):
    return (l * x) @ W.T + b


def feed_forward_backward(dy, x, l, W, b):
    dz = dy @ W
    return {"dx": l * dz, "dl": total(dz * x)}


def along_x(tensors, case):
    return relative_error(case.inputs["l"] * tensors["dl"], total(tensors["dx"] * case.inputs["x"]))


ia3_feed_forward = Problem(
    "ia3_feed_forward",
    feed_forward,
    feed_forward_backward,
    draw_with("in"),
    laws={"l ∘ dl is dx ∘ x summed over the rows, because y depends on l ∘ x alone": along_x},
    shapes=SHAPES,
    others=other_shapes,
    formula="y = (l ∘ x) Wᵀ + b",
    complete=complete,
    optional="also without b",
    rows=True,
)

ia3_feed_forward.called_with("added_to_x", only="dl", x=1)(
    "dl lacks the x that l multiplies: it is the gradient of a vector that is added", "What reaches W where l is zero?"
)
ia3_feed_forward.called_with("no_l_in_dx", only="dx", l=1)(
    "dx lacks l: it is the gradient dy W of l ∘ x, not of x", "What does W see in forward: x, or l ∘ x?"
)
ia3_feed_forward.multiplied("input_after_l", dl=lambda l: l)(
    "dl is summed with l ∘ x, which holds l already, instead of x", "Did you keep the input before or after l?"
)
ia3_feed_forward.computed("of_the_out_side", dl=lambda dy, x, W, b: total(dy * (x @ W.T + b)))(
    "dl is the gradient of the out side, Σ dy ∘ (x Wᵀ + b), one entry for each output: here l rescales the inputs",
    "How many entries has l: as many as x has features, or y?",
)
ia3_feed_forward.multiplied("l_twice", dx=lambda l: l)(
    "dx holds l twice", "Was the gradient that you multiplied by l that of l ∘ x, or already that of x?"
)


# ---- the functions of ops/ia3.py ----


def draw_op(size, rng):
    B, T, C = size(), size(), size()
    return drawn(rng, (B, T, C), {"x": rng.standard_normal((B, T, C)), "l": rng.standard_normal(C)})


OPS = {
    "rescaling": Op(
        draw_op,
        ops.ia3_forward,
        lambda dy, x, _, vector: (ops.ia3_backward(dy, vector), ops.ia3_gradients(dy, x)),
    )
}
