"""The path of SVF beside a frozen linear layer: the singular vectors of W are frozen, a factor for each value learns.

    W = U diag(S) Vᵀ        W' = U diag(S ∘ z) Vᵀ       U (out, r)   S, z (r,)   V (in, r)

so the layer has what is new in W' beside its own output:

    p = x V     y = (S ∘ (z - 1) ∘ p) Uᵀ        x (..., in)   p (N, r)   y (..., out)

r is min(in, out), all singular values, or fewer: then those left out stay as they are in W, and nothing is lost. N is
the number of rows of x, over all axes but the last.

Backward, from the last product to the first:

    y = q Uᵀ                    t = dy U, the gradient of q
    q = S ∘ (z - 1) ∘ p         dz = S ∘ Σ_n t ∘ p          dp = S ∘ (z - 1) ∘ t
    p = x V                     dx = dp Vᵀ

p alone is kept, r numbers a row. With G = dyᵀ x, the gradient with respect to W', Σ_n t ∘ p = diag(Uᵀ G V): the
derivative of the loss by each singular value S ∘ z itself. It is not 0 where z = 1.

Source: Sun et al. (2022), "Singular value fine-tuning: Few-shot segmentation requires few-parameters fine-tuning",
where S learns; Sun, Cetin, Tang (2025), "Transformer-squared: Self-adaptive LLMs", where z does.
"""

from ..backend import Array
from .rows import like, rows


def svf_forward(x: Array, z: Array, U: Array, S: Array, V: Array) -> tuple[Array, Array]:
    """p = x V          y = (S ∘ (z - 1) ∘ p) Uᵀ.  The cache is p."""
    p = rows(x) @ V
    return like((S * (z - 1) * p) @ U.T, x), p


def svf_backward(dy: Array, z: Array, U: Array, S: Array, V: Array) -> tuple[Array, Array]:
    """t = dy U         dx = (S ∘ (z - 1) ∘ t) Vᵀ       Returns dx and t (N, r), which svf_gradients needs."""
    t = rows(dy) @ U
    return like((S * (z - 1) * t) @ V.T, dy), t


def svf_gradients(t: Array, p: Array, S: Array) -> Array:
    """dz = S ∘ Σ_n t ∘ p"""
    return S * (t * p).sum(axis=0)
