"""Layers of heads: selection of tokens or their mean, tanh, ReLU and a scale."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..backend import Array, get_array_module
from .costs import Costs, MetaArray
from .inputs import Inputs, Pass
from .module import Gradients, Module


class Select(Module):
    """y = x at the first real token of each sequence, or at the last if `last`: (B, T, C) -> (B, C)"""

    def __init__(self, last: bool) -> None:
        self.last = last

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        xp, (B, T, _) = get_array_module(x), x.shape
        real = xp.ones((B, T), dtype=bool) if inputs.padding is None else inputs.padding
        t = T - 1 - xp.argmax(real[:, ::-1], axis=1) if self.last else xp.argmax(real, axis=1)
        return ops.select_forward(x, xp.arange(B), t)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Array:
        return ops.select_backward(dy, cache)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        B, _, C = x.shape
        costs.keep(self, "b, t", costs.array(2, B, itemsize=8), "dx is dy at b and t, and 0 elsewhere")
        return costs.array(B, 1, C)


class MeanTokens(Module):
    """y = the mean of x over the real tokens of each sequence: (B, T, C) -> (B, C)"""

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Array]:
        real = get_array_module(x).ones(x.shape[:2], dtype=bool) if inputs.padding is None else inputs.padding
        return ops.mean_tokens_forward(x, real)

    def backward(self, dy: Array, cache: Array, grads: Gradients) -> Array:
        return ops.mean_tokens_backward(dy, cache)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        B, T, C = x.shape
        costs.keep(self, "shares", costs.array(B, T, 1), "dx is a share of dy at real tokens")
        return costs.array(B, 1, C)


class Labelled(Module):
    """y = x at the N positions inputs.labelled: (B, T, C) -> (N, C). Only these get logits. y = x if it is None."""

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Any]:
        return (x, None) if inputs.labelled is None else ops.select_forward(x, *inputs.labelled)

    def backward(self, dy: Array, cache: Any, grads: Gradients) -> Array:
        return dy.copy() if cache is None else ops.select_backward(dy, cache)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        return x  # as if every position had a label


class Tanh(Module):
    """y = tanh(x)"""

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Array]:
        return ops.tanh_forward(x)

    def backward(self, dy: Array, y: Array, grads: Gradients) -> Array:
        return ops.tanh_backward(dy, y)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        y = costs.array(*x.shape)
        costs.keep(self, "y", y, "dx = dy ∘ (1 - y²)")
        return y


class Relu(Module):
    """y = max(x, 0)"""

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, Array]:
        return ops.relu_forward(x)

    def backward(self, dy: Array, positive: Array, grads: Gradients) -> Array:
        return ops.relu_backward(dy, positive)

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        costs.keep(self, "x > 0", costs.array(*x.shape, itemsize=1), "dx = dy ∘ (x > 0)")
        return costs.array(*x.shape)


class Scale(Module):
    """y = c x, for a constant c"""

    def __init__(self, c: float) -> None:
        self.c = c

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, None]:
        return self.c * x, None

    def backward(self, dy: Array, cache: None, grads: Gradients) -> Array:
        return self.c * dy

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        return costs.array(*x.shape)
