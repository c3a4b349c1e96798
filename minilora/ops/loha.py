"""The path that LoHa adds beside a frozen linear layer: a product, number by number, of two low-rank matrices.

    y = x ΔWᵀ       ΔW = s (B₁A₁) ∘ (B₂A₂)      A₁, A₂ (r, in)   B₁, B₂ (out, r)   s = α/r

ΔW is of rank up to r², because of what each of its numbers is:

    ΔW_oi = s Σ_k B₁_ok A₁_ki Σ_l B₂_ol A₂_li = s Σ_kl (B₁_ok B₂_ol) (A₁_ki A₂_li)

That is s B A, the low-rank path of lora.py, of rank r², where a pair kl is one index:

    A_kl = A₁_k ∘ A₂_l      rows (in,)          A (r², in)
    B_kl = B₁_k ∘ B₂_l      columns (out,)      B (out, r²)

So ΔW need not be formed: h = x Aᵀ, y = s h Bᵀ, and dx, dh, dA and dB are those of lora.py. From them, as each number
of A is a product of two,

    dA₁_k = Σ_l dA_kl ∘ A₂_l        dA₂_l = Σ_k dA_kl ∘ A₁_k        and so dB₁ and dB₂

In terms of the dense gradient G = dyᵀ x of ΔW, with T = s G ∘ (B₂A₂): dB₁ = T A₁ᵀ and dA₁ = B₁ᵀ T. Hence
B₁ᵀ dB₁ = dA₁ A₁ᵀ, and ⟨B₁, dB₁⟩ = ⟨A₁, dA₁⟩ = ⟨B₂, dB₂⟩ = ⟨A₂, dA₂⟩ = ⟨ΔW, G⟩. A row costs 2 r² (in + out) forward, and
2 in·out where ΔW is formed: less only if r² is above in·out/(in + out).

Source: Hyeon-Woo, Ye-Bin, Oh (2022), "FedPara: low-rank Hadamard product for communication-efficient federated
learning", proposition 1; Yeh et al. (2024), "Navigating text-to-image customization" (LyCORIS), for LoHa.
"""

from ..backend import Array
from .lora import LoRACache, lora_A_gradients, lora_B_gradients, lora_backward, lora_forward


def loha_factors(B1: Array, A1: Array, B2: Array, A2: Array) -> tuple[Array, Array]:
    """A_kl = A₁_k ∘ A₂_l (r², in)      B_kl = B₁_k ∘ B₂_l (out, r²)"""
    A, B = A1[:, None] * A2, B1[:, :, None] * B2[:, None]
    r = len(A1)
    return A.reshape(r * r, A1.shape[1]), B.reshape(len(B1), r * r)


def loha_forward(x: Array, B1: Array, A1: Array, B2: Array, A2: Array, s: float) -> tuple[Array, LoRACache]:
    """h = x Aᵀ        y = s h Bᵀ.  The cache is x, and h (N, r²)."""
    return lora_forward(x, *loha_factors(B1, A1, B2, A2), s)


def loha_backward(dy: Array, B1: Array, A1: Array, B2: Array, A2: Array, s: float) -> tuple[Array, Array]:
    """dh = s dy B     dx = dh A        Returns dx and dh (N, r²), which loha_A_gradients needs."""
    return lora_backward(dy, *loha_factors(B1, A1, B2, A2), s)


def loha_A_gradients(dh: Array, x: Array, A1: Array, A2: Array) -> tuple[Array, Array]:
    """dA = dhᵀ x      dA₁_k = Σ_l dA_kl ∘ A₂_l        dA₂_l = Σ_k dA_kl ∘ A₁_k"""
    dA = lora_A_gradients(dh, x).reshape(len(A1), *A2.shape)
    return (dA * A2).sum(axis=1), (dA * A1[:, None]).sum(axis=0)


def loha_B_gradients(dy: Array, h: Array, B1: Array, B2: Array, s: float) -> tuple[Array, Array]:
    """dB = s dyᵀ h    dB₁_k = Σ_l dB_kl ∘ B₂_l        dB₂_l = Σ_k dB_kl ∘ B₁_k"""
    dB = lora_B_gradients(dy, h, s).reshape(*B1.shape, B2.shape[1])
    return (dB * B2[:, None]).sum(axis=2), (dB * B1[:, :, None]).sum(axis=1)
