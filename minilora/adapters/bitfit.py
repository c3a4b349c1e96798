"""BitFit: only the biases are trained (Ben Zaken et al., 2022). The maths is that of any bias, in ops/linear.py.

To train the model's own biases, use attach(..., train="bias"). As an adapter, the new biases are separate from the
unchanged base, so they can be merged, unmerged, saved to a file of their own, and switched.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from .. import ops
from ..backend import Array, Rng, get_array_module
from ..nn import FusedLinear, Gradients, Inputs, LayerNorm, Linear, Module, Parameter, Pass
from ..ops.rows import rows
from .base import Adapter, Law, relative_difference
from .statements import Kept, Keys, Products, Slot


def sum_over_rows(adapter: BitFitLinear, x: Array, dy: Array, grads: Gradients) -> float:
    """db = Σ dy: every row adds b."""
    return relative_difference(grads[adapter.bitfit_b], rows(dy).sum(axis=0))


class BitFitCache(NamedTuple):
    base: Any
    learns: bool
    runs_base_backward: bool  # whether anything reads its dx or gradients


class BitFitLinear(Adapter):
    """y = x Wᵀ + b             W (out, in), frozen   b (out,), instead of the layer's own bias b₀

    At the start b = b₀. As b₀ is added already, y = base(x) + (b - b₀); nothing is kept for db = Σ dy.
    """

    variant = "bitfit"
    base_type: ClassVar[Any] = Linear
    peft_type = "BITFIT"  # ours: PEFT has no such file
    keys = Keys("init_weights", lacks=("bias", "ensure_weight_tying"))
    options = ()
    slots = (Slot("bitfit_b", "bias", ("n_out",)),)
    kept: ClassVar[tuple[Kept, ...]] = ()
    products = Products(forward="0", backward="0", gradients={})
    laws: ClassVar[dict[str, Law]] = {"db = Σ dy": sum_over_rows}
    bitfit_b: Parameter

    @classmethod
    def check(cls, base: Module, **options: Any) -> None:
        super().check(base, **options)
        if getattr(base, "bias", None) is None:
            raise ValueError("this layer has no bias, so bitfit has nothing to train: choose layers with one")

    @classmethod
    def start(cls, base: Module, *, rng: Rng, **options: Any) -> BitFitLinear:
        """Nothing is drawn from `rng`."""
        cls.check(base)
        return cls.of(base, {"bitfit_b": base.bias.data.copy()})  # type: ignore[attr-defined]

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, BitFitCache]:
        y, cb = self.base.forward(x, inputs, run)
        cb = cb._replace(needs_db=False)  # y does not depend on b₀
        needed = run.needs_dx or self.base.trainable
        return y + (self.bitfit_b.data - self.base.bias.data), BitFitCache(cb, self.bitfit_b.trainable, needed)

    def backward(self, dy: Array, cache: BitFitCache, grads: Gradients) -> Array | None:
        if cache.learns:
            grads.add(self.bitfit_b, ops.bias_gradients(dy))
        return self.base.backward(dy, cache.base, grads) if cache.runs_base_backward else None

    def merged(self) -> tuple[Array, Array | None]:
        """W as it is, and b"""
        return self.weight.data, self.bitfit_b.data

    @classmethod
    def join_parts(cls, base: FusedLinear, parts: list[Any]) -> Adapter:
        """The b of the parts one after another, with b₀ for a part that is not adapted."""
        each = [part.bitfit_b.data if part.is_adapter else part.bias.data for part in parts]
        return cls.of(base, {"bitfit_b": get_array_module(each[0]).concatenate(each)})


class BitFitLayerNorm(BitFitLinear):
    """y = g ∘ (x - μ) / σ + b          g (C,), frozen   b (C,)"""

    base_type = LayerNorm
