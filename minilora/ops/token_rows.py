"""Some rows of a table learn, and the others stay: T_j stands in the place of the row i_j.

    W'_i = T_j where i = i_j, else W_i          W, W' (V, C)   i (n,), all different   T (n, C)

T holds the rows themselves, not their change. The table is looked up by an embedding, and multiplied by a linear layer,
such as a head that is tied to the embedding; W' is formed for neither:

    y_m = W'[id_m]              y_m = T_j where id_m = i_j, else W[id_m]            ids (...)     y (..., C)
    z_m = W' x_m + b            z_I = x Tᵀ + b_I, the other columns as of W         x (..., C)    z (..., V)

z_I are the columns i₁, i₂, ... of z. Backward, with dz̄ for dz where these columns are 0:

    dT_j = Σ_{m: id_m = i_j} dy_m               the rows of W get dy at the other places alone
    dT_j = Σ_m dz_m,i_j x_m                     dx = dz̄ W + dz_I T

The first is a sum over all places of an id, as for a whole embedding (embedding.py), and 0 for an id that does not
occur. The second is that of a linear layer with the weight T (linear.py), and rarely 0: a head gives a logit to every
token. Where the head is tied, T is one array with two uses, and dT is the sum of both.

Source: Hugging Face PEFT, `TrainableTokensConfig` and `trainable_token_indices`.
"""

from ..backend import Array, get_array_module
from .linear import linear_forward


def token_places(ids: Array, i: Array, V: int) -> Array:
    """at (...): j where the id is i_j, -1 where its row stays as it is."""
    xp = get_array_module(ids)
    at = xp.full(V, -1)
    at[i] = xp.arange(len(i))
    return at[ids]


def token_rows_forward(y: Array, at: Array, T: Array) -> Array:
    """y_m = T_j where at_m = j, else the given y_m = W[id_m]"""
    return get_array_module(y).where(at[..., None] >= 0, T[at], y)


def token_rows_backward(dy: Array, at: Array) -> Array:
    """dy where a row of W was looked up, 0 where one of T was: for dW."""
    return dy * (at < 0)[..., None]


def token_rows_gradients(dy: Array, at: Array, n: int) -> Array:
    """dT_j = Σ_{m: at_m = j} dy_m        (n, C)"""
    xp, learns = get_array_module(dy), at >= 0
    dT = xp.zeros((n, dy.shape[-1]), dtype=dy.dtype)
    xp.add.at(dT, at[learns], dy[learns])  # dT[at] += dy would count a repeated id once
    return dT


def token_columns_forward(z: Array, x: Array, T: Array, i: Array, b: Array | None = None) -> tuple[Array, Array]:
    """z_I = x Tᵀ + b_I in the given z = x Wᵀ + b.  The cache is x."""
    z = z.astype(get_array_module(z).result_type(z, x, T))  # a copy
    z[..., i] = linear_forward(x, T, None if b is None else b[i])[0]
    return z, x


def token_columns_backward(dz: Array, i: Array) -> tuple[Array, Array]:
    """dz̄, for W, and dz_I, for T: the dy of two linear layers whose dx add up."""
    rest = dz.copy()
    rest[..., i] = 0
    return rest, dz[..., i]
