"""One Linear that computes several: [q | k | v] = qkv_proj(x), and its parts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

from .. import ops
from ..backend import Array, get_array_module
from .layers import Linear, LinearCache
from .module import Gradients, Module, Parameter


class FusedLinear(Linear):
    """A Linear whose rows are those of several, one after another: `parts`, {name: number of its rows}."""

    def __init__(self, weight: Array | Parameter, bias: Array | Parameter | None, parts: Mapping[str, int]) -> None:
        super().__init__(weight, bias)
        self.parts, self.ends = dict(parts), list(accumulate(parts.values()))

    def part(self, name: str) -> Part:
        """The Linear called `name`, which shares this W and b."""
        end = self.ends[list(self.parts).index(name)]
        return Part(self, slice(end - self.parts[name], end))

    def split(self, y: Array) -> list[Array]:
        """The columns (..., out) of each part."""
        parts: list[Array] = get_array_module(y).split(y, self.ends[:-1], axis=-1)
        return parts


class Part(Linear):
    """Some rows of a fused Linear: y = x W[rows]ᵀ + b[rows]. `weight` and `bias` are made at each call, as views of the
    fused layer's; the gradients go to the fused layer's Parameters."""

    def __init__(self, fused: FusedLinear, rows: slice) -> None:
        self.fused, self.rows = fused, rows

    @property
    def weight(self) -> Parameter:  # type: ignore[override]
        W = self.fused.weight
        return Parameter(W.data[self.rows], W.trainable)

    @property
    def bias(self) -> Parameter | None:  # type: ignore[override]
        b = self.fused.bias
        return None if b is None else Parameter(b.data[self.rows], b.trainable)

    def children(self) -> dict[str, Module]:
        return {}

    def backward(self, dy: Array, cache: LinearCache, grads: Gradients) -> Array | None:
        if cache.x is not None:
            self.add(grads, self.fused.weight, ops.linear_gradients(dy, cache.x))
        if cache.needs_db and self.fused.bias is not None:
            self.add(grads, self.fused.bias, ops.bias_gradients(dy))
        return super().backward(dy, cache._replace(x=None, needs_db=False), grads)

    def add(self, grads: Gradients, whole: Parameter, gradient: Array) -> None:
        """Add the gradient of these rows to that of the whole."""
        d = get_array_module(gradient).zeros_like(whole.data)
        d[self.rows] = gradient
        grads.add(whole, d)
