"""Rows T are trained in place of some rows of a frozen table W: of an embedding, of a linear layer such as a head, and
of both, tied. The maths is in ops/token_rows.py.

embedding       y = W'[ids]                 dT_j = Σ dy over the places of the id i_j
head            z = x W'ᵀ                   dT_j = Σ_n dz_n,i_j x_n         dx = dz W'
tied            z = tanh(W'[ids] H) W'ᵀ     dT is the sum of both
"""

import numpy as np

from ... import ops
from ..case import Case, relative_error
from ..op import Op, drawn, on
from ..problem import Problem
from .embedding import SHAPES, add_rows, draw_ids, last_rows
from .linear import outer_total, total


def chosen(V):
    """i (4,), not in order: row 0, which is looked up several times, the last, which never is, and two others."""
    return np.array([V - 2, 0, V - 1, 2])


def replaced(W, T, i):
    """W'"""
    rows = W.astype(np.result_type(W, T))
    rows[i] = T
    return rows


def draw(rng, shape):
    ids, sizes = draw_ids(rng, shape)
    i, width = chosen(sizes["V"]), sizes["width"]
    ids[1, 0] = i[0]
    constants = {"W": rng.standard_normal((sizes["V"], width)), "ids": ids, "i": i}
    T = rng.standard_normal((len(i), width))
    return Case(rng.standard_normal((*ids.shape, width)), {"T": T}, constants, {**sizes, "n": len(i)})


# ---- the embedding ----


def forward(T, W, ids, i):
    return replaced(W, T, i)[ids]


def backward(dy, T, W, ids, i):
    return {"dT": add_rows(ids, dy, len(W))[i]}


def absent_rows(tensors, case):
    """The size of the rows of dT whose ids do not occur, relative to all of dT."""
    absent = ~np.isin(case.constants["i"], case.constants["ids"])
    return relative_error(tensors["dT"], np.where(absent[:, None], 0, tensors["dT"]))


def linear_in_T(tensors, case):
    T, (ids, i) = case.inputs["T"], (case.constants[name] for name in ("ids", "i"))
    moved = np.isin(ids, i)[..., None] * case.dy * forward(T, **case.constants)
    return relative_error(np.sum(T * tensors["dT"]), np.sum(moved))


token_rows = Problem(
    "token_rows",
    forward,
    backward,
    draw,
    laws={
        "a row whose id does not occur has the gradient 0": absent_rows,
        "⟨T, dT⟩ is dy ∘ y summed over the places of these ids, because y is linear in T there": linear_in_T,
    },
    says={"averaged_over_rows": "dT is divided by the number of positions: it is a mean, but must be a sum"},
    asks={"averaged_over_rows": "Is there a mean in this op, or would it belong to the loss?"},
    shapes=SHAPES,
    formula="y = W'[ids], W' = W with the rows i replaced by T",
    rows=True,
)

token_rows.computed("last_of_repeats", dT=lambda dy, W, ids, i: last_rows(ids, dy, len(W))[i])(
    "dT holds only the last place of a repeated id: its other places were overwritten, not added",
    "What happens in NumPy when the same index occurs several times in an indexed assignment?",
)
token_rows.computed("all_places", dT=lambda dy, i: np.tile(total(dy), (len(i), 1)))(
    "every row of dT holds the sum over all places, also over those of other ids",
    "Does a place feel a change of a row that it did not look up?",
)
token_rows.computed("rows_in_the_order_of_ids", dT=lambda dy, W, ids, i: add_rows(ids, dy, len(W))[np.sort(i)])(
    "the rows of dT are in the order of their ids: T_j belongs to i_j, in the order that was given",
    "Which row does T_0 replace: the one with the smallest id, or that of i_0?",
)
token_rows.computed("first_rows", dT=lambda dy, W, ids, i: add_rows(ids, dy, len(W))[: len(i)])(
    "dT holds the first rows of dW: T_j stands for the row i_j, not for row j", "Which row of W does T_j replace?"
)
token_rows.computed(
    "absent_rows_get_something",
    dT=lambda dy, W, ids, i: add_rows(ids, dy, len(W))[i] + total(dy) * ~np.isin(i, ids)[:, None],
)(
    "dT moves rows whose ids do not occur in the batch: they must be 0",
    "What does the loss say about a token that is nowhere in the batch?",
)
token_rows.multiplied(
    "averaged_over_repeats", dT=lambda ids, i: 1 / np.maximum((ids[..., None] == i).sum(axis=(0, 1)), 1)[:, None]
)(
    "each row of dT is a mean over the places of its id, but must be a sum",
    "A row is used in three places: do their gradients add up or average?",
)
token_rows.computed("difference_in_T", dT=lambda dy, T, W, ids, i: add_rows(ids, dy, len(W))[i] + T - W[i])(
    "dT holds T - W_I in addition to the gradient: T replaces rows of W, and their difference is nowhere in y",
    "Is T the rows themselves, or their change?",
)


# ---- a head ----


def draw_head(rng, shape):
    batch, tokens, width, V = shape
    i, x = chosen(V), rng.standard_normal((batch, tokens, width))
    inputs = {"x": x, "T": rng.standard_normal((len(i), width))}
    constants = {"W": rng.standard_normal((V, width)), "b": rng.standard_normal(V), "i": i}
    sizes = {"batch": batch, "tokens": tokens, "width": width, "V": V, "n": len(i)}
    return Case(rng.standard_normal((batch, tokens, V)), inputs, constants, sizes)


def head_forward(x, T, W, b, i):
    return x @ replaced(W, T, i).T + b


def head_backward(dz, x, T, W, b, i):
    return {"dx": dz @ replaced(W, T, i), "dT": outer_total(dz[..., i], x)}


def head_terms(dz, x, T, W, b, i):
    frozen, trained = dz @ replaced(W, 0 * T, i), dz[..., i] @ T
    return {"dx": {"the path of the frozen rows": frozen, "the path of the trained rows": trained}}


def complete(x, T, W, i, b=None):
    return {"W": W, "b": np.zeros(len(W)) if b is None else b, "i": i}


token_rows_head = Problem(
    "token_rows_head",
    head_forward,
    head_backward,
    draw_head,
    head_terms,
    says={
        "no_path_of_the_trained_rows": "dx lacks the logits of the trained rows: there dz reaches x through T",
        "no_path_of_the_frozen_rows": "dx lacks the logits of the frozen rows: there dz reaches x through W",
    },
    asks={
        "no_path_of_the_trained_rows": "Which logits depend on x through T, and not through W?",
        "no_path_of_the_frozen_rows": "W gets no gradient: does that keep the gradient from passing through it to x?",
    },
    shapes=SHAPES,
    formula="z = x W'ᵀ + b, W' = W with the rows i replaced by T",
    complete=complete,
    optional="also without b",
    rows=True,
    pairs=False,
)

token_rows_head.called_with("added_not_replaced", only="dx", T=lambda T, W, i: T + W[i])(
    "dx goes through W + T in these columns: the rows of W are still there, though T replaces them",
    "Is T the rows themselves, or their change?",
)
token_rows_head.called_with("frozen_rows_in_x", only="dx", T=lambda W, i: W[i])(
    "dx goes through the rows of W that T has replaced", "Which rows made these logits in forward?"
)
token_rows_head.computed("first_columns", dT=lambda dz, x, i: outer_total(dz[..., : len(i)], x))(
    "dT is taken from the first columns of dz: T_j makes the logit i_j, not the logit j",
    "To which token does the logit belong that T_j makes?",
)
token_rows_head.computed("product_of_sums", dT=lambda dz, x, i: np.outer(total(dz)[i], total(x)))(
    "dT is a product of two sums over the rows, but must be a sum of the products of each row",
    "Can the dz of one row meet the x of another row on its way to T?",
)


# ---- both, tied ----


def draw_tied(rng, shape):
    case = draw(rng, shape)
    width, V = case.sizes["width"], case.sizes["V"]
    H = rng.standard_normal((width, width)) / np.sqrt(width)
    dz = rng.standard_normal((*case.constants["ids"].shape, V))
    return Case(dz, case.inputs, {**case.constants, "H": H}, case.sizes)


def tied_forward(T, W, ids, i, H):
    rows = replaced(W, T, i)
    return np.tanh(rows[ids] @ H) @ rows.T


def paths(dz, T, W, ids, i, H):
    """The two terms of dT: through the logits, and through the rows that were looked up."""
    rows = replaced(W, T, i)
    h = np.tanh(rows[ids] @ H)
    dx = (dz @ rows * (1 - h * h)) @ H.T
    return outer_total(dz[..., i], h), add_rows(ids, dx, len(W))[i]


def tied_backward(dz, T, W, ids, i, H):
    return {"dT": sum(paths(dz, T, W, ids, i, H))}


def tied_terms(dz, T, W, ids, i, H):
    head, table = paths(dz, T, W, ids, i, H)
    return {"dT": {"the part of the head": head, "the part of the embedding": table}}


token_rows_tied = Problem(
    "token_rows_tied",
    tied_forward,
    tied_backward,
    draw_tied,
    tied_terms,
    says={
        "no_part_of_the_head": "dT lacks the part of the tied head: the gradient from the logits of these tokens",
        "no_part_of_the_embedding": "dT lacks the part of the embedding: the gradient through the rows looked up",
    },
    asks={
        "no_part_of_the_head": "A token that is nowhere in the batch still has a logit: what is its gradient?",
        "no_part_of_the_embedding": "In how many places does T occur in forward?",
    },
    shapes=SHAPES,
    formula="z = tanh(W'[ids] H) W'ᵀ, W' = W with the rows i replaced by T",
    rows=True,
)

token_rows_tied.multiplied("paths_averaged", dT=0.5)(
    "dT is the mean of the two parts, but must be their sum",
    "If T moves a little, do the changes along both paths add up or average?",
)
token_rows_tied.called_with("head_of_the_base", T=lambda W, i: W[i])(
    "dT is taken at the rows of W, not at T", "Which rows did forward use, in both places?"
)


# ---- the functions of ops/token_rows.py ----


def draw_op(size, rng):
    batch, T, V, C = size(), size(3, 5), size(4, 6), size()
    ids = rng.integers(0, 3, (batch, T))
    ids[:, 0] = ids[:, -1] = 2  # of T, twice
    ids[:, 1] = 1  # of W
    inputs = {"W": rng.standard_normal((V, C)), "T": rng.standard_normal((3, C))}
    return drawn(rng, (batch, T, C), inputs, ids=ids, i=np.array([2, 0, 3]))


def places(T, ids, i, V):
    return ops.token_places(on(T, ids), on(T, i), V)


def rows_forward(W, T, ids, i):
    y = ops.token_rows_forward(W[on(W, ids)], places(T, ids, i, len(W)), T)
    return y, None


def rows_backward(dy, _, W, T, ids, i):
    at = places(T, ids, i, len(W))
    of_W = ops.embedding_gradients(ops.token_rows_backward(dy, at), on(W, ids), len(W))
    return of_W, ops.token_rows_gradients(dy, at, len(T))


def draw_columns(size, rng):
    batch, T, C, V = size(), size(), size(), size(4, 6)
    shapes = {"x": (batch, T, C), "W": (V, C), "T": (3, C), "b": (V,)}
    return drawn(
        rng, (batch, T, V), {name: rng.standard_normal(s) for name, s in shapes.items()}, i=np.array([2, 0, 3])
    )


def columns_forward(x, W, T, b, i):
    return ops.token_columns_forward(ops.linear_forward(x, W, b)[0], x, T, on(x, i), b)


def columns_backward(dz, x, _, W, T, b, i):
    rest, dz_I = ops.token_columns_backward(dz, on(dz, i))
    dx = ops.linear_backward(rest, W) + ops.linear_backward(dz_I, T)
    return dx, ops.linear_gradients(rest, x), ops.linear_gradients(dz_I, x), ops.bias_gradients(dz)


OPS = {
    "token rows, embedding": Op(draw_op, rows_forward, rows_backward),
    "token rows, linear": Op(draw_columns, columns_forward, columns_backward),
}
