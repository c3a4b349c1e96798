"""The path that LoKr adds beside a frozen linear layer: a Kronecker product of two small matrices.

    y = x ΔWᵀ       ΔW = s w₁ ⊗ w₂              w₁ (o₁, i₁)   w₂ (o₂, i₂)   in = i₁ i₂   out = o₁ o₂   s = α/r

Block (p, q) of ΔW is s w₁_pq w₂. So with a row of x written as the matrix X (i₁, i₂), row by row, and one of y as Y
(o₁, o₂), an output is

    Y_pu = s Σ_qv w₁_pq w₂_uv X_qv              Y = s w₁ X w₂ᵀ

and ΔW (out, in) is never formed: for each row the two products cost i₁ o₂ (i₂ + o₁) multiplications, a product with ΔW
in·out = i₁ i₂ o₁ o₂.

Backward, from the last product to the first; n runs over the N rows of x, all axes but the last taken together:

    Y = s w₁ Z          dw₁ = s Σ_n dY_n Z_nᵀ           dZ = s w₁ᵀ dY
    Z = X w₂ᵀ           dw₂ = Σ_n dZ_nᵀ X_n             dX = dZ w₂              X (i₁, i₂)   Z (i₁, o₂)   Y (o₁, o₂)

Z is made again for dw₁, from X, which dw₂ needs anyway. Where w₁ or w₂ is itself of low rank, w = a b, that is a
product of two matrices, whatever the number of rows of x:

    w = a b             da = dw bᵀ                      db = aᵀ dw              a (o, r)   b (r, i)

Hence ⟨w₁, dw₁⟩ = ⟨w₂, dw₂⟩ = Σ dy ∘ y, and dw₂ = 0 as long as w₁ = 0.

Source: Yeh et al. (2024), "Navigating text-to-image customization: from LyCORIS fine-tuning to model evaluation",
section 3.2; Edalati et al. (2022), "KronA", section 3.2, for the products without ΔW.
"""

import math

from ..backend import Array
from .rows import rows


def lokr_sizes(n: int, factor: int) -> tuple[int, int]:
    """n as a product of two, as LyCORIS and PEFT split in and out: of `factor` and n/factor, where that is whole; else
    of the largest divisor of n up to `factor` and √n, and the rest. For a factor of -1: up to √n."""
    if factor > 0 and n % factor == 0:
        return factor, n // factor
    most = math.isqrt(n) if factor == -1 else max(1, min(factor, math.isqrt(n)))
    first = max(m for m in range(1, most + 1) if n % m == 0)
    return first, n // first


def matrices(x: Array, columns: int) -> Array:
    """(..., m columns) -> (N, m, columns): each row of x as a matrix, row by row."""
    return x.reshape(-1, x.shape[-1] // columns, columns)


def lokr_forward(x: Array, w1: Array, w2: Array, s: float) -> tuple[Array, Array]:
    """Z = X w₂ᵀ       Y = s w₁ Z.  The cache is x."""
    Z = matrices(x, w2.shape[1]) @ w2.T
    Y = (Z.swapaxes(1, 2) @ (s * w1).T).swapaxes(1, 2)
    return Y.reshape(*x.shape[:-1], len(w1) * len(w2)), x


def lokr_backward(dy: Array, w1: Array, w2: Array, s: float) -> tuple[Array, Array]:
    """dZ = s w₁ᵀ dY   dX = dZ w₂       Returns dx and dZ (N, i₁, o₂), which lokr_w2_gradients needs."""
    dY = matrices(dy, len(w2))
    dZ = (dY.swapaxes(1, 2) @ (s * w1)).swapaxes(1, 2)
    return (dZ @ w2).reshape(*dy.shape[:-1], w1.shape[1] * w2.shape[1]), dZ


def lokr_w1_gradients(dy: Array, x: Array, w2: Array, s: float) -> Array:
    """Z = X w₂ᵀ       dw₁ = s Σ_n dY_n Z_nᵀ"""
    dY, Z = matrices(dy, len(w2)), matrices(x, w2.shape[1]) @ w2.T
    return rows(dY.swapaxes(1, 2)).T @ rows(s * Z.swapaxes(1, 2))


def lokr_w2_gradients(dZ: Array, x: Array) -> Array:
    """dw₂ = Σ_n dZ_nᵀ X_n"""
    return rows(dZ).T @ rows(matrices(x, x.shape[-1] // dZ.shape[1]))


def lokr_low_rank_gradients(dw: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """da = dw bᵀ      db = aᵀ dw,      of w = a b"""
    return dw @ b.T, a.T @ dw
