"""What the singular values and vectors of an update ΔW say: which rank is enough, and where in W it acts.

    ΔW = U Σ Vᵀ = σ₁ u₁ v₁ᵀ + σ₂ u₂ v₂ᵀ + ...        ‖ΔW‖² = Σ σᵢ²

‖·‖ is Frobenius' norm throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..backend import Array, get_array_module, to_numpy
from ..nn import Module
from ..process import blas_threads
from .base import Adapter


class SVD(NamedTuple):
    U: Array  # (out, k)   orthonormal columns uᵢ: directions of the output
    sigma: Array  # (k,)   σ₁ ≥ σ₂ ≥ ... ≥ 0
    Vt: Array  # (k, in)   orthonormal rows vᵢᵀ: directions of the input


@blas_threads()
def svd(W: Array) -> SVD:
    """U Σ Vᵀ of a dense matrix (out, in), with k = min(out, in)."""
    return SVD(*get_array_module(W).linalg.svd(W, full_matrices=False))


def check_svd_rank(layer: Module, r: int) -> None:
    """Raise ValueError unless the layer's W has r singular values."""
    most = min(layer.weight.data.shape)  # type: ignore[attr-defined]
    if r > most:
        raise ValueError(f"r {r} is above {most}, the smaller side of its weight, and the SVD of W has no more")


@blas_threads()
def lora_svd(A: Array, B: Array, s: float) -> SVD:
    """U Σ Vᵀ of ΔW = s B A, k = min(r, out, in), by about (in + out) r² operations instead of in · out · min(in, out).

    With B = Q_B R_B and Aᵀ = Q_A R_A, ΔW = Q_B (s R_B R_Aᵀ) Q_Aᵀ. If the r × r core in the middle is U' Σ V'ᵀ, then
    ΔW = (Q_B U') Σ (Q_A V')ᵀ; the columns of both products are orthonormal, so this is the decomposition.
    To take the QR first and the SVD of the small factor is Chan's (1982); here there are two factors.
    """
    linalg = get_array_module(A).linalg
    Q_B, R_B = linalg.qr(B)
    Q_A, R_A = linalg.qr(A.T)
    core = svd(s * (R_B @ R_A.T))
    return SVD(Q_B @ core.U, core.sigma, core.Vt @ Q_A.T)


@blas_threads()
def singular_values(delta: Array) -> np.ndarray:
    """σ₁ ≥ σ₂ ≥ ... of a matrix (out, in)."""
    return to_numpy(get_array_module(delta).linalg.svd(delta, compute_uv=False))


def adapter_singular_values(adapter: Adapter) -> np.ndarray:
    """The singular values of an adapter's ΔW: r of them, by lora_svd(), where ΔW is a product s B A."""
    factors = adapter.factors()
    return singular_values(adapter.delta()) if factors is None else to_numpy(lora_svd(*factors).sigma)


# ---- how many directions: functions of σ alone ----


def energy(sigma: np.ndarray) -> np.ndarray:
    """(n,): the share of ‖ΔW‖² = Σ σᵢ² that the best approximation of rank 1, 2, ..., n keeps; 0 without an update.

    Eckart, Young (1936): that approximation is the truncated singular value decomposition.
    """
    return np.cumsum(sigma**2) / (np.sum(sigma**2) or 1.0)


def mean_energy(sigmas: Sequence[np.ndarray]) -> np.ndarray:
    """(n,): energy() in the mean over several ΔW, the longest of n values; beyond its own a shorter one keeps all."""
    longest = max(map(len, sigmas))
    return np.mean([np.pad(energy(s), (0, longest - len(s)), constant_values=1.0) for s in sigmas], axis=0)


def rank_for(sigma: np.ndarray, share: float) -> int:
    """The least r ≥ 1 that keeps `share` of the energy: Σ_{i>r} σᵢ² ≤ (1 - share) Σ σᵢ²; 0 without an update.

    It is decided by what is left out, so that share = 1 asks for every σᵢ > 0: a sum of shares may end just below 1.
    Raises ValueError for a share outside (0, 1], and for singular values that are not finite.
    """
    if not 0 < share <= 1:
        raise ValueError(f"energy {share!r} is not a share above 0 and up to 1")
    if not np.isfinite(sigma).all():
        raise ValueError("a singular value is not a finite number: an update of such numbers has no rank")
    left_out = squares_after(sigma)
    return max(int(np.argmax(left_out <= (1 - share) * left_out[0])), int(sigma.any()))


def truncation_error(sigma: np.ndarray, r: int) -> tuple[float, float]:
    """The least distance from ΔW to any matrix of rank r: √(Σ_{i>r} σᵢ²) in Frobenius' norm, σ_{r+1} in the spectral.

    Eckart, Young (1936); Mirsky (1960) for every norm that rotations leave alone. truncate() attains both.
    """
    return math.sqrt(squares_after(sigma)[r]), float(sigma[r]) if r < len(sigma) else 0.0


def squares_after(sigma: np.ndarray) -> np.ndarray:
    """(n + 1,): Σ_{i>r} σᵢ² for r = 0, 1, ..., n, the small ones summed first."""
    return np.cumsum(np.r_[0.0, sigma[::-1] ** 2])[::-1]


def effective_rank(sigma: np.ndarray) -> float:
    """exp of the entropy of σ / Σσ: n for n equal singular values (Roy, Vetterli, 2007); 0 without an update."""
    p = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(p * np.log(p)).sum())) if p.size else 0.0


def stable_rank(sigma: np.ndarray) -> float:
    """‖ΔW‖² / σ₁²: at most the rank, and blind to many small σ (Rudelson, Vershynin, 2007); 0 without an update."""
    return float(np.sum((sigma / sigma[0]) ** 2)) if sigma.any() else 0.0


def numerical_rank(sigma: np.ndarray, shape: tuple[int, int], dtype: np.dtype | None = None) -> int:
    """How many σᵢ > max(out, in) · ε · σ₁, the rule of numpy.linalg.matrix_rank; ε is that of `dtype`, or of sigma's.

    What is below is no more than rounding. Say float32 for weights that were stored so, whatever σ is computed in.
    """
    return int(np.sum(sigma > max(shape) * np.finfo(dtype or sigma.dtype).eps * sigma[0]))


def truncate(update: SVD, r: int) -> tuple[Array, Array]:
    """The best approximation of rank r as an adapter's B (out, r) and A (r, in), for a scaling of 1.

    B = U_r √Σ_r and A = √Σ_r V_rᵀ, so that BᵀB = A Aᵀ: both share the size evenly. The error is truncation_error().
    """
    root = update.sigma[:r] ** 0.5
    return update.U[:, :r] * root, root[:, None] * update.Vt[:r]


# ---- which directions: the questions of Hu et al. (2021), section 7 ----


def subspace_similarity(U: Array, V: Array) -> np.ndarray:
    """φ(i, j) = ‖U_iᵀ V_j‖² / min(i, j), a grid (m, n) over i = 1..m and j = 1..n, each from 0 to 1.

    U (d, m) and V (d, n) have orthonormal columns, the most important first; U_i is the first i of them. φ is 1 where
    the smaller subspace lies in the larger, 0 where they are orthogonal. Hu et al. (2021), equation 4, where U and V
    are the right singular vectors of two A; for the right ones of two ΔW give Vt.T, for the left ones U.

    With c_k the singular values of U_iᵀ V_j (the cosines of the principal angles) and p = min(i, j), φ = Σ c_k² / p.
    The projection distance of appendix G is d² = p - Σ c_k², so φ = 1 - d²/p; the (1 - d²)/p printed there is not φ.
    """
    squares = to_numpy(U.T @ V) ** 2
    m, n = squares.shape
    return squares.cumsum(axis=0).cumsum(axis=1) / np.minimum.outer(np.arange(1, m + 1), np.arange(1, n + 1))


def random_similarity(m: int, n: int, d: int) -> np.ndarray:
    """What subspace_similarity() is on average for random subspaces of d dimensions: max(i, j) / d, a grid (m, n).

    A random unit vector v has E vvᵀ = I/d, hence E (u·v)² = 1/d for any unit u; ‖U_iᵀ V_j‖² is a sum of i j such
    squares, so E φ = (i j / d) / min(i, j).
    """
    return np.maximum.outer(np.arange(1, m + 1), np.arange(1, n + 1)) / d


def projected_norm(W: Array, directions: SVD, r: int) -> float:
    """‖U_rᵀ W V_r‖: how much of W (out, in) lies in the first r directions of another matrix's decomposition.

    Hu et al. (2021), table 7. Of W's own directions it is √(Σ_{i≤r} σᵢ²), the most there is.
    """
    return float(np.linalg.norm(to_numpy(directions.U[:, :r].T @ W @ directions.Vt[:r].T)))


def random_projected_norm(W: Array, r: int) -> float:
    """√E ‖UᵀWV‖² = ‖W‖ r / √(out · in) for r random directions on either side: E UUᵀ = (r / out) I, so for V."""
    return float(np.linalg.norm(to_numpy(W))) * r / math.sqrt(W.shape[0] * W.shape[1])


def amplification(W: Array, update: SVD, r: int) -> float:
    """‖ΔW_r‖ / ‖U_rᵀ W V_r‖: by how much the first r directions of ΔW outweigh what W has in them.

    Hu et al. (2021), section 7.3, where r is the rank of the adapter and ΔW_r all of ΔW. inf where W has nothing.
    """
    size, before = float(np.linalg.norm(to_numpy(update.sigma[:r]))), projected_norm(W, update, r)
    return size / before if before else math.inf


def intruders(before: SVD, after: SVD, k: int = 10, epsilon: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Intruder dimensions: which of the first k singular vectors of the tuned W resemble none of the pretrained W.

    Two arrays of indices from 0, of left and of right singular vectors. Shuttleworth et al. (2024), definition 1:
    y_j is one if max_i |cos(x_i, y_j)| < ε over all singular vectors x_i from before (|·|, as their sign is arbitrary).
    """
    left = abs(before.U.T @ after.U[:, :k]).max(axis=0)
    right = abs(before.Vt @ after.Vt[:k].T).max(axis=0)
    return np.flatnonzero(to_numpy(left) < epsilon), np.flatnonzero(to_numpy(right) < epsilon)
