"""The embedding, alone and tied to the logits. The maths is in ops/embedding.py.

Tied, one table W does both, and its gradient is the sum over both paths:

    x = W[ids]      h = tanh(x H)      z = h Wᵀ               W (V, C)   H (C, C)   x, h (..., C)   z (..., V)

    dh = dz W       da = dh ∘ (1 - h²)                        a = x H, the input of tanh
    dx = da Hᵀ      dH = Σ_n x_nᵀ da_n
    dW = Σ_n dz_nᵀ h_n + Σ_n onehot(id_n)ᵀ dx_n               the output path, then the input path
"""

import numpy as np

from ..case import Case, relative_error
from ..problem import Problem
from .linear import outer_total, total

# batch, tokens, width, V of each case
SHAPES = [(3, 5, 4, 7), (4, 3, 6, 8), (2, 7, 5, 9), (5, 4, 3, 6), (6, 2, 7, 10), (7, 6, 8, 11)]


def draw_ids(rng, shape):
    """ids and sizes. Row 0 is looked up three times or more, twice in one sample; the last row never is."""
    batch, tokens, width, V = shape
    ids = rng.integers(0, V - 1, (batch, tokens))
    ids[0, :2] = ids[-1, -1] = 0
    return ids, {"batch": batch, "tokens": tokens, "width": width, "V": V}


def draw(rng, shape):
    ids, sizes = draw_ids(rng, shape)
    W = rng.standard_normal((sizes["V"], sizes["width"]))
    return Case(rng.standard_normal((*ids.shape, sizes["width"])), {"W": W}, {"ids": ids}, sizes)


def add_rows(ids, dy, V):
    """Σ dy over the places of each id"""
    dW = np.zeros((V, dy.shape[-1]))
    np.add.at(dW, ids, dy)
    return dW


def counts(ids, V):
    """How often each row is looked up."""
    return np.bincount(ids.ravel(), minlength=V)[:, None]


def last_rows(ids, dy, V):
    """dy at the last place of each id"""
    dW = np.zeros((V, dy.shape[-1]))
    dW[ids.ravel()] = dy.reshape(-1, dy.shape[-1])
    return dW


def forward(W, ids):
    return W[ids]


def backward(dy, W, ids):
    return {"dW": add_rows(ids, dy, len(W))}


def columns(tensors, case):
    return relative_error(tensors["dW"].sum(axis=0), total(case.dy))


def unused_rows(tensors, case):
    dW = tensors["dW"]
    unused = counts(case.constants["ids"], len(dW)) == 0
    return relative_error(dW, np.where(unused, 0, dW))


embedding = Problem(
    "embedding",
    forward,
    backward,
    draw,
    laws={
        "dW summed over the vocabulary is dy summed over the positions, because each position uses one row": columns,
        "a row that is never looked up has the gradient 0": unused_rows,
    },
    says={"averaged_over_rows": "dW is divided by the number of positions: it is a mean, but must be a sum"},
    asks={"averaged_over_rows": "Is there a mean in this op, or would it belong to the loss?"},
    shapes=SHAPES,
    formula="y = W[ids]",
    rows=True,
)
fault = embedding.fault

embedding.computed("last_of_repeats", dW=lambda dy, W, ids: last_rows(ids, dy, len(W)))(
    "dW holds only the last place of a repeated id: its other places were overwritten, not added",
    "What happens in NumPy when the same index occurs several times in an indexed assignment or in-place addition?",
)
embedding.computed("first_of_repeats", dW=lambda dy, W, ids: last_rows(ids[::-1, ::-1], dy[::-1, ::-1], len(W)))(
    "dW holds only the first place of a repeated id: the later ones are left out",
    "A word occurs three times in the text: how many places of the output move when its row moves?",
)
embedding.computed(
    "repeats_lost_within_a_sample",
    dW=lambda dy, W, ids: sum(last_rows(i, d, len(W)) for i, d in zip(ids, dy, strict=True)),
)(
    "dW adds a repeated id over the samples, but within one sample counts it once",
    "Your loop adds sample after sample: what if an id occurs twice in one sample?",
)
embedding.multiplied("averaged_over_repeats", dW=lambda W, ids: 1 / np.maximum(counts(ids, len(W)), 1))(
    "each row of dW is a mean over the places of its id, but must be a sum",
    "A row is used in three places: do their gradients add up or average?",
)
embedding.multiplied("multiplied_by_counts", dW=lambda W, ids: counts(ids, len(W)))(
    "each row of dW is multiplied by how often its id occurs, though the sum has counted that already",
    "How many times does each place add to dW: once, or once for each occurrence of its id?",
)
embedding.called_with("ids_shifted", ids=lambda ids: ids - 1)(
    "the rows of dW are shifted by one: ids are counted from 1, not from 0",
    "Which row does forward read for the id 0, and which row does its gradient go to?",
)
embedding.called_with("ids_of_the_next_token", ids=lambda ids: np.roll(ids, -1, axis=1))(
    "dW takes for each position the id of the next one: ids and dy are shifted by one token",
    "Are the ids here those that were looked up, or the targets that the model predicts?",
)
embedding.called_with("positions_in_another_order", ids=lambda ids: ids.T.reshape(ids.shape))(
    "dW pairs ids and dy in different orders: one is read sample by sample, the other token by token",
    "When both are flattened, does position n of ids still belong to position n of dy?",
)
embedding.multiplied("row_zero_as_padding", dW=lambda W: np.arange(len(W))[:, None] > 0)(
    "row 0 of dW is zero, as though the id 0 were padding", "Does forward treat the id 0 differently from the others?"
)
embedding.computed("ids_ignored", dW=lambda dy, W: np.tile(total(dy), (len(W), 1)))(
    "every row of dW holds the sum over all positions, whatever their ids",
    "Does a position feel a change of a row that it did not look up?",
)
embedding.computed("started_from_W", dW=lambda dy, W, ids: W + add_rows(ids, dy, len(W)))(
    "dW still holds W itself: the sum starts from the table, not from zero",
    "What must the gradient of a row be that was never looked up?",
)


# tied to the logits


def draw_tied(rng, shape):
    ids, sizes = draw_ids(rng, shape)
    W = rng.standard_normal((sizes["V"], sizes["width"]))
    H = rng.standard_normal((sizes["width"], sizes["width"])) / np.sqrt(sizes["width"])
    return Case(rng.standard_normal((*ids.shape, sizes["V"])), {"W": W, "H": H}, {"ids": ids}, sizes)


def tied_forward(W, H, ids):
    return np.tanh(W[ids] @ H) @ W.T


def tied_steps(dz, W, H, ids):
    """x, h and da"""
    x = W[ids]
    h = np.tanh(x @ H)
    return x, h, dz @ W * (1 - h * h)


def paths(dz, W, H, ids):
    """The two terms of dW: the output path and the input path."""
    _, h, da = tied_steps(dz, W, H, ids)
    return outer_total(dz, h), add_rows(ids, da @ H.T, len(W))


def tied_backward(dz, W, H, ids):
    x, _, da = tied_steps(dz, W, H, ids)
    return {"dW": sum(paths(dz, W, H, ids)), "dH": outer_total(x, da)}


def tied_terms(dz, W, H, ids):
    output_path, input_path = paths(dz, W, H, ids)
    return {"dW": {"the output path": output_path, "the input path": input_path}}


tied_embedding = Problem(
    "tied_embedding",
    tied_forward,
    tied_backward,
    draw_tied,
    tied_terms,
    says={
        "no_input_path": "dW lacks the input path: the gradient through the looked-up rows x",
        "no_output_path": "dW lacks the output path: the gradient from the logits h Wᵀ",
        "counted_twice": "dW is counted twice: both paths are added for each of the two uses of W",
    },
    asks={
        "no_input_path": "In how many places does W occur in forward?",
        "no_output_path": "A row of W that no id looks up still makes a logit: what is its gradient?",
        "counted_twice": "The table is one parameter under two names: how often was its gradient accumulated?",
    },
    shapes=SHAPES,
    formula="z = tanh(W[ids] H) Wᵀ",
    aliases=("tied",),
    rows=True,
)
fault = tied_embedding.fault

tied_embedding.multiplied("paths_averaged", dW=0.5)(
    "dW is the mean of the two paths, but must be their sum",
    "If W moves a little, do the changes along both paths add up or average?",
)


@fault(
    "the input path overwrites the rows of dW that were looked up, but must add to them",
    "What did those rows of dW hold before the gradient of the lookup arrived?",
)
def output_path_overwritten(dz, W, H, ids):
    dW, _ = paths(dz, W, H, ids)
    _, _, da = tied_steps(dz, W, H, ids)
    dW[ids] = da @ H.T
    return {"dW": dW}


def with_input_path(name, path):
    """Add a fault in which the input path of dW is another function of ids, da, dz, W and H."""

    def wrong(dz, W, H, ids):
        _, h, da = tied_steps(dz, W, H, ids)
        return {"dW": outer_total(dz, h) + path(ids, da, dz, W, H)}

    return tied_embedding.add(name, wrong)


with_input_path("repeats_lost", lambda ids, da, dz, W, H: last_rows(ids, da @ H.T, len(W)))(
    "the input path of dW holds only the last place of a repeated id: its other places are lost",
    "What happens in NumPy when the same index occurs several times in an indexed in-place addition?",
)
with_input_path("input_ids_shifted", lambda ids, da, dz, W, H: add_rows(ids - 1, da @ H.T, len(W)))(
    "the input path of dW is shifted by one row: ids are counted from 1, not from 0",
    "Which row does forward read for the id 0, and which row does its gradient go to?",
)
with_input_path("H_not_transposed", lambda ids, da, dz, W, H: add_rows(ids, da @ H, len(W)))(
    "the input path of dW goes through H, not through its transpose",
    "H is square, so the shapes do not warn you: which index of H belongs to x?",
)
with_input_path("H_skipped", lambda ids, da, dz, W, H: add_rows(ids, da, len(W)))(
    "the input path of dW skips H: it takes the gradient of x H for that of x",
    "Through which matrix does x pass before the tanh?",
)
with_input_path("layer_skipped", lambda ids, da, dz, W, H: add_rows(ids, dz @ W, len(W)))(
    "the input path of dW skips the layer in between: it takes dh for the gradient of x",
    "What lies between the row that was looked up and the h that makes the logits?",
)


@fault(
    "the output path of dW multiplies dz by x, but in the logits W is multiplied by h",
    "What does Wᵀ multiply in the forward?",
)
def output_path_from_x(dz, W, H, ids):
    _, input_path = paths(dz, W, H, ids)
    return {"dW": outer_total(dz, W[ids]) + input_path}


def with_slope(name, slope):
    """Add a fault in which the derivative of tanh is another function of a and h."""

    def wrong(dz, W, H, ids):
        x = W[ids]
        a = x @ H
        h = np.tanh(a)
        da = dz @ W * slope(a, h)
        return {"dW": outer_total(dz, h) + add_rows(ids, da @ H.T, len(W)), "dH": outer_total(x, da)}

    return tied_embedding.add(name, wrong)


with_slope("tanh_slope_missing", lambda a, h: 1)(
    "the derivative of tanh, 1 - h², is missing in {it}", "What stands between x H and h, and what is its derivative?"
)
with_slope("tanh_not_squared", lambda a, h: 1 - h)(
    "{it} takes 1 - h for the derivative of tanh, which is 1 - h²",
    "tanh is odd, so its slope is the same on both sides of 0: is yours?",
)
with_slope("slope_of_sigmoid", lambda a, h: h * (1 - h))(
    "{it} takes h(1 - h) for the derivative of tanh: that is the sigmoid's",
    "What is the slope of tanh at 0, and what is yours?",
)
with_slope("slope_before_tanh", lambda a, h: 1 - a * a)(
    "{it} takes the derivative of tanh from x H, but 1 - h² needs h", "Can the slope of tanh be negative?"
)


@fault("dH is built from h, not from the input x of that layer", "What does H multiply in the forward?")
def dH_from_h(dz, W, H, ids):
    _, h, da = tied_steps(dz, W, H, ids)
    return {"dH": outer_total(h, da)}
