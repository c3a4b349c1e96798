"""(IA)³: a frozen layer, and a learned vector that rescales its outputs or its inputs (Liu et al., 2022). The maths is
in ops/ia3.py."""

# ruff: noqa: E741  (l is the paper's letter)

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import ops
from ..backend import Array, Rng
from ..nn import FusedLinear, Gradients, Inputs, Linear, Module, Parameter, Pass
from ..ops.rows import rows
from .base import Adapter, Law, relative_difference, sizes_of
from .statements import Kept, Keys, Products, Slot, shape


def rescales_y(adapter: IA3, x: Array, dy: Array, grads: Gradients) -> float:
    """l ∘ dl = Σ dy ∘ y: y is linear in l."""
    return relative_difference(adapter.ia3_l.data * grads[adapter.ia3_l], rows(dy * adapter.forward(x)[0]).sum(axis=0))


def rescales_x(adapter: IA3, x: Array, dy: Array, grads: Gradients) -> float:
    """l ∘ dl = Σ dx ∘ x: y depends on l ∘ x alone."""
    dx = adapter.backward(dy, adapter.forward(x)[1], Gradients())
    return relative_difference(adapter.ia3_l.data * grads[adapter.ia3_l], rows(dx * x).sum(axis=0))


class IA3(Adapter):
    """A vector l, of ones at the start."""

    variant = "ia3"
    peft_type = "IA3"
    keys = Keys("init_ia3_weights", lacks=("bias", "layers_to_transform", "layers_pattern", "ensure_weight_tying"))
    options = ()
    ia3_l: Parameter

    @classmethod
    def start(cls, base: Module, *, rng: Rng, **options: Any) -> IA3:
        """Nothing is drawn from `rng`."""
        cls.check(base)
        return cls.of(base, {slot.name: np.ones(shape(slot.shape, sizes_of(base))) for slot in cls.slots})


class IA3LinearCache(NamedTuple):
    base: Any
    u: Array | None  # (..., out)   None where l is frozen


class IA3Linear(IA3):
    """y = l ∘ (x Wᵀ + b)           l (out,)"""

    base_type = Linear
    targets = "k_proj", "v_proj"
    slots = (Slot("ia3_l", "ia3_l", ("n_out",), file_shape=("n_out", "1")),)
    kept = (Kept("u", "n_out", "dl = Σ dy ∘ u", ("ia3_l",)),)
    products = Products(forward="0", backward="0", gradients={})
    laws: ClassVar[dict[str, Law]] = {"l ∘ dl = Σ dy ∘ y": rescales_y}

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, IA3LinearCache]:
        u, cb = self.base.forward(x, inputs, run)
        y, u = ops.ia3_forward(u, self.ia3_l.data)
        return y, IA3LinearCache(cb, u if self.ia3_l.trainable else None)

    def backward(self, dy: Array, cache: IA3LinearCache, grads: Gradients) -> Array | None:
        if cache.u is not None:
            grads.add(self.ia3_l, ops.ia3_gradients(dy, cache.u))
        du = ops.ia3_backward(dy, self.ia3_l.data)
        return self.base.backward(du, cache.base, grads)

    def merged(self) -> tuple[Array, Array | None]:
        """l ∘ W (rows) and l ∘ b"""
        l, W, bias = self.ia3_l.data, self.dense(), self.base.bias
        return l[:, None] * W, None if bias is None else l * bias.data

    @classmethod
    def join_parts(cls, base: FusedLinear, parts: list[Any]) -> Adapter:
        """The vectors of the parts one after another, with ones for a part that is not adapted."""
        xp = parts[0].weight.xp
        each = [part.ia3_l.data if part.is_adapter else xp.ones(len(part.weight.data)) for part in parts]
        return cls.of(base, {"ia3_l": xp.concatenate(each)})


class IA3FeedForwardCache(NamedTuple):
    base: Any
    x: Array | None  # (..., in)    None where l is frozen
    needs_dx: bool


class IA3FeedForward(IA3):
    """y = (l ∘ x) Wᵀ + b           l (in,)         for the layers of PEFT's `feedforward_modules`"""

    base_type = Linear
    targets = ("down_proj",)
    modules_key = "feedforward_modules"
    slots = (Slot("ia3_l", "ia3_l", ("n_in",), file_shape=("1", "n_in")),)
    kept = (Kept("x", "n_in", "dl = Σ dz ∘ x", ("ia3_l",)),)
    products = Products(forward="0", backward="0", gradients={}, without_dx="2 * n_in * n_out")
    laws: ClassVar[dict[str, Law]] = {"l ∘ dl = Σ dx ∘ x": rescales_x}

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, IA3FeedForwardCache]:
        z, x = ops.ia3_forward(x, self.ia3_l.data)
        learns = self.ia3_l.trainable
        y, cb = self.base.forward(z, inputs, run.with_dx() if learns else run)  # dl needs dz
        return y, IA3FeedForwardCache(cb, x if learns else None, run.needs_dx)

    def backward(self, dy: Array, cache: IA3FeedForwardCache, grads: Gradients) -> Array | None:
        dz = self.base.backward(dy, cache.base, grads)
        if cache.x is not None:
            grads.add(self.ia3_l, ops.ia3_gradients(dz, cache.x))
        return ops.ia3_backward(dz, self.ia3_l.data) if cache.needs_dx else None

    def merged(self) -> tuple[Array, Array | None]:
        """l ∘ W (columns), and b as it is"""
        bias = self.base.bias
        return self.dense() * self.ia3_l.data, None if bias is None else bias.data
