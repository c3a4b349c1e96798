"""A path beside a layer that acts on some tokens of a text, and on others not: activated LoRA, routing by modality.

    y_n = path(x_n) where on_n, else 0              on (N,) true or false, for the N tokens

With P (n, N), the rows of the identity of the n tokens that are on, P x picks their rows, and Pᵀ puts rows back among
zeros. Backward, the one is the other's:

    y = Pᵀ path(P x)            dx = Pᵀ path_backward(P dy)

and of LoRA, with h = (P x) Aᵀ,

    dh = s (P dy) B       dx = Pᵀ (dh A)       dA = dhᵀ (P x)       dB = s (P dy)ᵀ h

Where a token is off, neither its x nor its dy takes part: the gradients are those of the other tokens alone, and it
costs no product.

Activated LoRA is on from the first token of the last occurrence of its invocation, a sequence of token ids, to the end;
in a text without it nowhere. Of a causal model everything before is then what the base computes, bit for bit, keys and
values too. No W + ΔW computes that, as W is the same for all tokens: it cannot be merged.

Source: Greenewald et al. (2025), "Activated LoRA: Fine-tuned LLMs for intrinsics"; the tokens that are on, PEFT's
`alora_invocation_tokens`.
"""

from collections.abc import Sequence

from ..backend import Array, get_array_module


def pick(x: Array, on: Array) -> Array:
    """P x (n, ...), the tokens of x that are on, of x (..., in) or of ids (...), where `on` has the axes of the ids."""
    return x[on]


def put_back(y: Array, on: Array) -> Array:
    """Pᵀ y: the rows of y (n, out) where `on` is true, zeros elsewhere."""
    whole = get_array_module(y).zeros((*on.shape, y.shape[-1]), dtype=y.dtype)
    whole[on] = y
    return whole


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
