"""The SVF layer, y = x Wᵀ + (S ∘ (z - 1) ∘ (x V)) Uᵀ with W, U, S and V frozen: the first r singular values of
W = U diag(S) Vᵀ. The maths is in ops/svf.py."""

import numpy as np

from ... import ops
from ..case import Case, relative_error
from ..op import Op, drawn, on
from ..problem import Factor, Problem
from .linear import outer_total, total
from .low_rank import SHAPES, other_shapes


def draw(rng, shape):
    batch, tokens, width_in, width_out, r, *_ = shape
    inputs = {"x": rng.standard_normal((batch, tokens, width_in)), "z": 1 + rng.standard_normal(r)}
    W = rng.standard_normal((width_out, width_in))
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    sizes = {"r": r, "batch": batch, "tokens": tokens, "in": width_in, "out": width_out}
    constants = {"W": W, "U": U[:, :r], "S": S[:r], "V": Vt[:r].T}
    return Case(rng.standard_normal((batch, tokens, width_out)), inputs, constants, sizes)


def forward(x, z, W, U, S, V):
    return x @ W.T + S * (z - 1) * (x @ V) @ U.T


def backward(dy, x, z, W, U, S, V):
    p = x @ V
    t = dy @ U
    return {"dx": dy @ W + S * (z - 1) * t @ V.T, "dz": S * total(t * p)}


def terms(dy, x, z, W, U, S, V):
    return {"dx": {"the base path": dy @ W, "the path of the singular values": S * (z - 1) * (dy @ U) @ V.T}}


def along_the_vectors(tensors, case):
    U, S, V = (case.constants[name] for name in "USV")
    return relative_error(tensors["dz"], S * np.diag(U.T @ outer_total(case.dy, case.inputs["x"]) @ V))


svf = Problem(
    "svf",
    forward,
    backward,
    draw,
    terms,
    laws={
        "dz = S diag(Uᵀ G V), because z_k multiplies only S_k u_k v_kᵀ in W, whose gradient is G = dyᵀ x": (
            along_the_vectors
        )
    },
    factors={"values": Factor("the singular values S", lambda S: S, ("dz",))},
    says={
        "no_base_path": "dx lacks the base path, through the frozen W",
        "no_path_of_the_singular_values": "dx lacks the path of the singular values, through U and V: they are frozen, "
        "but the gradient still passes through them",
        "no_values": "dz lacks S: it is the gradient of the singular values S ∘ z themselves, not of the factors z",
    },
    asks={
        "no_base_path": "W gets no gradient: does that keep the gradient from passing through it to x?",
        "no_path_of_the_singular_values": "Does a frozen matrix stop the gradient, or only keep its own?",
        "no_values": "What is trained here: a singular value, or what it is multiplied by?",
    },
    shapes=SHAPES,
    others=other_shapes,
    formula="y = x Wᵀ + (S ∘ (z - 1) ∘ (x V)) Uᵀ, W = U diag(S) Vᵀ, of which U, S and V have the first r values",
    rows=True,
    pairs=False,
)

svf.called_with("z_for_z_less_1", only="dx", z=lambda z: z + 1)(
    "the path of the singular values of dx has z where forward has z - 1: S is in W already, and so counts twice",
    "At the start z = 1: is dx then that of the frozen layer?",
)
svf.called_with("no_S_in_x", only="dx", S=lambda S: np.ones_like(S))(
    "the path of the singular values of dx lacks S",
    "Where a singular value is zero, does anything of x pass along it to y?",
)
svf.multiplied("z_in_its_own_gradient", dz=lambda z: z)(
    "dz holds the factor z: y is linear in z, so its derivative does not contain z", "If z is zero, is dz zero?"
)
svf.multiplied("z_less_1_in_its_own_gradient", dz=lambda z: z - 1)(
    "dz holds the factor z - 1: y is linear in it, so its derivative does not contain it",
    "At the start z = 1: is dz zero, so that nothing is ever trained?",
)
svf.computed("p_for_t", dz=lambda x, S, V: S * total((x @ V) ** 2))(
    "dz is computed from p = x V alone, without t = dy U", "Where does the loss enter your dz?"
)
svf.computed("t_for_p", dz=lambda dy, U, S: S * total((dy @ U) ** 2))(
    "dz is computed from t = dy U alone, without p = x V",
    "If dy is doubled, by what does dz grow, and by what does yours?",
)
svf.computed("product_of_sums", dz=lambda dy, x, U, S, V: S * total(dy @ U) * total(x @ V))(
    "dz is a product of two sums over the rows, but must be a sum of the products of each row",
    "Can the dy of one row meet the x of another row on its way to z?",
)
svf.computed("of_the_matrix", dz=lambda dy, x, U, S, V: S * outer_total(dy @ U, x @ V))(
    "dz is the whole matrix Uᵀ G V S, but z is a diagonal: each u is paired only with the v of the same index",
    "How many parameters are trained, r or r²?",
)


# ---- the functions of ops/svf.py ----


def draw_op(size, rng):
    batch, T, n_in, n_out, r = (size() for _ in range(5))
    U, S, V = (rng.standard_normal(shape) for shape in ((n_out, r), r, (n_in, r)))
    inputs = {"x": rng.standard_normal((batch, T, n_in)), "z": rng.standard_normal(r)}
    return drawn(rng, (batch, T, n_out), inputs, U=U, S=S, V=V)


def op_forward(x, z, U, S, V):
    return ops.svf_forward(x, z, on(x, U), on(x, S), on(x, V))


def op_backward(dy, p, x, z, U, S, V):
    dx, t = ops.svf_backward(dy, z, on(x, U), on(x, S), on(x, V))
    return dx, ops.svf_gradients(t, p, on(x, S))


OPS = {"singular values, SVF": Op(draw_op, op_forward, op_backward)}
