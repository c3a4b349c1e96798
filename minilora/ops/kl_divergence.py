"""The Kullback-Leibler divergence between a teacher's and a student's distributions: the loss of distillation.

    p = softmax(t/T)    q = softmax(z/T)        t, z logits (..., V) of the teacher and the student     T temperature

    forward     L = T²/n Σ_i Σ_v p_iv (log p_iv - log q_iv)         KL(p ‖ q): q must be large wherever p is
    reverse     L = T²/n Σ_i Σ_v q_iv (log q_iv - log p_iv)         KL(q ‖ p): q must be small wherever p is

over the n positions i that are labelled; for n = 0, L = 0 and dz = 0.

Backward: ∂ log q_v/∂z_w = ([v = w] - q_w)/T, and so ∂q_v/∂z_w = q_v ([v = w] - q_w)/T. With Σ_v p_v = Σ_v q_v = 1,

    forward     dz_w = dL T²/n Σ_v -p_v ([v = w] - q_w)/T           = dL T/n (q_w - p_w)
    reverse     dz_w = dL T²/n Σ_v (d_v + 1) q_v ([v = w] - q_w)/T  = dL T/n q_w (d_w - Σ_v q_v d_v),  d = log q - log p

Rows of dz sum to 0. As T grows, q - p tends to (z - t - their rows' means)/(V T): T² keeps dz from vanishing. At
T = 1 and with p one-hot the forward divergence is the cross-entropy.

Source: Hinton, Vinyals, Dean (2015), "Distilling the Knowledge in a Neural Network", section 2; reversed: Gu et al.
(2024), "MiniLLM", equation 2.
"""

from types import ModuleType
from typing import NamedTuple

from ..backend import Array, get_array_module
from .rows import rows


class KLCache(NamedTuple):
    p: Array  # (N, V)       of the teacher
    q: Array  # (N, V)       of the student
    scale: Array  # (N, 1)   T/n, or 0 where a position is not labelled
    shape: tuple[int, ...]  # of the logits


class ReverseKLCache(NamedTuple):
    q: Array  # (N, V)
    d: Array  # (N, V)       log q - log p
    scale: Array  # (N, 1)   T/n, or 0 where a position is not labelled
    shape: tuple[int, ...]  # of the logits


def log_softmax(z: Array) -> Array:
    """log softmax(z), over the last axis."""
    xp: ModuleType = get_array_module(z)
    z = z - z.max(axis=-1, keepdims=True)
    return z - xp.log(xp.exp(z).sum(axis=-1, keepdims=True))


def log_distributions(z: Array, t: Array, T: float, labelled: Array, count: int | None) -> tuple[Array, Array, Array]:
    """log q and log p (N, V), and T/n (N, 1), which is 0 where a position is not labelled."""
    xp = get_array_module(z)
    if z.shape != t.shape or labelled.shape != z.shape[:-1]:
        raise ValueError(f"logits {z.shape} need a teacher's of that shape, not {t.shape}, and labelled {z.shape[:-1]}")
    scale = T * labelled.reshape(-1, 1) / (count or xp.maximum(labelled.sum(), 1))
    return log_softmax(rows(z) / T), log_softmax(rows(t) / T), scale.astype(z.dtype)


def kl_forward(z: Array, t: Array, T: float, labelled: Array, count: int | None = None) -> tuple[Array, KLCache]:
    """L = T²/n Σ p (log p - log q), of the student's logits z and the teacher's t (..., V) where `labelled` (...)

    `count` is the n of a larger batch, of which this one is a part. Raises ValueError for shapes that do not fit.
    """
    xp = get_array_module(z)
    log_q, log_p, scale = log_distributions(z, t, T, labelled, count)
    p = xp.exp(log_p)
    L = (T * scale * p * (log_p - log_q)).sum()
    return L, KLCache(p, xp.exp(log_q), scale, z.shape)


def kl_backward(dL: Array | float, cache: KLCache) -> Array:
    """dz = dL T/n (q - p)"""
    p, q, scale, shape = cache
    dz: Array = dL * scale * (q - p)
    return dz.reshape(shape)


def reverse_kl_forward(
    z: Array, t: Array, T: float, labelled: Array, count: int | None = None
) -> tuple[Array, ReverseKLCache]:
    """L = T²/n Σ q (log q - log p), with the arguments of kl_forward"""
    log_q, log_p, scale = log_distributions(z, t, T, labelled, count)
    q, d = get_array_module(z).exp(log_q), log_q - log_p
    return (T * scale * q * d).sum(), ReverseKLCache(q, d, scale, z.shape)


def reverse_kl_backward(dL: Array | float, cache: ReverseKLCache) -> Array:
    """dz = dL T/n q ∘ (d - Σ_v q_v d_v)"""
    q, d, scale, shape = cache
    dz: Array = dL * scale * q * (d - (q * d).sum(axis=-1, keepdims=True))
    return dz.reshape(shape)
