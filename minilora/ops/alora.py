"""A low-rank path that acts on some tokens of a text, and on others not: activated LoRA, and routing by modality.

    y_n = on_n s (x_n Aᵀ) Bᵀ            on (N,) true or false; x, A, B, s and the shapes as in lora.py

With P (n, N), the rows of the identity of the n tokens that are on, P x picks their rows, and Pᵀ puts them back among
zeros:

    y = Pᵀ (s (P x) Aᵀ Bᵀ)              which is LoRA of P x, so backward

    dh = s (P dy) B       dx = Pᵀ (dh A)       dA = dhᵀ (P x)       dB = s (P dy)ᵀ h         h = (P x) Aᵀ

Where a token is off, neither its x nor its dy takes part: dA and dB are those of the other tokens alone, and it costs
no product.

Activated LoRA is on from the first token of the last occurrence of its invocation, a sequence of token ids, to the end;
in a text without it nowhere. Of a causal model everything before is then what the base computes, bit for bit, keys and
values too. No W + ΔW computes that, as W is the same for all tokens: it cannot be merged.

Source: Greenewald et al. (2025), "Activated LoRA: Fine-tuned LLMs for intrinsics"; the tokens that are on, PEFT's
`alora_invocation_tokens`.
"""

from collections.abc import Sequence

from ..backend import Array, get_array_module
from .lora import LoRACache, lora_backward, lora_forward
from .rows import like, rows


def alora_forward(x: Array, A: Array, B: Array, s: float, on: Array) -> tuple[Array, LoRACache]:
    """h = (P x) Aᵀ        y = Pᵀ (s h Bᵀ).  The cache holds P x (n, in) and h (n, r)."""
    y_on, cache = lora_forward(rows(x)[on], A, B, s)
    return like(put_back(y_on, on), x), cache


def alora_backward(dy: Array, A: Array, B: Array, s: float, on: Array) -> tuple[Array, Array]:
    """dh = s (P dy) B     dx = Pᵀ (dh A)        Returns dx and dh (n, r), which lora_A_gradients needs."""
    dx_on, dh = lora_backward(rows(dy)[on], A, B, s)
    return like(put_back(dx_on, on), dy), dh


def put_back(y_on: Array, on: Array) -> Array:
    """Pᵀ y: the rows of y where `on` is true, zeros elsewhere."""
    y = get_array_module(y_on).zeros((len(on), y_on.shape[-1]), dtype=y_on.dtype)
    y[on] = y_on
    return y


def from_last_occurrence(ids: Array, invocation: Sequence[int]) -> Array:
    """(B, T) bool: true from the first token of the last occurrence of `invocation` on, for ids (B, T)."""
    xp, (B, T), n = get_array_module(ids), ids.shape, len(invocation)
    if n > T:
        return xp.zeros((B, T), dtype=bool)
    starts = xp.ones((B, T - n + 1), dtype=bool)
    for i, token in enumerate(invocation):
        starts &= ids[:, i : T - n + 1 + i] == token
    last = T - n - xp.argmax(starts[:, ::-1], axis=1)
    return starts.any(axis=1)[:, None] & (xp.arange(T) >= last[:, None])
