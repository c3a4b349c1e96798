"""What the singular values of an update ΔW say about its rank."""

from __future__ import annotations

import numpy as np

from .backend import Array, get_array_module, to_numpy
from .lora import LoRALinear


def singular_values(delta: Array) -> np.ndarray:
    """σ₁ ≥ σ₂ ≥ ... of a matrix (out, in)."""
    return to_numpy(get_array_module(delta).linalg.svd(delta, compute_uv=False))


def lora_singular_values(adapter: LoRALinear) -> np.ndarray:
    """The r singular values of ΔW = s B A that can differ from 0, without forming ΔW.

    With B = Q_B R_B and Aᵀ = Q_A R_A, ΔW = Q_B (s R_B R_Aᵀ) Q_Aᵀ, and the orthonormal Q change no singular value:
    those of the r × r core are ΔW's own.
    """
    linalg = get_array_module(adapter.lora_A.data).linalg
    R_B, R_A = linalg.qr(adapter.lora_B.data)[1], linalg.qr(adapter.lora_A.data.T)[1]
    return singular_values(adapter.scaling * (R_B @ R_A.T))


def energy(sigma: np.ndarray) -> np.ndarray:
    """(n,): the share of ‖ΔW‖² = Σ σᵢ² that the best approximation of rank 1, 2, ..., n keeps; 0 without an update.

    Eckart, Young (1936): that approximation is the truncated singular value decomposition.
    """
    return np.cumsum(sigma**2) / (np.sum(sigma**2) or 1.0)


def effective_rank(sigma: np.ndarray) -> float:
    """exp of the entropy of σ / Σσ: n for n equal singular values (Roy, Vetterli, 2007); 0 without an update."""
    p = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(p * np.log(p)).sum())) if p.size else 0.0
