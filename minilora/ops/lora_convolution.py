"""The low-rank update of a frozen convolution.

    h = A ⋆ x        y = s B h            A (r, C, *kernel)   B (O, r)   h (N·L, r)   y (N, O, *L)

⋆ is the convolution of convolution.py, with the stride, padding and dilation of the base: A sees the windows that W
sees. B weighs the r numbers of one position, a convolution with a kernel of 1 and a stride of 1. On the windows X it is
the update of lora.py, with A₂ (r, C·K), the kernels of A as rows,

    h = X A₂ᵀ        y = s h Bᵀ           ΔW₂ = s B A₂ (O, C·K)

so ΔW is a kernel like W, and W + ΔW computes the same: merging is exact. Its rank, as a matrix over windows, is at most
r. Backward, by the rules of lora.py and of the windows:

    dB = dyᵀ (s h)        dh = s dy B        dA₂ = dhᵀ X        dX = dh A₂        dx by windows_backward

A convolution of B with the kernel of W would let an output see windows of windows: no kernel of W's size does that.

Source: Hu et al. (2021), "LoRA", equation 3, on the windows. The shapes are those of PEFT (tuners/lora/layer.py: B is
(O, r, 1, 1) there), after kohya's networks/lora.py. loralib (layers.py, ConvLoRA) factors another matrix, see
adapters/lora_conv.py.
"""

from ..backend import Array
from .convolution import Sizes, Window, channels_first, channels_last, kernels, windows, windows_backward
from .lora import LoRACache, lora_A_gradients, lora_B_gradients, lora_backward, lora_forward


def lora_convolution_forward(x: Array, A: Array, B: Array, s: float, window: Window) -> tuple[Array, LoRACache]:
    """h = X A₂ᵀ        y = s h Bᵀ.  The cache holds x in the place of X, and h."""
    y, (_, h) = lora_forward(windows(x, window), kernels(A), B, s)
    return channels_first(y), LoRACache(x, h)


def lora_convolution_backward(
    dy: Array, A: Array, B: Array, s: float, window: Window, shape: Sizes
) -> tuple[Array, Array]:
    """dh = s dy B     dX = dh A₂       Returns dx, of this shape, and dh (N·L, r), which dA needs."""
    dX, dh = lora_backward(channels_last(dy), kernels(A), B, s)
    return windows_backward(dX, window, shape), dh


def lora_convolution_A_gradients(dh: Array, x: Array, window: Window) -> Array:
    """dA₂ = dhᵀ X"""
    dA = lora_A_gradients(dh, windows(x, window))
    return dA.reshape(len(dA), x.shape[1], *window.kernel)


def lora_convolution_B_gradients(dy: Array, h: Array, s: float) -> Array:
    """dB = s dyᵀ h"""
    return lora_B_gradients(channels_last(dy), h, s)
