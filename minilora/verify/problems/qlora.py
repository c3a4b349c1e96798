"""The QLoRA layer, y = x Ŵᵀ + s (x Aᵀ) Bᵀ with Ŵ decoded from NF4 codes and s = α/r. The maths is in
ops/quantized_linear.py and quantization/nf4.py."""

import numpy as np

from ... import ops
from ...quantization.base import PART
from ...quantization.nf4 import LEVELS, NF4, unpacked
from ..case import Case, relative_error
from ..op import Op, drawn, on
from ..problem import Factor, Problem
from .linear import outer_total
from .low_rank import SHAPES, exchange, other_shapes, scale_of, sum_of_rows


def encoded(W, block):
    """codes, two to a byte, and absmax, as float64."""
    arrays = NF4.encode(W.astype(np.float32), block)
    return arrays["codes"], arrays["absmax"].astype(np.float64)


def decoded(codes, absmax, block, shape, levels=LEVELS):
    """Ŵ"""
    n = shape[0] * shape[1]
    return (levels[unpacked(codes, n)].astype(np.float64) * np.repeat(absmax, block)[:n]).reshape(shape)


def rounded(M, block):
    """M encoded and decoded."""
    return decoded(*encoded(M, block), block, M.shape)


def draw(rng, shape):
    batch, tokens, width_in, width_out, r, alpha, _ = shape
    x, W = rng.standard_normal((batch, tokens, width_in)), rng.standard_normal((width_out, width_in))
    inputs = {"x": x, "A": rng.standard_normal((r, width_in)), "B": rng.standard_normal((width_out, r))}
    block = int(rng.integers(4, 9))
    codes, absmax = encoded(W, block)
    constants = {"W": W, "codes": codes, "absmax": absmax, "block": block, "alpha": float(alpha), "r": r}
    sizes = {"alpha": alpha, "r": r, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)


def forward(x, A, B, W, codes, absmax, block, alpha, r):
    return x @ decoded(codes, absmax, block, (len(B), x.shape[-1])).T + alpha / r * x @ A.T @ B.T


def backward(dy, x, A, B, W, codes, absmax, block, alpha, r):
    s = alpha / r
    base = decoded(codes, absmax, block, (len(B), x.shape[-1]))
    h = x @ A.T
    dh = s * dy @ B
    return {"dx": dy @ base + dh @ A, "dA": outer_total(dh, x), "dB": s * outer_total(dy, h)}


def terms(dy, x, A, B, W, codes, absmax, block, alpha, r):
    base = decoded(codes, absmax, block, (len(B), x.shape[-1]))
    return {"dx": {"the base path": dy @ base, "the low-rank path": alpha / r * dy @ B @ A}}


def complete(x, A, B, codes, absmax, block, W=None, alpha=None, r=None, s=None):
    """A layer does not hold W: where it is not given, it is Ŵ."""
    W = decoded(codes, absmax, block, (len(B), x.shape[-1])) if W is None else W
    return {"W": W, "codes": codes, "absmax": absmax, "block": block, **scale_of(A, alpha, r, s)}


def linear_in_x(tensors, case):
    y = forward(**case.inputs, **case.constants)
    return relative_error((case.inputs["x"] * tensors["dx"]).sum(axis=-1), (case.dy * y).sum(axis=-1))


qlora = Problem(
    "qlora",
    forward,
    backward,
    draw,
    terms,
    laws={
        "Bᵀ dB = dA Aᵀ, because an invertible factor moved from B to A changes no output": exchange,
        "⟨x, dx⟩ = ⟨dy, y⟩ in every row, because y is linear in x": linear_in_x,
    },
    factors={"scale": Factor("the scale s = α/r", lambda alpha, r: alpha / r, ("dA", "dB"), ("the low-rank path",))},
    says={
        "no_base_path": "dx lacks the base path, through the decoded Ŵ",
        "no_low_rank_path": "dx lacks the low-rank path, through B and A",
    },
    asks={
        "no_base_path": "Codes get no gradient: does that keep the gradient from passing through Ŵ to x?",
        "no_low_rank_path": "By how many paths does x reach y?",
        "no_scale_in_low_rank_path": "At α = 0 the adapter is switched off: is it switched off in your dx too?",
    },
    shapes=SHAPES,
    others=other_shapes,
    formula="y = x Ŵᵀ + s (x Aᵀ) Bᵀ, s = α/r; codes, two a byte, and absmax, one for each block, are those of W in NF4",
    complete=complete,
    optional="also without W, or r (that of A), and with s for alpha/r",
    rows=True,
    simpler={
        "without the base (absmax = 0)": {"absmax": lambda absmax: 0 * absmax},
        "with the scale α/r = 1": {"alpha": lambda r: float(r)},
    },
)


# ---- Ŵ ----

qlora.computed("original_weight", dx=lambda dy, A, B, W, alpha, r: dy @ (W + alpha / r * B @ A))(
    "dx goes back through the W that was quantised, but forward multiplied by what its codes give, Ŵ",
    "Which matrix does the layer hold, and which one made y?",
)
qlora.called_with("codes_swapped", only="dx", codes=lambda codes: codes << 4 | codes >> 4)(
    "in dx the two codes of each byte are swapped: the first is in the high bits",
    "Which half of a byte holds the first of its two codes?",
)
qlora.called_with("absmax_of_the_tensor", only="dx", absmax=lambda absmax: 0 * absmax + absmax.max())(
    "in dx every block has the largest scale of the tensor, but each has its own",
    "How many scales are there, and how many weights share one?",
)
qlora.called_with("absmax_left_out", only="dx", absmax=lambda absmax: 0 * absmax + 1)(
    "in dx Ŵ is made of the levels alone, without the scales of the blocks",
    "Between which two numbers does every level lie, and every weight?",
)
qlora.called_with("absmax_twice", only="dx", absmax=lambda absmax: absmax**2)(
    "in dx each block has its scale twice", "By what was W divided before its codes were looked for, and how often?"
)


@qlora.fault(
    "in dx the codes are decoded as equal steps from -1 to 1, as in int4, but they are indices into NF4's table",
    "How far apart are two neighbouring levels of NF4 at 0, and at the end?",
)
def even_levels(dy, x, A, B, W, codes, absmax, block, alpha, r):
    base = decoded(codes, absmax, block, (len(B), x.shape[-1]), np.linspace(-1, 1, 16))
    return {"dx": dy @ base + alpha / r * dy @ B @ A}


@qlora.fault(
    "in dx the codes fill Ŵ column by column, but W was read row by row",
    "In which order are the entries of W (out, in) in memory?",
)
def column_by_column(dy, x, A, B, W, codes, absmax, block, alpha, r):
    base = decoded(codes, absmax, block, (x.shape[-1], len(B))).T
    return {"dx": dy @ base + alpha / r * dy @ B @ A}


@qlora.fault(
    "dx comes from the adapter merged into the base and rounded again to NF4, which loses most of a small ΔW",
    "How large must a change of a weight be before its code becomes another?",
)
def merged_and_rounded(dy, x, A, B, W, codes, absmax, block, alpha, r):
    merged = decoded(codes, absmax, block, (len(B), x.shape[-1])) + alpha / r * B @ A
    return {"dx": dy @ rounded(merged, block)}


qlora.called_with("adapter_quantised", A=lambda A, block: rounded(A, block), B=lambda B, block: rounded(B, block))(
    "{it} is computed from A and B rounded to NF4: the base is held in 4 bits, the adapter is not",
    "Which matrices does QLoRA quantise: those that are frozen, or those that are trained?",
)


# ---- what is trained ----


@qlora.fault(
    "the dA returned is a gradient of the base, dyᵀ x, as though the rounding were not there: codes are integers, and "
    "nothing trains them",
    "Can a step of 0.001 change a code, which is an integer from 0 to 15?",
)
def gradient_of_base(dy, x, A, B, W, codes, absmax, block, alpha, r):
    return {"dA": outer_total(dy, x)}


@qlora.fault(
    "the dA returned is the gradient of the scales of the blocks: they belong to the base, and are frozen with it",
    "Which tensors does QLoRA hand to the optimizer?",
)
def gradient_of_scales(dy, x, A, B, W, codes, absmax, block, alpha, r):
    each = outer_total(dy, x) * decoded(codes, 0 * absmax + 1, block, (len(B), x.shape[-1]))
    return {"dA": np.add.reduceat(each.reshape(-1), np.arange(0, each.size, block))}


qlora.called_with("not_divided_by_r", r=1)(
    "the scale is α, not divided by the rank r, in {it}", "Which two numbers make up the scale in forward?"
)
qlora.called_with("divided_by_root_r", r=lambda r: np.sqrt(r))(
    "the scale is α/√r, that of rank-stabilised LoRA, in {it}; forward has α/r",
    "Which of the two scales did forward use: that of LoRA, or that of rsLoRA?",
)
qlora.called_with("scale_inverted", alpha=lambda r: r, r=lambda alpha: alpha)(
    "the scale is upside down, r/α, in {it}", "If a factor makes y larger, does it make the gradient larger or smaller?"
)
qlora.called_with("scale_on_base_path", only="dx", absmax=lambda absmax, alpha, r: alpha / r * absmax)(
    "dx has the scale s on the base path too, but it belongs to the low-rank path alone",
    "Does α change what the frozen layer does?",
)
qlora.called_with("product_of_sums", only="dA dB", dy=lambda dy: sum_of_rows(dy), x=lambda x: sum_of_rows(x))(
    "{it} is a product of two sums over the rows, but must be a sum of the products of each row",
    "Can the dy of one row meet the x of another row on its way to A or B?",
)
qlora.computed("h_for_dh", dA=lambda x, A, alpha, r: alpha / r * outer_total(x @ A.T, x))(
    "dA is computed from h, the output of A, instead of its gradient dh", "Where does the loss enter your dA?"
)
qlora.computed("dh_for_h", dB=lambda dy, B, alpha, r: alpha / r * outer_total(dy, dy @ B))(
    "dB is computed from dh, the gradient of the input of B, instead of that input h",
    "If dy is doubled, by what does dB grow, and by what does yours?",
)
qlora.multiplied("as_if_B_were_zero", dA=0)(
    "dA is zero, which is so only as long as B is zero",
    "At the start of training dA is indeed zero: which matrix makes it so, and what happens to that matrix?",
)


# ---- the functions of ops/quantized_linear.py ----


class Held:
    """W with the interface of a quantised matrix, which decodes some rows at a time. The shape claims so many columns
    that a part is two rows."""

    def __init__(self, W):
        self.W, self.shape = W, (len(W), PART // 2)

    def __len__(self):
        return len(self.W)

    def dense(self, rows):
        return self.W[rows]


def draw_op(size, rng):
    batch, T, n_in, n_out = (size() for _ in range(4))
    x, b, W = rng.standard_normal((batch, T, n_in)), rng.standard_normal(n_out), rng.standard_normal((n_out, n_in))
    return drawn(rng, (batch, T, n_out), {"x": x, "b": b}, W=W)


def op_forward(x, b, W):
    return ops.quantized_linear_forward(x, Held(on(x, W)), b), None


def op_backward(dy, _, x, b, W):
    return ops.quantized_linear_backward(dy, Held(on(x, W))), ops.bias_gradients(dy)


OPS = {"quantised base, QLoRA": Op(draw_op, op_forward, op_backward)}
