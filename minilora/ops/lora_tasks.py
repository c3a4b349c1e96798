"""One A for several tasks, and a B for each of them: rows of task t have ΔW_t = s B_t A.

    h = x Aᵀ            y_t = s h_t B_tᵀ            x (N, in)   A (r, in)   B (tasks, out, r)   y (N, out)

The rows are sorted by task: h_t are those of task t, and `bounds` (tasks + 1,) says where they begin and end. Backward:

    dh_t = s dy_t B_t       dB_t = s dy_tᵀ h_t       dx = dh A       dA = Σ_t dh_tᵀ x_t = dhᵀ x

so every task teaches A, and a task without rows gets dB_t = 0. x meets A in one product, in each direction.

What it saves: r in + K r out numbers for K tasks, instead of K r (in + out), and as many of the gradients and of the
optimizer; not FLOPs, as a row passes one A and one B either way. Where each row is asked for all tasks, h is made once
and not K times: 2 r in + K 2 r out for a row, instead of K 2 r (in + out).

Source: Tian et al. (2024), "HydraLoRA", whose router is left out: the task of a row is given.
"""

from itertools import pairwise

from ..backend import Array, get_array_module
from .lora import LoRACache


def lora_tasks_forward(x: Array, A: Array, B: Array, s: float, bounds: Array) -> tuple[Array, LoRACache]:
    """h = x Aᵀ        y_t = s h_t B_tᵀ"""
    h = x @ A.T
    return by_task(s * h, B.swapaxes(1, 2), bounds), LoRACache(x, h)


def lora_tasks_backward(dy: Array, A: Array, B: Array, s: float, bounds: Array) -> tuple[Array, Array]:
    """dh_t = s dy_t B_t     dx = dh A        Returns dx and dh (N, r): dA = dhᵀ x is lora_A_gradients(dh, x)."""
    dh = s * by_task(dy, B, bounds)
    return dh @ A, dh


def lora_tasks_B_gradients(dy: Array, h: Array, s: float, bounds: Array) -> Array:
    """dB_t = s dy_tᵀ h_t        (tasks, out, r)"""
    return get_array_module(dy).stack([s * dy[i:j].T @ h[i:j] for i, j in pairwise(bounds.tolist())])


def by_task(x: Array, W: Array, bounds: Array) -> Array:
    """x_t W_t of the rows of each task, for W (tasks, n, m)."""
    each = [x[i:j] @ W[t] for t, (i, j) in enumerate(pairwise(bounds.tolist()))]
    return get_array_module(x).concatenate(each)
