"""LoRA's path with a bias of its own, which is scaled with it.

    h = x Aᵀ        y = s (h Bᵀ + c)        x (..., in)   A (r, in)   B (out, r)   c (out,)   h (N, r)   y (..., out)

N is the number of rows of x, all axes but the last taken together; s is LoRA's. Beside W x + b it is a layer with the
weight W + s B A and the bias b + s c.

Backward: c is added to every row and multiplied by s, so

    dc = s Σ_n dy_n

It needs no array of the forward. dx, dA and dB do not see c: they are those of lora.py.

Source: Hugging Face PEFT, `lora_bias`: the bias of the linear layer that holds B. Hu et al. (2021) have none; it serves
to write the exact difference of two fully trained layers, whose biases differ too, as an adapter.
"""

from ..backend import Array
from .linear import bias_gradients
from .lora import LoRACache, lora_forward


def lora_bias_forward(x: Array, A: Array, B: Array, c: Array, s: float) -> tuple[Array, LoRACache]:
    """h = x Aᵀ        y = s h Bᵀ + s c"""
    y, cache = lora_forward(x, A, B, s)
    return y + s * c, cache


def lora_bias_gradients(dy: Array, s: float) -> Array:
    """dc = s Σ_n dy_n"""
    return s * bias_gradients(dy)
