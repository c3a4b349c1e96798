"""LoRA on a convolution: a path parallel to the frozen W, with a kernel A, and a B at each position. The maths is in
ops/lora_convolution.py.

Two libraries give A and B two shapes (W (out, in, k, k), α and s = α/r as always):

    PEFT        A (r, in, k, k)   B (out, r, 1, 1)      ΔW = s B A₂, as here
    loralib     A (r k, in k)     B (out k, r k)        ΔW = s (B A), read off as (out, in, k, k)

loralib's product B A is (out k, in k), so that r is multiplied by k on either side, and the rows of its matrix are not
windows: each of the k rows of one output channel holds a k-th of a window's entries. With B₂ (out, r k²), which is B
read off in rows, and I_k the unit matrix, that is

    ΔW₂ = s B₂ (I_k ⊗ A)                                of rank r k² at most

which from_loralib() returns as A and B in PEFT's shapes. In 1-D B A has out k · in k entries and W out · in · k, so
loralib's Conv1d raises in its first forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..backend import Array
from ..nn import Conv1d, Conv2d, Convolution, Gradients, Inputs, MetaArray, Pass
from .base import Law, relative_difference
from .lora import LoRALinearCache
from .lora_base import LoRA
from .parallel import dropped
from .statements import Kept, Products, Slot


def exchange(adapter: LoRAConvolution, x: Array, dy: Array, grads: Gradients) -> float:
    """Bᵀ dB = dA₂ A₂ᵀ: an invertible factor that moves from B to A changes no output."""
    A, B = adapter.lora_A, adapter.lora_B
    return relative_difference(B.data.T @ grads[B], ops.kernels(grads[A]) @ ops.kernels(A.data).T)


def by_the_dense_gradient(adapter: LoRAConvolution, x: Array, dy: Array, grads: Gradients) -> float:
    """dA₂ = s Bᵀ G, with G what the gradient of W₂ would be."""
    G = ops.kernels(ops.convolution_gradients(dy, x, adapter.base.window))
    dA = ops.kernels(grads[adapter.lora_A])
    return relative_difference(dA, adapter.scaling * adapter.lora_B.data.T @ G)


class LoRAConvolution(LoRA):
    """y = W ⋆ x + b + s B (A ⋆ x)       A (r, in, *kernel)   B (out, r)   s = α/r, or α/√r (rsLoRA)

    A has the kernel, stride, padding and dilation of the base. At the start y is the base's: B = 0, and A is uniform
    within ±1/√(in K), with K the size of a kernel, as in PEFT; or `init` is "gaussian". Dropout acts on the adapter's
    input only. `base`, a Conv1d or Conv2d, is frozen and kept.
    Raises ValueError as LoRALinear does, for a base that is of another type.
    """

    laws: ClassVar[dict[str, Law]] = {"Bᵀ dB = dA₂ A₂ᵀ": exchange, "dA₂ = s Bᵀ G": by_the_dense_gradient}
    examples: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"r": 3, "alpha": 5},
        " with dropout": {"r": 3, "alpha": 5, "dropout": 0.4},
        ", rsLoRA": {"r": 1, "alpha": 5, "rslora": True},
    }
    kept = (
        Kept("x", "n_in", "dA₂ = dhᵀ X, X the windows of x", ("lora_A",)),
        Kept("h", "r", "dB = s dyᵀ h", ("lora_B",)),
    )
    products = Products(
        forward="2 * r * (n_in * k + n_out)",
        backward="2 * r * (n_in * k + n_out)",
        without_dx="2 * r * (n_in * k + n_out)",
        gradients={("lora_A",): "2 * r * n_in * k", ("lora_B",): "2 * r * n_out"},
    )

    @classmethod
    def sizes_for(cls, base: Convolution, options: Mapping[str, Any]) -> dict[str, int]:
        """n_in and n_out, the channels; r; k1 and k2, the kernel along each axis, and k, its size."""
        n_out, n_in, *kernel = base.weight.data.shape
        along = {f"k{i}": n for i, n in enumerate(kernel, 1)}
        return {"n_in": n_in, "n_out": n_out, "r": cls.rank(options), **along, "k": int(np.prod(kernel))}

    def positions(self, y: MetaArray) -> tuple[int, ...]:
        N, _, *L = y.shape
        return N, *L

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, LoRALinearCache]:
        y, cb = self.base.forward(x, inputs, run)
        x, keep = dropped(x, self.dropout, run.rng)
        A, B, window = self.lora_A, self.lora_B, self.base.window
        y_lora, (x, h) = ops.lora_convolution_forward(x, A.data, B.data, self.scaling, window)
        y += y_lora
        return y, LoRALinearCache(cb, x if A.trainable else None, h if B.trainable else None, keep)

    def backward(self, dy: Array, cache: LoRALinearCache, grads: Gradients) -> Array | None:
        dx = self.base.backward(dy, cache.base, grads)
        A, B, window = self.lora_A, self.lora_B, self.base.window
        shape = cache.base.shape
        dx_lora, dh = ops.lora_convolution_backward(dy, A.data, B.data, self.scaling, window, shape)
        if cache.x is not None:
            grads.add(A, ops.lora_convolution_A_gradients(dh, cache.x, window))
        if cache.h is not None:
            grads.add(B, ops.lora_convolution_B_gradients(dy, cache.h, self.scaling))
        if dx is not None:
            dx += dx_lora if cache.keep is None else ops.dropout_backward(dx_lora, cache.keep)
        return dx

    def factors(self) -> tuple[Array, Array, float]:
        """A₂ (r, in K), B and s: ΔW as a matrix over windows"""
        return ops.kernels(self.lora_A.data), self.lora_B.data, self.scaling


class LoRAConv1d(LoRAConvolution):
    """LoRAConvolution of a Conv1d."""

    base_type = Conv1d
    slots = (
        Slot("lora_A", "lora_A.weight", ("r", "n_in", "k1")),
        Slot("lora_B", "lora_B.weight", ("n_out", "r"), file_shape=("n_out", "r", "1")),
    )


class LoRAConv2d(LoRAConvolution):
    """LoRAConvolution of a Conv2d."""

    base_type = Conv2d
    slots = (
        Slot("lora_A", "lora_A.weight", ("r", "n_in", "k1", "k2")),
        Slot("lora_B", "lora_B.weight", ("n_out", "r"), file_shape=("n_out", "r", "1", "1")),
    )


def from_loralib(A: Array, B: Array, k: int) -> tuple[Array, Array]:
    """A (r k², in, k, k) and B (out, r k²) of the same ΔW, of loralib's A (r k, in k) and B (out k, r k) on a Conv2d
    with kernels of k x k. The rank is higher by k², so for the same s = α/r α must be too."""
    rows = np.kron(np.eye(k, dtype=A.dtype), A)
    return rows.reshape(len(rows), -1, k, k), B.reshape(len(B) // k, -1)
