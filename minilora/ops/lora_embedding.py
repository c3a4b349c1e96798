"""The low-rank update of a frozen embedding.

    h_n = A[:, id_n]        y = s h Bᵀ          ids (...) integers   A (r, V)   B (C, r)   h (N, r)   y (..., C)

which is y = ΔW[ids] with ΔW = s (B A)ᵀ (V, C): the update of lora.py for x = onehot(ids), where h = x Aᵀ is a look-up.

Backward, by the rules of a linear layer (linear.py) and of an embedding (embedding.py):

    y = (s h) Bᵀ            dB = dyᵀ (s h)              dh = s dy B
    h_n = A[:, id_n]        dA[:, v] = Σ_{n : id_n = v} dh_n

The columns of A for ids that are not in the batch have gradient 0. Ids are not differentiable: there is no dx. dB is
computed by lora_B_gradients.

At the start A = 0, and B is random: then dB = 0 and dA ≠ 0, so the first step changes only the rows of ΔW whose
ids were in the batch. (With B = 0 and a random A, it would change B, and with it every row.)

Source: Hu et al. (2021), "LoRA", equation 3, with x a one-hot vector; initialised as in their library, loralib.
"""

from ..backend import Array
from .embedding import embedding_gradients
from .lora import LoRACache
from .rows import rows


def lora_embedding_forward(ids: Array, A: Array, B: Array, s: float) -> tuple[Array, LoRACache]:
    """h = A[:, ids]ᵀ       y = s h Bᵀ.  The cache holds ids in the place of x, and h."""
    h = A.T[ids.reshape(-1)]
    return ((s * h) @ B.T).reshape(*ids.shape, len(B)), LoRACache(ids, h)


def lora_embedding_A_gradients(dy: Array, ids: Array, B: Array, s: float, V: int) -> Array:
    """dh = s dy B          dA[:, v] = Σ_{n : id_n = v} dh_n"""
    dh = s * (rows(dy) @ B)
    return embedding_gradients(dh, ids, V).T
