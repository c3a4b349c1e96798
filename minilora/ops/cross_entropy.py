"""Cross-entropy of softmax(logits), averaged over the labelled positions.

    L = 1/n Σ_i (log Σ_v exp z_iv - z_i,t_i)            z, logits (..., V)   targets t (...)   L ()

over the n labelled positions, those with t_i ≠ IGNORE; for n = 0, L = 0 and dz = 0.

Backward: ∂/∂z_v log Σ_w exp z_w = softmax(z)_v, so

    dz_iv = dL/n (softmax(z_i)_v - [v = t_i])           0 where t_i = IGNORE

and every row of dz sums to 0: adding a constant to a row of logits changes nothing.

Source: Bridle (1990), "Probabilistic interpretation of feedforward classification network outputs".
"""

from typing import NamedTuple

from ..backend import Array, get_array_module
from .rows import row_max, rows

IGNORE = -100  # the target of a position without a label, as in PyTorch


class CrossEntropyCache(NamedTuple):
    P: Array  # (N, V)         softmax(z)
    targets: Array  # (N,)     with 0 in the place of IGNORE
    weight: Array  # (N, 1)    1/n, or 0 where ignored
    shape: tuple[int, ...]  # of the logits


def cross_entropy_forward(logits: Array, targets: Array, count: int | None = None) -> tuple[Array, CrossEntropyCache]:
    """L = 1/n Σ_i (log Σ_v exp z_iv - z_i,t_i)

    Where the batch is part of a larger one, `count` is the n of the larger one: the losses and the gradients of the
    parts then add up. Raises ValueError unless there is one target for each row of logits.
    """
    xp = get_array_module(logits)
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"logits {logits.shape} need targets {logits.shape[:-1]}, not {targets.shape}")
    z, targets = rows(logits), targets.reshape(-1)
    labelled = targets != IGNORE
    targets = xp.where(labelled, targets, 0)
    weight = (labelled / (count or xp.maximum(labelled.sum(), 1))).astype(z.dtype)
    z = z - row_max(z)  # softmax ignores shifts; exp must not overflow
    z_t = z[xp.arange(len(z)), targets]
    P = xp.exp(z, out=z)  # in place: it is the largest array of a forward
    Z = P.sum(axis=-1, keepdims=True)
    P /= Z
    L = (weight * (xp.log(Z[:, 0]) - z_t)).sum()
    return L, CrossEntropyCache(P, targets, weight[:, None], logits.shape)


def cross_entropy_backward(dL: Array | float, cache: CrossEntropyCache) -> Array:
    """dz = dL/n (softmax(z) - onehot(t))"""
    P, targets, weight, shape = cache
    weight = dL * weight
    dz = P * weight
    dz[get_array_module(P).arange(len(dz)), targets] -= weight[:, 0]
    return dz.reshape(shape)
