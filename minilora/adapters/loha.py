"""LoHa: a frozen layer plus ΔW, the elementwise product of two low-rank matrices (Yeh et al., 2024). The maths is in
ops/loha.py.

PEFT's names: hada_w1_a is B₁, hada_w1_b is A₁, hada_w2_a is B₂, and hada_w2_b is A₂.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from .. import ops
from ..backend import Array, Rng
from ..nn import Gradients, Linear, Module, Pass
from .base import Law, same_share, uniform
from .parallel import Parallel
from .statements import Kept, Keys, Option, Products, Slot

B, A = ("hada_w1_a", "hada_w2_a"), ("hada_w1_b", "hada_w2_b")


class LoHaCache(NamedTuple):
    base: Any
    x: Array | None  # (..., in)    None where A₁ and A₂ are frozen
    h: Array | None  # (N, r²)      None where B₁ and B₂ are frozen
    learns: frozenset[str]  # names of slots


class LoHaLinear(Parallel):
    """y = x W₀ᵀ + b + x ΔWᵀ        ΔW = s (B₁A₁) ∘ (B₂A₂)      A₁, A₂ (r, in)   B₁, B₂ (out, r)   s = α/r

    At the start A₂ = 0, so y is the base's; A₁ is uniform within ±1/√in, and B₁ and B₂ within ±1/√r, as in PEFT. PEFT
    rounds s to float32: in float64 its layer computes the same where α/r is a float32, else a ΔW that is off by 6e-8.
    """

    variant = "loha"
    peft_type = "LOHA"
    keys = Keys(
        "init_weights",
        fixed={"rank_dropout": 0.0, "module_dropout": 0.0},
        ignored=("use_effective_conv2d",),
        lacks=("bias", "fan_in_fan_out", "ensure_weight_tying"),
    )
    base_type = Linear
    targets = "q_proj", "v_proj"
    options = Option("r", "r", 8, "rank_pattern"), Option("alpha", "alpha", 8.0, "alpha_pattern")
    slots = (
        *(Slot("hada_w1_a", "hada_w1_a", ("n_out", "r")), Slot("hada_w1_b", "hada_w1_b", ("r", "n_in"))),
        *(Slot("hada_w2_a", "hada_w2_a", ("n_out", "r")), Slot("hada_w2_b", "hada_w2_b", ("r", "n_in"))),
    )
    kept = Kept("x", "n_in", "dA = dhᵀ x", A), Kept("h", "r * r", "dB = s dyᵀ h", B)
    products = Products(
        forward="2 * r * r * (n_in + n_out)",
        backward="2 * r * r * (n_in + n_out)",
        without_dx="2 * r * r * (n_in + n_out)",
        gradients={A: "2 * r * r * n_in", B: "2 * r * r * n_out"},
    )
    laws: ClassVar[dict[str, Law]] = {"⟨B₁, dB₁⟩ = ⟨A₁, dA₁⟩ = ⟨B₂, dB₂⟩ = ⟨A₂, dA₂⟩": same_share}
    examples: ClassVar[dict[str, dict[str, Any]]] = {"": {"r": 3, "alpha": 5}, " of rank 1": {"r": 1, "alpha": 5}}
    r: int
    alpha: float

    @classmethod
    def start(cls, base: Module, *, rng: Rng, **options: Any) -> LoHaLinear:
        cls.check(base, **options)
        return cls.of(base, uniform(cls, base, "hada_w2_b", rng, **options), **options)

    @property
    def tensors(self) -> tuple[Array, Array, Array, Array]:
        """B₁ (out, r), A₁ (r, in), B₂ (out, r), A₂ (r, in)"""
        B1, A1, B2, A2 = (parameter.data for parameter in self.own_parameters().values())
        return B1, A1, B2, A2

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, LoHaCache]:
        y, (x, h) = ops.loha_forward(x, *self.tensors, self.alpha / self.r)
        learns = self.learns
        return y, LoHaCache(None, x if learns.intersection(A) else None, h if learns.intersection(B) else None, learns)

    def path_backward(self, dy: Array, cache: LoHaCache, grads: Gradients, needs_dx: bool) -> Array:
        (B1, A1, B2, A2), s = self.tensors, self.alpha / self.r
        dx, dh = ops.loha_backward(dy, B1, A1, B2, A2, s)
        found: dict[str, Array] = {}
        if cache.x is not None:
            found |= zip(A, ops.loha_A_gradients(dh, cache.x, A1, A2), strict=True)
        if cache.h is not None:
            found |= zip(B, ops.loha_B_gradients(dy, cache.h, B1, B2, s), strict=True)
        for name in found.keys() & cache.learns:
            grads.add(getattr(self, name), found[name])
        return dx

    def delta(self) -> Array:
        """ΔW = s (B₁A₁) ∘ (B₂A₂) (out, in)"""
        B1, A1, B2, A2 = self.tensors
        return self.alpha / self.r * (B1 @ A1) * (B2 @ A2)

    def factors(self) -> tuple[Array, Array, float]:
        return *ops.loha_factors(*self.tensors), self.alpha / self.r
