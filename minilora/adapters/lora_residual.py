"""LoRA on the residual of W, for initialisations that take A and B from W."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from .. import ops
from ..backend import Array, get_array_module
from ..nn import FusedLinear, Gradients, Linear, Parameter, Pass
from .base import Law, preserve_trainable, relative_difference
from .lora import LoRALinear, LoRALinearCache
from .lora_base import INITS, LoRA, scale
from .statements import Option, Slot


def lora_of_twice_the_rank(adapter: ResidualLoRALinear, x: Array, dy: Array, grads: Gradients) -> float:
    return relative_difference(adapter.forward(x)[0], adapter.in_file().forward(x)[0])


def lora_beside_the_residual(adapter: ResidualLoRALinear, x: Array, dy: Array, grads: Gradients) -> float:
    A, B, A0, B0 = (parameter.data for parameter in adapter.own_parameters().values())
    s, bias = adapter.scaling, adapter.base.bias
    residual = Linear(adapter.dense() - s * (B0 @ A0), None if bias is None else bias.data)
    lora = LoRALinear.of(residual, {"lora_A": A, "lora_B": B}, r=adapter.r, alpha=adapter.alpha, rslora=adapter.rslora)
    return relative_difference(adapter.forward(x)[0], lora.forward(x)[0])


class ResidualLoRALinear(LoRALinear):
    """y = x W₀ᵀ + b + s (x Aᵀ) Bᵀ - s (x A₀ᵀ) B₀ᵀ       A₀ (r, in)   B₀ (out, r)   the start of A and B, frozen

    LoRA on the residual W₀ - s B₀ A₀, for the initialisations that take A₀ and B₀ from W (PiSSA, OLoRA, CorDA,
    LoRA-GA). W₀ is not changed: A₀ and B₀ are stored instead, so merging and unmerging change no bit of it, and other
    adapters share it. This costs r (in + out) values, and as many multiplications for each row in each pass.
    At the start both paths are the same products, whose difference is 0, so y is the base's to the bit. Dropout acts on
    the path of A and B only, as in PEFT, so with it y is not the base's even at the start.

    ΔW = s (B A - B₀ A₀) = s [B | -B₀] [A ; A₀], a plain LoRA of rank 2r, and that is what the file holds. A file of
    PEFT's own "pissa" or "olora" holds A and B only: A₀ and B₀ are then recomputed from the base.
    """

    base_type = Linear
    keys = LoRA.keys._replace(inits=("pissa", "olora"), wrong_transposed=("olora",))
    inits = tuple(sorted((name for name, init in INITS.items() if init.takes_from_W), key=lambda name: name != "pissa"))
    options = (*LoRA.options, Option("init", "init_lora_weights", inits[0]))
    slots = (  # type: ignore[assignment]
        *LoRALinear.slots,
        Slot("lora_A0", "", ("r", "n_in"), trained=False),
        Slot("lora_B0", "", ("n_out", "r"), trained=False),
    )
    products = LoRALinear.products._replace(
        forward="4 * r * (n_in + n_out)",
        backward="4 * r * (n_in + n_out)",
    )
    laws: ClassVar[dict[str, Law]] = {
        **LoRA.laws,
        "LoRA beside W₀ - s B₀ A₀": lora_beside_the_residual,
        "a residual LoRA is a LoRA of rank 2r": lora_of_twice_the_rank,
    }
    examples: ClassVar[dict[str, dict[str, Any]]] = {
        "": {"r": 3, "alpha": 5, "init": "pissa"},
        " with dropout": {"r": 3, "alpha": 5, "init": "pissa", "dropout": 0.4},
        ", OLoRA, rsLoRA": {"r": 3, "alpha": 5, "init": "olora", "rslora": True},
    }
    lora_A0: Parameter
    lora_B0: Parameter
    init: str

    @classmethod
    def computed(cls, base: Any, **options: Any) -> dict[str, Array]:
        """A₀ and B₀, from the base."""
        given = cls.defaults() | options
        A, B, _ = cls.begin(base, given["init"], given["r"], scale(given["r"], given["alpha"], given["rslora"]))
        return {"lora_A0": A, "lora_B0": B}

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, LoRALinearCache]:
        y_start, _ = ops.lora_forward(x, self.lora_A0.data, self.lora_B0.data, self.scaling)
        y, cache = super().path_forward(x, run)
        y -= y_start
        return y, cache

    def path_backward(self, dy: Array, cache: LoRALinearCache, grads: Gradients, needs_dx: bool) -> Array | None:
        dx = super().path_backward(dy, cache, grads, needs_dx)
        if dx is not None:
            dx -= ops.lora_backward(dy, self.lora_A0.data, self.lora_B0.data, self.scaling)[0]
        return dx

    def in_file(self) -> LoRALinear:
        """s [B | -B₀] [A ; A₀] as a plain LoRA of rank 2r and the same s"""
        A, B, _ = self.factors()
        alpha = self.alpha * (math.sqrt(2) if self.rslora else 2)
        options = {"r": 2 * self.r, "alpha": alpha, "dropout": self.dropout, "rslora": self.rslora}
        with preserve_trainable(self.base):
            return LoRALinear.of(self.base, {"lora_A": A, "lora_B": B}, **options)

    @classmethod
    def join_parts(cls, base: FusedLinear, parts: list[Any]) -> LoRALinear:
        return LoRALinear.join_parts(base, [part.in_file() if part.is_adapter else part for part in parts])

    def delta(self) -> Array:
        """ΔW = s (B A - B₀ A₀) (out, in), exactly 0 at the start, which one product of the factors need not be"""
        return self.scaling * (self.lora_B.data @ self.lora_A.data - self.lora_B0.data @ self.lora_A0.data)

    def factors(self) -> tuple[Array, Array, float]:
        """ΔW = s [B | -B₀] [A ; A₀]"""
        xp = get_array_module(self.lora_A.data)
        A = xp.concatenate([self.lora_A.data, self.lora_A0.data])
        B = xp.concatenate([self.lora_B.data, -self.lora_B0.data], axis=1)
        return A, B, self.scaling
