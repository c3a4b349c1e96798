"""The path that AdaLoRA adds beside a frozen linear layer, in the form of an SVD, and the penalty that keeps that form.

    h = x Aᵀ        q = h ∘ e       y = s q Bᵀ          x (..., in)   A (r, in)   e (r,)   B (out, r)   h, q (N, r)

which is y = x ΔWᵀ with ΔW = s B diag(e) A = s Σ_k e_k B_:k A_k: r triplets of a singular value, a column and a row. N
is the number of rows of x, over all axes but the last. In the paper B is P, diag(e) is Λ and A is Q.

Backward, from the last product to the first:

    y = s q Bᵀ          dB = s dyᵀ q            dq = s dy B
    q = h ∘ e           de = Σ_n dq ∘ h         dh = dq ∘ e
    h = x Aᵀ            dA = dhᵀ x              dx = dh A

Neither q nor dq need be kept for de. With M = s dyᵀ h (out, r), one product for both,

    dB_ok = s Σ_n dy_no h_nk e_k = M_ok e_k
    de_k  = Σ_n h_nk s Σ_o dy_no B_ok = Σ_o B_ok M_ok

so x and h are kept, as for LoRA. Hence e_k de_k = ⟨B_:k, dB_:k⟩ = ⟨A_k, dA_k⟩ of every triplet, as a factor that moves
from one of the three to another changes no output; and dA = dB = 0 as long as e = 0.

The rows of A are orthonormal where the penalty R(A) is zero, the columns of B where R(Bᵀ) is:

    E = A Aᵀ - I        R = ‖E‖         dA = 2 dR E A / ‖E‖
                        R = ‖E‖²        dA = 4 dR E A               ‖·‖ is Frobenius' norm

as a change δ of A changes ‖E‖² by 2 ⟨E, δ Aᵀ + A δᵀ⟩ = ⟨4 E A, δ⟩, E being symmetric. The paper squares the norm; PEFT
and the code of the paper's authors do not. At E = 0 the norm has a kink, and 0 is taken, as PyTorch does.

Source: Zhang et al. (2023), "AdaLoRA: Adaptive budget allocation for parameter-efficient fine-tuning", equations 3 and
4; the scale and the norm without a square as in PEFT 0.21.2.
"""

from typing import NamedTuple

from ..backend import Array, get_array_module
from .rows import like, rows


class AdaLoRACache(NamedTuple):
    x: Array  # (..., in)   for dA
    h: Array  # (N, r)      for dB and de


def adalora_forward(x: Array, A: Array, B: Array, e: Array, s: float) -> tuple[Array, AdaLoRACache]:
    """h = x Aᵀ        y = s (h ∘ e) Bᵀ"""
    h = rows(x) @ A.T
    return like((s * e * h) @ B.T, x), AdaLoRACache(x, h)


def adalora_backward(dy: Array, A: Array, B: Array, e: Array, s: float) -> tuple[Array, Array]:
    """dh = s (dy B) ∘ e       dx = dh A       Returns dx and dh (N, r), of which lora_A_gradients makes dA = dhᵀ x."""
    dh = s * e * (rows(dy) @ B)
    return like(dh @ A, dy), dh


def adalora_gradients(dy: Array, h: Array, B: Array, e: Array, s: float) -> tuple[Array, Array]:
    """M = s dyᵀ h         dB = M ∘ e      de = Σ_o B_o ∘ M_o      returns dB and de"""
    M = rows(dy).T @ (s * h)
    return M * e, (B * M).sum(axis=0)


def orthogonality_forward(A: Array) -> tuple[Array, Array]:
    """R = ‖A Aᵀ - I‖.  The cache is E = A Aᵀ - I."""
    E = gram_error(A)
    return size(E), E


def orthogonality_gradients(dR: Array | float, E: Array, A: Array) -> Array:
    """dA = 2 dR E A / ‖E‖"""
    return 2 * dR * (unit(E) @ A)


def squared_orthogonality_forward(A: Array) -> tuple[Array, Array]:
    """R = ‖A Aᵀ - I‖².  The cache is E = A Aᵀ - I."""
    E = gram_error(A)
    return (E * E).sum(), E


def squared_orthogonality_gradients(dR: Array | float, E: Array, A: Array) -> Array:
    """dA = 4 dR E A"""
    return 4 * dR * (E @ A)


def gram_error(A: Array) -> Array:
    """E = A Aᵀ - I"""
    return A @ A.T - get_array_module(A).eye(len(A), dtype=A.dtype)


def size(E: Array) -> Array:
    """‖E‖, from a sum of squares and no |·|, so that it is analytic."""
    return get_array_module(E).sqrt((E * E).sum())


def unit(E: Array) -> Array:
    """E / ‖E‖; 0 where E is."""
    norm = size(E)
    return E / (norm + (norm == 0))
