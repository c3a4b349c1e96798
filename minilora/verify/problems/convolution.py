"""Convolution of signals, alone and with LoRA. The maths is in ops/convolution.py and ops/lora_convolution.py.

One axis is enough: an image has the same indices twice. x̄ is x with p zeros on either side, and dx̄ its gradient. X
(batch, in, L, K) holds the windows: the K entries of x̄ that each of the L outputs sees.
"""

import numpy as np

from ..case import Case, relative_error
from ..problem import Factor, Problem, other_rows

# batch, length, in, out, kernel, stride, padding of each case: windows overlap, and kernel - 1 is not 2 padding
SHAPES = [
    (3, 11, 2, 4, 5, 3, 1),
    (4, 10, 3, 2, 4, 2, 1),
    (2, 12, 4, 3, 3, 2, 2),
    (5, 9, 3, 5, 6, 4, 2),
    (6, 8, 2, 3, 4, 3, 2),
    (2, 13, 5, 6, 5, 2, 3),
]


def places(outputs, kernel, stride):
    """(L, K): the index in x̄ of entry k of the window of output l."""
    return stride * np.arange(outputs)[:, None] + np.arange(kernel)


def windows(x, kernel, stride, padding):
    """X"""
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding)))
    outputs = (padded.shape[-1] - kernel) // stride + 1
    return padded[..., places(outputs, kernel, stride)]


def sum_over_windows(dX, width, stride):
    """dx̄: each entry of x̄ gets the sum over the windows that it is in."""
    dpadded = np.zeros((*dX.shape[:2], width))
    np.add.at(dpadded, (..., places(*dX.shape[2:], stride)), dX)
    return dpadded


def draw(rng, shape):
    batch, length, width_in, width_out, kernel, stride, padding = shape
    x = rng.standard_normal((batch, width_in, length))
    W = rng.standard_normal((width_out, width_in, kernel))
    outputs = (length + 2 * padding - kernel) // stride + 1
    sizes = {"batch": batch, "length": length, "in": width_in, "out": width_out, "kernel": kernel, "stride": stride}
    sizes |= {"padding": padding, "outputs": outputs}
    inputs = {"x": x, "W": W, "b": rng.standard_normal(width_out)}
    dy = rng.standard_normal((batch, width_out, outputs))
    return Case(dy, inputs, {"stride": stride, "padding": padding}, sizes)


def forward(x, W, b, stride, padding):
    X = windows(x, W.shape[-1], stride, padding)
    return np.einsum("nclk,ock->nol", X, W) + b[:, None]


def backward(dy, x, W, b, stride, padding):
    length, kernel = x.shape[-1], W.shape[-1]
    dX = np.einsum("nol,ock->nclk", dy, W)
    dx = sum_over_windows(dX, length + 2 * padding, stride)[..., padding : padding + length]
    dW = np.einsum("nol,nclk->ock", dy, windows(x, kernel, stride, padding))
    db = dy.sum(axis=(0, 2))
    return {"dx": dx, "dW": dW, "db": db}


def unreached(tensors, case):
    """The size of dx after the last window, relative to all of dx."""
    dx, W = tensors["dx"], (case.inputs | case.constants)["W"]
    stride, padding = case.constants["stride"], case.constants["padding"]
    end = stride * (case.dy.shape[-1] - 1) + W.shape[-1] - padding
    return relative_error(dx, np.where(np.arange(dx.shape[-1]) < end, dx, 0))


def along_x(tensors, case):
    x, W, b = case.inputs.values()
    y = forward(x, W, 0 * b, **case.constants)
    return relative_error((x * tensors["dx"]).sum(axis=(1, 2)), (case.dy * y).sum(axis=(1, 2)))


def along_W(tensors, case):
    x, W, b = case.inputs.values()
    y = forward(x, W, 0 * b, **case.constants)
    return relative_error((W * tensors["dW"]).sum(axis=(1, 2)), (case.dy * y).sum(axis=(0, 2)))


UNREACHED = {"after the last window dx is 0, because no output sees these entries": unreached}

convolution = Problem(
    "convolution",
    forward,
    backward,
    draw,
    laws={
        "in each sample Σ x ∘ dx is Σ dy ∘ (y - b), because y - b is linear in x": along_x,
        "in each output channel Σ W ∘ dW is Σ dy ∘ (y - b), because y - b is linear in W": along_W,
    }
    | UNREACHED,
    shapes=SHAPES,
    formula="y_nol = Σ_c Σ_k W_ock x̄_nc(stride·l + k) + b_o; x̄ is x between `padding` zeros on either side",
    aliases=("conv", "conv1d", "convolution_1d"),
)


# ---- dx, whose windows overlap ----


def with_padded_gradient(name, padded):
    """Add a fault in which dx is cut from another dx̄, a function of dX, its width and the stride."""

    def wrong(dy, x, W, stride, padding):
        dX, length = np.einsum("nol,ock->nclk", dy, W), x.shape[-1]
        return padded(dX, length + 2 * padding, stride)[..., padding : padding + length]

    return convolution.computed(name, dx=wrong)


def with_cut(name, cut):
    """Add a fault in which dx is another part of dx̄: cut(dx̄, length of x, kernel, padding)."""

    def wrong(dy, x, W, stride, padding):
        dX, length = np.einsum("nol,ock->nclk", dy, W), x.shape[-1]
        return cut(sum_over_windows(dX, length + 2 * padding, stride), length, W.shape[-1], padding)

    return convolution.computed(name, dx=wrong)


def last_window(dX, width, stride):
    dpadded = np.zeros((*dX.shape[:2], width))
    dpadded[..., places(*dX.shape[2:], stride)] = dX
    return dpadded


def mean_over_windows(dX, width, stride):
    many = np.bincount(places(*dX.shape[2:], stride).ravel(), minlength=width)
    return sum_over_windows(dX, width, stride) / np.maximum(many, 1)


def repeated(dX, width, stride):
    """dx̄ as it is if every dy is repeated `stride` times."""
    return sum(np.roll(sum_over_windows(dX, width + stride, stride), i, axis=-1) for i in range(stride))[..., :width]


def between(dpadded, start, length):
    """`length` entries of dx̄ from `start` on, with zeros after its end."""
    return np.pad(dpadded[..., start:], ((0, 0), (0, 0), (0, length)))[..., :length]


def last_along(dy, axis):
    """dy, with zeros at all but the last index of this axis."""
    last = np.arange(dy.shape[axis]) == dy.shape[axis] - 1
    return dy * np.expand_dims(last, [other for other in range(3) if other != axis])


with_padded_gradient("overlaps_overwritten", last_window)(
    "dx holds the last window alone where several overlap: the others were overwritten, not added",
    "One x lies in several windows: does your loop add to the result of the window before, or overwrite it?",
)
with_padded_gradient("overlaps_averaged", mean_over_windows)(
    "dx is a mean over the windows where several overlap, but must be a sum",
    "One x feeds several outputs: how do the effects of several paths on the loss combine?",
)
with_padded_gradient("kernel_reversed_in_x", lambda dX, width, stride: sum_over_windows(dX[..., ::-1], width, stride))(
    "dx spreads each dy with the kernel reversed",
    "Which entry of W multiplied the first x of a window in forward, and which carries the gradient back to that x?",
)
with_padded_gradient("stride_forgotten_in_x", lambda dX, width, stride: sum_over_windows(dX, width, 1))(
    "dx shifts the window by one x from output to output, and not by the stride",
    "Where does the window of output l begin, and is there a zero between two neighbours of dy where forward jumped?",
)
with_padded_gradient("dy_repeated", repeated)(
    "dx repeats each dy `stride` times, but there must be zeros between them",
    "How many windows did forward look at: one for each output, or one for each x?",
)
with_cut("padding_cut_off_the_end", lambda dpadded, length, kernel, padding: dpadded[..., :length])(
    "dx is shifted by the padding, which is cut off at the end alone",
    "At which place of the padded x does x itself begin?",
)
with_cut("padding_cut_off_the_front", lambda dpadded, length, kernel, padding: dpadded[..., 2 * padding :])(
    "dx is shifted by the padding, which is cut off at the front alone",
    "At which place of the padded x does x itself begin?",
)
with_cut("padding_not_cut_off", lambda dpadded, length, kernel, padding: dpadded)(
    "dx is the gradient of the padded x: the padding is not cut off",
    "Which entries of the padded x do not belong to x?",
)
with_cut("padding_of_forward", lambda dpadded, length, kernel, padding: between(dpadded, kernel - 1 - padding, length))(
    "dx pads dy by the padding of forward, but needs kernel - 1 - padding zeros on either side",
    "Which outputs see the first x, and where do they lie in the dy that you have padded?",
)
convolution.called_with("last_channel_only", only="dx", dy=lambda dy: last_along(dy, 1))(
    "dx holds the last output channel alone: the others were overwritten, not added",
    "How many output channels read the same x?",
)

# ---- dW and db, which all windows share ----


def total(a):
    """The sum over samples and positions"""
    return a.sum(axis=(0, 2))


def mistakes_in_the_sum(problem, *tensors):
    """Add faults to gradients that are sums over samples and positions: a mean instead, or the last part alone."""

    def divided(name, number):
        return problem.multiplied(name, **dict.fromkeys(tensors, lambda dy: 1 / number(dy)))

    def last(name, axis):
        return problem.called_with(name, only=" ".join(tensors), dy=lambda dy: last_along(dy, axis))

    divided("averaged_over_rows", lambda dy: dy[:, 0].size)(
        "{it} is a mean over samples and positions, but must be a sum",
        "One kernel multiplies every window of every sample: do their contributions add up or average?",
    )
    divided("averaged_over_samples", len)(
        "{it} is a mean over the samples, but must be a sum",
        "Is there a mean in this op, or would it belong to the loss?",
    )
    divided("averaged_over_positions", lambda dy: dy.shape[2])(
        "{it} is a mean over the positions, but must be a sum",
        "One kernel is used at every position: do their gradients add up or average?",
    )
    last("last_sample_only", 0)(
        "{it} holds the last sample alone: the others were overwritten, not added",
        "Does your loop over the samples add to the result of the sample before, or overwrite it?",
    )
    last("last_position_only", 2)(
        "{it} holds the last position alone: the others were overwritten, not added",
        "Does your loop over the positions add to the result of the position before, or overwrite it?",
    )


def with_windows(name, other):
    """Add a fault in which dW takes other windows, a function of x, the kernel, the stride and the padding."""

    def wrong(dy, x, W, stride, padding):
        return np.einsum("nol,nclk->ock", dy, other(x, W.shape[-1], stride, padding)[:, :, : dy.shape[2]])

    return convolution.computed(name, dW=wrong)


def behind(x, padding):
    """x with all of the padding at its end."""
    return np.pad(x, ((0, 0), (0, 0), (0, 2 * padding)))


with_windows("stride_forgotten_in_W", lambda x, kernel, stride, padding: windows(x, kernel, 1, padding))(
    "{it} shifts the window by one x from output to output, and not by the stride",
    "Which x has output l seen, and by which x is its dy multiplied in your sum?",
)
with_windows(
    "padding_forgotten_in_W", lambda x, kernel, stride, padding: windows(behind(x, padding), kernel, stride, 0)
)(
    "{it} takes windows that are shifted by the padding: the first begins at the first x",
    "What did the first window of forward see: x alone, or also zeros in front of it?",
)
with_windows("kernel_reversed_in_W", lambda *arguments: windows(*arguments)[..., ::-1])(
    "{it} has its kernels reversed",
    "Which entry of a window does W_k multiply in forward: entry k, or entry k from the end?",
)
convolution.computed(
    "product_of_sums",
    dW=lambda dy, x, W, stride, padding: np.multiply.outer(total(dy), total(windows(x, W.shape[-1], stride, padding))),
)(
    "dW is the product of two sums over the windows, but must be the sum of the products of each window",
    "Can the dy of one position meet the window of another on its way to W?",
)
mistakes_in_the_sum(convolution, "dW", "db")
convolution.multiplied("bias_taken_as_constant", db=0)(
    "db is zero, as though b were no parameter", "If b grows a little, does y stay as it is?"
)

# ---- both ----


def without_padding(dy, length, kernel, stride, padding):
    """dy with zeros for the windows that reach into the padding."""
    starts = stride * np.arange(dy.shape[2]) - padding
    return dy * ((starts >= 0) & (starts + kernel <= length))


convolution.called_with(
    "edges_left_out",
    only="dx dW",
    dy=lambda dy, x, W, stride, padding: without_padding(dy, x.shape[-1], W.shape[-1], stride, padding),
)(
    "{it} leaves out the windows that reach into the padding",
    "Of such a window a part is x: what does that part do to the output?",
)


@convolution.fault(
    "{it} takes entries from the other end of x for the padding: an index below 0 counts from the end",
    "What is x[-1] in NumPy, and what did forward put in front of x?",
)
def padding_from_the_other_end(dy, x, W, b, stride, padding):
    length, kernel = x.shape[-1], W.shape[-1]
    at = (places(dy.shape[2], kernel, stride) - padding) % length
    dx = np.zeros_like(x)
    np.add.at(dx, (..., at), np.einsum("nol,ock->nclk", dy, W))
    return {"dx": dx, "dW": np.einsum("nol,nclk->ock", dy, x[..., at])}


# ---- LoRA on the kernel ----


def draw_low_rank(rng, shape):
    *shape, r, alpha = shape
    case = draw(rng, shape)
    x, W, _ = case.inputs.values()
    A, B = rng.standard_normal((r, *W.shape[1:])), rng.standard_normal((len(W), r))
    constants = {"W": W, **case.constants, "alpha": float(alpha), "r": r}
    return Case(case.dy, {"x": x, "A": A, "B": B}, constants, {**case.sizes, "alpha": alpha, "r": r})


def other_shapes(rng, shapes):
    """As other_rows, and other α: none is an integer, so that none equals r."""
    return [(*shape[:-1], shape[-1] + 0.5) for shape in other_rows(rng, shapes)]


def merged(A, B, W, alpha, r):
    """W + ΔW"""
    return W + alpha / r * np.einsum("or,rck->ock", B, A)


def low_rank_forward(x, A, B, W, stride, padding, alpha, r):
    X = windows(x, W.shape[-1], stride, padding)
    h = np.einsum("nclk,rck->nrl", X, A)
    return np.einsum("nclk,ock->nol", X, W) + alpha / r * np.einsum("nrl,or->nol", h, B)


def low_rank_backward(dy, x, A, B, W, stride, padding, alpha, r):
    s, length = alpha / r, x.shape[-1]
    X = windows(x, W.shape[-1], stride, padding)
    h = np.einsum("nclk,rck->nrl", X, A)
    dh = s * np.einsum("nol,or->nrl", dy, B)
    dX = np.einsum("nol,ock->nclk", dy, W) + np.einsum("nrl,rck->nclk", dh, A)
    dx = sum_over_windows(dX, length + 2 * padding, stride)[..., padding : padding + length]
    dA = np.einsum("nrl,nclk->rck", dh, X)
    dB = s * np.einsum("nol,nrl->or", dy, h)
    return {"dx": dx, "dA": dA, "dB": dB}


def dx_through(kernels, dy, x, stride, padding):
    """dx of these kernels (O, C, K)"""
    return backward(dy, x, kernels, 0, stride, padding)["dx"]


def low_rank_terms(dy, x, A, B, W, stride, padding, alpha, r):
    return {
        "dx": {
            "the base path": dx_through(W, dy, x, stride, padding),
            "the low-rank path": dx_through(merged(A, B, 0, alpha, r), dy, x, stride, padding),
        }
    }


def exchange(tensors, case):
    A, B = case.inputs["A"], case.inputs["B"]
    return relative_error(B.T @ tensors["dB"], np.einsum("rck,qck->rq", tensors["dA"], A))


low_rank_convolution = Problem(
    "low_rank_convolution",
    low_rank_forward,
    low_rank_backward,
    draw_low_rank,
    low_rank_terms,
    laws={"Bᵀ dB = dA₂ A₂ᵀ, because an invertible factor moved from B to A changes no output": exchange} | UNREACHED,
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
    shapes=[
        (*shape, r, alpha) for shape, r, alpha in zip(SHAPES, (3, 2, 4, 5, 7, 6), (7, 16, 14, 3, 11, 4), strict=True)
    ],
    others=other_shapes,
    formula="y = W ⋆ x + s B (A ⋆ x), s = α/r; ⋆ convolves with the stride and the padding, B acts on each position",
    aliases=("lora_convolution", "lora_conv", "lora_conv1d"),
)


def of_the_update(wrong):
    """A fault of the convolution, with the kernels W + ΔW; dA is s Bᵀ dW."""

    def wrong_here(dy, x, A, B, W, stride, padding, alpha, r):
        found = wrong(dy, x, merged(A, B, W, alpha, r), 0, stride, padding)
        made = {"dx": found["dx"]} if "dx" in found else {}
        return made | ({"dA": alpha / r * np.einsum("or,ock->rck", B, found["dW"])} if "dW" in found else {})

    return wrong_here


SHARED = (
    *("overlaps_overwritten", "kernel_reversed_in_x", "stride_forgotten_in_x", "padding_cut_off_the_end"),
    *("padding_not_cut_off", "stride_forgotten_in_W", "padding_forgotten_in_W", "kernel_reversed_in_W"),
    *("edges_left_out", "padding_from_the_other_end"),
)
for name in SHARED:
    fault = convolution.faults[name]
    low_rank_convolution.add(name.replace("_in_W", "_in_A"), of_the_update(fault.wrong))(fault.says.en, fault.asks.en)


mistakes_in_the_sum(low_rank_convolution, "dA", "dB")
low_rank_convolution.called_with("not_divided_by_r", r=1)(
    "the scale is α, not divided by the rank r, in {it}", "Which two numbers make up the scale in forward?"
)
low_rank_convolution.called_with("scale_on_base_path", only="dx", W=lambda W, alpha, r: alpha / r * W)(
    "dx has the scale s on the base path too, but it belongs to the low-rank path alone",
    "Does α change what the frozen layer does?",
)
low_rank_convolution.multiplied("as_if_B_were_zero", dA=0)(
    "dA is zero, which is so only as long as B is zero",
    "At the start of training dA is indeed zero: which matrix makes it so, and what happens to that matrix?",
)


def with_low_rank_path(name, fault):
    """Add a fault in which only the low-rank path of dx has this fault of the convolution."""
    path = convolution.faults[fault].wrong

    def wrong(dy, x, A, B, W, stride, padding, alpha, r):
        update = merged(A, B, 0, alpha, r)
        return dx_through(W, dy, x, stride, padding) + path(dy, x, update, 0, stride, padding)["dx"]

    return low_rank_convolution.computed(name, dx=wrong)


with_low_rank_path("stride_forgotten_in_low_rank_path", "stride_forgotten_in_x")(
    "the low-rank path of dx has a stride of 1, but A has the stride of W",
    "A and W look at the same windows: where does window l begin for each of them in your dx?",
)
with_low_rank_path("padding_forgotten_in_low_rank_path", "padding_cut_off_the_end")(
    "the low-rank path of dx is shifted by the padding, but A has the padding of W",
    "Does the first window of A begin at the first x, or where that of W begins?",
)
with_low_rank_path("kernel_reversed_in_low_rank_path", "kernel_reversed_in_x")(
    "the low-rank path of dx has the kernels of A reversed",
    "Which entry of A multiplied the first x of a window, and which one carries the gradient back to that x?",
)


def low_rank_steps(dy, x, A, B, stride, padding, alpha, r):
    """X, h and dh"""
    X = windows(x, A.shape[-1], stride, padding)
    return X, np.einsum("nclk,rck->nrl", X, A), alpha / r * np.einsum("nol,or->nrl", dy, B)


@low_rank_convolution.fault(
    "dA is computed from h, the output of A, instead of its gradient dh", "Where does the loss enter your dA?"
)
def h_for_dh(dy, x, A, B, W, stride, padding, alpha, r):
    X, h, _ = low_rank_steps(dy, x, A, B, stride, padding, alpha, r)
    return {"dA": alpha / r * np.einsum("nrl,nclk->rck", h, X)}


@low_rank_convolution.fault(
    "dB is computed from dh, the gradient of the input of B, instead of that input h",
    "If dy is doubled, by what does dB grow, and by what does yours?",
)
def dh_for_h(dy, x, A, B, W, stride, padding, alpha, r):
    return {"dB": alpha / r * np.einsum("nol,nrl->or", dy, np.einsum("nol,or->nrl", dy, B))}


@low_rank_convolution.fault(
    "{it} is a product of two sums over the windows, but must be a sum of the products of each window",
    "Can the dy of one position meet the window of another on its way to A or B?",
)
def product_of_sums(dy, x, A, B, W, stride, padding, alpha, r):
    X, h, dh = low_rank_steps(dy, x, A, B, stride, padding, alpha, r)
    return {
        "dA": np.multiply.outer(total(dh), total(X)),
        "dB": alpha / r * np.multiply.outer(total(dy), total(h)),
    }
