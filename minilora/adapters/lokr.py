"""LoKr: a frozen layer plus ΔW, a Kronecker product of two small matrices, the second whole or of low rank (Yeh et al.,
2024). The maths is in ops/lokr.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from .. import ops
from ..backend import Array, Rng, get_array_module
from ..nn import Gradients, Linear, Module, Parameter, Pass
from .base import Adapter, Law, same_share, uniform
from .parallel import Parallel
from .statements import Kept, Keys, Option, Products, Slot

EACH_ROW = "2 * i1 * o2 * (i2 + o1)"


class LoKrCache(NamedTuple):
    base: Any
    x: Array | None  # (..., in)    None where nothing is trained
    learns: frozenset[str]  # names of slots


class LoKrLinear(Parallel):
    """y = x W₀ᵀ + b + x ΔWᵀ        ΔW = s w₁ ⊗ w₂      w₁ (o₁, i₁)   w₂ (o₂, i₂)   s = α/r, though w₂ is not of rank r

    decompose_factor splits out = o₁ o₂ and in = i₁ i₂ (ops.lokr_sizes). At the start w₁ = 0, so y is the base's; the
    rest is uniform within ±1/√(number of columns), as in PEFT. A w₁ of low rank, PEFT's decompose_both, is refused.
    """

    variant = "lokr"
    peft_type, base_type, targets = "LOKR", Linear, ("q_proj", "v_proj")
    keys = Keys(
        "init_weights",
        inits=(True, False, "lycoris"),
        fixed={"decompose_both": False, "rank_dropout": 0.0, "module_dropout": 0.0},
        ignored=("use_effective_conv2d", "rank_dropout_scale"),
        lacks=("bias", "fan_in_fan_out", "ensure_weight_tying"),
    )
    options = (
        *(Option("r", "r", 8, "rank_pattern"), Option("alpha", "alpha", 8.0, "alpha_pattern")),
        Option("decompose_factor", "decompose_factor", -1),
    )
    slots: ClassVar[tuple[Slot, ...]] = (
        Slot("lokr_w1", "lokr_w1", ("o1", "i1")),
        Slot("lokr_w2", "lokr_w2", ("o2", "i2")),
    )
    kept = (Kept("x", "n_in", "dw₁ = s Σ dY (X w₂ᵀ)ᵀ, dw₂ = Σ dZᵀ X", ("lokr_w1", "lokr_w2")),)
    products = Products(EACH_ROW, EACH_ROW, {("lokr_w1",): EACH_ROW, ("lokr_w2",): "2 * i1 * o2 * i2"}, EACH_ROW)
    laws: ClassVar[dict[str, Law]] = {"⟨w₁, dw₁⟩ = ⟨w₂, dw₂⟩": same_share}
    examples: ClassVar[dict[str, dict[str, Any]]] = {"": {"r": 2, "alpha": 5}}
    lokr_w1: Parameter
    r: int
    alpha: float

    @classmethod
    def form(cls, base: Any, **options: Any) -> type[Adapter]:
        sizes = cls.sizes_for(base, cls.defaults() | options)
        return LoKrLinearLowRank if 2 * sizes["r"] < max(sizes["o2"], sizes["i2"]) else LoKrLinear

    @classmethod
    def sizes_for(cls, base: Any, options: Mapping[str, Any]) -> dict[str, int]:
        sizes, factor = super().sizes_for(base, options), options["decompose_factor"]
        (o1, o2), (i1, i2) = (ops.lokr_sizes(sizes[name], factor) for name in ("n_out", "n_in"))
        return sizes | {"o1": o1, "o2": o2, "i1": i1, "i2": i2}

    @classmethod
    def start(cls, base: Module, *, rng: Rng, **options: Any) -> LoKrLinear:
        cls.check(base, **options)
        return cls.of(base, uniform(cls, base, "lokr_w1", rng, **options), **options)

    def matrices(self) -> tuple[Array, Array, list[Array]]:
        """w₁ and w₂; and a and b where w₂ = a b"""
        w1, *rest = (parameter.data for parameter in self.own_parameters().values())
        return (w1, rest[0], []) if len(rest) == 1 else (w1, rest[0] @ rest[1], rest)

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, LoKrCache]:
        w1, w2, _ = self.matrices()
        y, x = ops.lokr_forward(x, w1, w2, self.alpha / self.r)
        return y, LoKrCache(None, x if self.learns else None, self.learns)

    def path_backward(self, dy: Array, cache: LoKrCache, grads: Gradients, needs_dx: bool) -> Array:
        (w1, w2, ab), s = self.matrices(), self.alpha / self.r
        dx, dZ = ops.lokr_backward(dy, w1, w2, s)
        if cache.x is not None and "lokr_w1" in cache.learns:
            grads.add(self.lokr_w1, ops.lokr_w1_gradients(dy, cache.x, w2, s))
        if cache.x is not None and cache.learns - {"lokr_w1"}:
            dw2 = ops.lokr_w2_gradients(dZ, cache.x)
            found = ops.lokr_low_rank_gradients(dw2, *ab) if ab else (dw2,)
            for slot, gradient in zip(self.slots[1:], found, strict=True):
                if slot.name in cache.learns:
                    grads.add(getattr(self, slot.name), gradient)
        return dx

    def delta(self) -> Array:
        """ΔW = s w₁ ⊗ w₂ (out, in)"""
        w1, w2, _ = self.matrices()
        return self.alpha / self.r * get_array_module(w1).kron(w1, w2)


class LoKrLinearLowRank(LoKrLinear):
    """w₂ = a b (o₂, r) (r, i₂), as PEFT has it where r is below half of w₂'s larger side."""

    base_type = Linear
    slots = (
        LoKrLinear.slots[0],
        *(Slot("lokr_w2_a", "lokr_w2_a", ("o2", "r")), Slot("lokr_w2_b", "lokr_w2_b", ("r", "i2"))),
    )
    kept = (LoKrLinear.kept[0]._replace(slots=("lokr_w1", "lokr_w2_a", "lokr_w2_b")),)
    products = LoKrLinear.products._replace(
        gradients={("lokr_w1",): EACH_ROW, ("lokr_w2_a", "lokr_w2_b"): "2 * i1 * o2 * i2"},
        once="2 * r * o2 * i2",
        backward_once="2 * r * o2 * i2",
        gradients_once={("lokr_w2_a", "lokr_w2_b"): "4 * r * o2 * i2"},
    )
