"""The LoRA layer, y = x Wᵀ + s (x ∘ keep) Aᵀ Bᵀ with W frozen and s = α/r. The maths is in ops/lora.py."""

import numpy as np

from ..case import Case, relative_error
from ..problem import Factor, Problem, other_rows
from .dropout import draw_mask
from .linear import outer_total

# batch, tokens, in, out, r, alpha, p of each case: one is square
SHAPES = [
    (5, 3, 8, 6, 2, 7, 0.2),
    (4, 6, 7, 9, 3, 16, 0.1),
    (3, 2, 10, 9, 8, 14, 0.3),
    (2, 4, 6, 8, 5, 3, 0.4),
    (7, 2, 9, 9, 6, 11, 0.15),
    (6, 5, 11, 10, 7, 4, 0.25),
]


def other_shapes(rng, shapes):
    """As other_rows, and other α and p: no α is an integer, so that none equals r."""
    scales = zip(rng.permutation(16)[:6] + 3.5, rng.permutation(6) / 20 + 0.12, strict=True)
    return [(*shape[:5], alpha, p) for shape, (alpha, p) in zip(other_rows(rng, shapes), scales, strict=True)]


def draw(rng, shape):
    batch, tokens, width_in, width_out, r, alpha, p = shape
    x = rng.standard_normal((batch, tokens, width_in))
    inputs = {"x": x, "A": rng.standard_normal((r, width_in)), "B": rng.standard_normal((width_out, r))}
    W = rng.standard_normal((width_out, width_in))
    constants = {"W": W, "keep": draw_mask(rng, x.shape, p), "alpha": float(alpha), "r": r, "p": p}
    sizes = {"alpha": alpha, "r": r, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out, "1-p": 1 - p}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)


def forward(x, A, B, W, keep, alpha, r, p):
    return x @ W.T + alpha / r * (x * keep) @ A.T @ B.T


def backward(dy, x, A, B, W, keep, alpha, r, p):
    s = alpha / r
    h = (x * keep) @ A.T
    dh = s * dy @ B
    dx = dy @ W + dh @ A * keep
    dA = outer_total(dh, x * keep)
    dB = s * outer_total(dy, h)
    return {"dx": dx, "dA": dA, "dB": dB}


def terms(dy, x, A, B, W, keep, alpha, r, p):
    return {"dx": {"the base path": dy @ W, "the low-rank path": alpha / r * dy @ B @ A * keep}}


def masked(dy, x, A, B, W, keep, alpha, r, p):
    return {"dx": (dy @ W, alpha / r * dy @ B @ A / (1 - p))}


def scale_of(A, alpha, r, s):
    """{"alpha", "r"}. If not given, r is the rank of A, and α is s r, or r without s."""
    r = len(A) if r is None else r
    return {"alpha": r * (1 if s is None else s) if alpha is None else alpha, "r": r}


def complete(x, A, B, W=None, keep=None, alpha=None, r=None, p=None, s=None):
    """Without W it is 0, without keep there is no dropout."""
    keep = np.ones(x.shape) if keep is None else keep
    W = np.zeros((len(B), x.shape[-1])) if W is None else W
    return {"W": W, "keep": keep, **scale_of(A, alpha, r, s), "p": 1 - 1 / keep.max() if p is None else p}


def sum_of_rows(a):
    return a.sum(axis=(0, 1), keepdims=True)


def exchange(tensors, case):
    A, B = case.inputs["A"], case.inputs["B"]
    return relative_error(B.T @ tensors["dB"], tensors["dA"] @ A.T)


def at_dropped(tensors, case):
    base, dropped = case.dy @ case.constants["W"], case.constants["keep"] == 0
    return relative_error(tensors["dx"] * dropped, base * dropped)


low_rank = Problem(
    "low_rank",
    forward,
    backward,
    draw,
    terms,
    laws={
        "Bᵀ dB = dA Aᵀ, because an invertible factor moved from B to A changes no output": exchange,
        "where x was dropped, dx is dy W alone, because only the base path sees such an x": at_dropped,
    },
    factors={"scale": Factor("the scale s = α/r", lambda alpha, r: alpha / r, ("dA", "dB"), ("the low-rank path",))},
    says={
        "no_base_path": "dx lacks the base path, through the frozen W",
        "no_low_rank_path": "dx lacks the low-rank path, through B and A",
    },
    asks={
        "no_scale_in_low_rank_path": "At α = 0 the adapter is switched off: is it switched off in your dx too?",
        "no_base_path": "W gets no gradient: does that keep the gradient from passing through it to x?",
        "no_low_rank_path": "By how many paths does x reach y?",
        "base_path_twice": "Both paths write to dx: which of them was in the array before the sum?",
        "low_rank_path_twice": "If W already contained s B A, what would the second path still have to add?",
    },
    shapes=SHAPES,
    others=other_shapes,
    formula="y = x Wᵀ + s (x ∘ keep) Aᵀ Bᵀ, s = α/r; keep is 0 where x is dropped, else 1/(1-p)",
    aliases=("lora",),
    complete=complete,
    masked=masked,
    optional="also without W (y = s x Aᵀ Bᵀ), keep and p, or r (that of A), and with s for alpha/r",
    rows=True,
    simpler={
        "without dropout (keep = 1, p = 0)": {"keep": lambda keep: np.ones_like(keep), "p": 0.0},
        "without the frozen W (W = 0)": {"W": lambda W: 0 * W},
        "with the scale α/r = 1": {"alpha": lambda r: float(r)},
    },
)

low_rank.called_with("not_divided_by_r", r=1)(
    "the scale is α, not divided by the rank r, in {it}", "Which two numbers make up the scale in forward?"
)
low_rank.called_with("divided_by_root_r", r=lambda r: np.sqrt(r))(
    "the scale is α/√r, that of rank-stabilised LoRA, in {it}; forward has α/r",
    "Which of the two scales did forward use: that of LoRA, or that of rsLoRA?",
)
low_rank.called_with("scale_inverted", alpha=lambda r: r, r=lambda alpha: alpha)(
    "the scale is upside down, r/α, in {it}", "If a factor makes y larger, does it make the gradient larger or smaller?"
)
low_rank.called_with("scale_on_base_path", only="dx", W=lambda W, alpha, r: alpha / r * W)(
    "dx has the scale s on the base path too, but it belongs to the low-rank path alone",
    "Does α change what the frozen layer does?",
)
low_rank.called_with("no_mask_in_A", only="dA", keep=1)(
    "dA is summed with x instead of the x that dropout left", "Which x did A see in the forward?"
)
low_rank.called_with("no_mask_in_B", only="dB", keep=1)(
    "dB is computed from an h = x Aᵀ without dropout",
    "Is the h that you multiply with the one that B saw in the forward?",
)
low_rank.called_with("no_mask_in_x", only="dx", keep=1)(
    "the low-rank path of dx lacks the dropout mask",
    "How much can an x that was dropped change the output of the low-rank path?",
)
low_rank.computed("mask_on_base_path", dx=lambda dy, A, B, W, keep, alpha, r: (dy @ W + alpha / r * dy @ B @ A) * keep)(
    "dx has the dropout mask on the base path too, but only the low-rank path has dropout",
    "Does the frozen layer see x before or after dropout?",
)
low_rank.called_with("mask_not_rescaled", keep=lambda keep, p: keep * (1 - p))(
    "the dropout mask lacks its factor 1/(1-p), in {it}",
    "What else does dropout do to the entries that survive, so that their mean stays the same?",
)
low_rank.called_with("mask_twice", keep=lambda keep: keep * keep)(
    "the dropout mask, or its factor 1/(1-p), is applied twice, in {it}", "Which values does keep have already?"
)
low_rank.called_with("mask_inverted", keep=lambda keep, p: 1 / (1 - p) - keep)(
    "the dropout mask is inverted, in {it}", "Does a 0 in the mask mean kept or dropped?"
)
low_rank.called_with(
    "product_of_sums", only="dA dB", dy=lambda dy: sum_of_rows(dy), x=lambda x, keep: sum_of_rows(x * keep), keep=1
)(
    "{it} is a product of two sums over the rows, but must be a sum of the products of each row",
    "Can the dy of one row meet the x of another row on its way to A or B?",
)
low_rank.called_with("back_through_W", only="dA", B=lambda A, W: W @ A.T)(
    "dA takes dy back through the frozen W and A, not through B", "Which matrix lies between the output of A and y?"
)
low_rank.computed("h_for_dh", dA=lambda x, A, keep, alpha, r: alpha / r * outer_total((x * keep) @ A.T, x * keep))(
    "dA is computed from h, the output of A, instead of its gradient dh", "Where does the loss enter your dA?"
)
low_rank.computed("dh_for_h", dB=lambda dy, B, alpha, r: alpha / r * outer_total(dy, dy @ B))(
    "dB is computed from dh, the gradient of the input of B, instead of that input h",
    "If dy is doubled, by what does dB grow, and by what does yours?",
)
low_rank.multiplied("as_if_B_were_zero", dA=0)(
    "dA is zero, which is so only as long as B is zero",
    "At the start of training dA is indeed zero: which matrix makes it so, and what happens to that matrix?",
)
