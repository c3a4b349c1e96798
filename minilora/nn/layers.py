"""Linear, the norms and Embedding: the ops with their parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .. import ops
from ..backend import Array
from ..quantization import Quantized, dense
from ..quantization.base import ALL, Rows
from .costs import Costs, MetaArray
from .inputs import Inputs, Pass
from .module import Gradients, Module, Parameter


def parameter(W: Array | Quantized) -> Parameter:
    """W as a Parameter, trainable unless W is Quantized."""
    return Parameter(W, trainable=not isinstance(W, Quantized))


class LinearCache(NamedTuple):
    x: Array | None  # (..., in)   for dW; None where W is frozen
    needs_db: bool
    needs_dx: bool


class Linear(Module):
    """y = x Wᵀ + b         x (..., in)   W (out, in)   b (out,), optional   y (..., out)

    W may be Quantized, and is decoded for each product then.
    """

    def __init__(self, weight: Array | Quantized | Parameter, bias: Array | Parameter | None = None) -> None:
        self.weight = weight if isinstance(weight, Parameter) else parameter(weight)
        self.bias = bias if isinstance(bias, Parameter) or bias is None else Parameter(bias)

    def dense(self, rows: Rows = ALL) -> Array:
        """W, or some of its rows."""
        return dense(self.weight.data, rows)

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, LinearCache]:
        W, b = self.weight.data, self.bias
        bias = None if b is None else b.data
        if isinstance(W, Quantized):
            y = ops.quantized_linear_forward(x, W, bias)
        else:
            y, x = ops.linear_forward(x, W, bias)
        return y, LinearCache(x if self.weight.trainable else None, b is not None and b.trainable, run.needs_dx)

    def backward(self, dy: Array, cache: LinearCache, grads: Gradients) -> Array | None:
        if cache.x is not None:
            grads.add(self.weight, ops.linear_gradients(dy, cache.x))
        if cache.needs_db and self.bias is not None:
            grads.add(self.bias, ops.bias_gradients(dy))
        if not cache.needs_dx:
            return None
        W = self.weight.data
        return ops.quantized_linear_backward(dy, W) if isinstance(W, Quantized) else ops.linear_backward(dy, W)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        (n_out, n_in), trained = self.weight.data.shape, self.weight.trainable
        if trained:
            costs.keep(self, "x", x, "dW = dyᵀ x")
        n = 2 * x.rows * n_in * n_out
        costs.multiply(self, "linear", {"y = x Wᵀ": n}, {"dx = dy W": n * x.needs_dx, "dW = dyᵀ x": n * trained})
        return costs.array(*x.shape[:-1], n_out)


class NormModuleCache(NamedTuple):
    norm: Any  # ops.layer_norm.NormCache
    needs_dg: bool
    needs_db: bool


class LayerNorm(Module):
    """y = g ∘ (x - μ) / σ + b          g, b (C,), b optional"""

    def __init__(self, weight: Array, bias: Array | None, eps: float = 1e-5) -> None:
        self.weight, self.bias, self.eps = Parameter(weight), None if bias is None else Parameter(bias), eps

    def dense(self) -> Array:
        """g: a norm's gain is never quantised."""
        return self.weight.data

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, NormModuleCache]:
        b = self.bias
        y, cache = ops.layer_norm_forward(x, self.weight.data, None if b is None else b.data, self.eps)
        return y, NormModuleCache(cache, self.weight.trainable, b is not None and b.trainable)

    def backward(self, dy: Array, cache: NormModuleCache, grads: Gradients) -> Array:
        if cache.needs_dg:
            grads.add(self.weight, ops.gain_gradients(dy, cache.norm))
        if cache.needs_db and self.bias is not None:
            grads.add(self.bias, ops.bias_gradients(dy))
        return ops.layer_norm_backward(dy, cache.norm, self.weight.data)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        return norm_costs(self, x, costs, {"μ": 2 * math.prod(x.shape), "σ²": 2 * math.prod(x.shape)})


class RMSNorm(Module):
    """y = g ∘ x / rms(x)               g (C,)"""

    def __init__(self, weight: Array, eps: float = 1e-5) -> None:
        self.weight, self.eps = Parameter(weight), eps

    @property
    def gain(self) -> Array:
        """g"""
        return self.weight.data

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, NormModuleCache]:
        y, cache = ops.rms_norm_forward(x, self.gain, self.eps)
        return y, NormModuleCache(cache, self.weight.trainable, False)

    def backward(self, dy: Array, cache: NormModuleCache, grads: Gradients) -> Array:
        if cache.needs_dg:
            grads.add(self.weight, ops.gain_gradients(dy, cache.norm))
        return ops.rms_norm_backward(dy, cache.norm, self.gain)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        return norm_costs(self, x, costs, {"rms²": 2 * math.prod(x.shape)})


class ZeroCentredRMSNorm(RMSNorm):
    """y = (1 + w) ∘ x / rms(x)         w (C,)          Gemma: weight decay pulls the gain to 1; dw = dg"""

    @property
    def gain(self) -> Array:
        """g = 1 + w"""
        return 1 + self.weight.data


class Identity(Module):
    """y = x, in the place of a norm that a model lacks."""

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, None]:
        return x, None

    def backward(self, dy: Array, cache: None, grads: Gradients) -> Array:
        return dy.copy()

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        return x


def norm_costs(norm: Module, x: MetaArray, costs: Costs, sums: dict[str, int]) -> MetaArray:
    """The costs of a norm with these `sums` ({formula: FLOPs}) in forward, and as many in a backward that runs."""
    needs_dx = x.needs_dx or norm.trainable
    costs.keep(norm, "x̂", costs.array(*x.shape), "dx through the norm, and dg")
    costs.keep(norm, "σ", costs.array(*x.shape[:-1], 1), "dx through the norm")
    costs.multiply(norm, "sums", sums, sums if needs_dx else {})
    return costs.array(*x.shape, needs_dx=needs_dx)


class Embedding(Module):
    """y = W[ids]                       W (V, C), which may be Quantized: of it the rows of the ids are decoded"""

    def __init__(self, weight: Array | Quantized) -> None:
        self.weight = parameter(weight)

    def dense(self, rows: Rows = ALL) -> Array:
        """W, or some of its rows."""
        return dense(self.weight.data, rows)

    def forward(self, ids: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Array | None]:
        W = self.weight.data
        if isinstance(W, Quantized):
            y = W.dense(ids.reshape(-1)).reshape(*ids.shape, -1)
        else:
            y, _ = ops.embedding_forward(ids, W)
        return y, ids if self.weight.trainable else None

    def backward(self, dy: Array, ids: Array | None, grads: Gradients) -> None:
        if ids is not None:
            grads.add(self.weight, ops.embedding_gradients(dy, ids, len(self.weight.data)))

    def costs(self, ids: MetaArray, costs: Costs) -> MetaArray:
        if self.weight.trainable:
            costs.keep(self, "ids", ids, "dW adds dy up by id")
        return costs.array(*ids.shape, self.weight.data.shape[1])
