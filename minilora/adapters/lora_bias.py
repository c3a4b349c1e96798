"""LoRA with a bias of its own (PEFT's `lora_bias`). The maths is in ops/lora_bias.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import ops
from ..backend import Array
from ..nn import FusedLinear, Gradients, Module, Parameter, Pass
from ..ops.rows import rows
from .base import Law, relative_difference
from .lora import LoRALinear
from .parallel import dropped
from .statements import Slot


def scaled_with_the_path(adapter: LoRABiasLinear, x: Array, dy: Array, grads: Gradients) -> float:
    """dc = s db: y depends on s c as on the base's bias b."""
    return relative_difference(grads[adapter.lora_B_bias], adapter.scaling * rows(dy).sum(axis=0))


class LoRABiasCache(NamedTuple):
    base: Any
    x: Array | None  # (..., in)   after dropout; None where A is frozen
    h: Array | None  # (N, r)      None where B is frozen
    learn_c: bool
    keep: Array | None  # (..., in)   the dropout mask


class LoRABiasLinear(LoRALinear):
    """y = x W₀ᵀ + b + s ((x Aᵀ) Bᵀ + c)        A (r, in)   B (out, r)   c (out,)   s = α/r, or α/√r (rsLoRA)

    At the start c = 0, and A and B are LoRA's. The layer must have a bias, as in PEFT, for c to be merged into.
    """

    variant = "lora-bias"
    keys = LoRALinear.keys._replace(inits=(True, False), fixed={**LoRALinear.keys.fixed, "lora_bias": True})
    start_options = ()
    slots = (*LoRALinear.slots, Slot("lora_B_bias", "lora_B.bias", ("n_out",)))  # type: ignore[assignment]
    laws: ClassVar[dict[str, Law]] = {**LoRALinear.laws, "dc = s db": scaled_with_the_path}
    lora_B_bias: Parameter

    @classmethod
    def check(cls, base: Module, **options: Any) -> None:
        super().check(base, **options)
        if getattr(base, "bias", None) is None:
            raise ValueError("this layer has no bias that lora_bias could be merged into: choose layers with one")

    def hold(self, base: Any, tensors: Mapping[str, Array | Parameter], **options: Any) -> None:
        super().hold(base, {"lora_B_bias": np.zeros(len(base.weight.data)), **tensors}, **options)

    def path_forward(self, x: Array, run: Pass) -> tuple[Array, LoRABiasCache]:  # type: ignore[override]
        x, keep = dropped(x, self.dropout, run.rng)
        A, B, c = self.lora_A, self.lora_B, self.lora_B_bias
        y, (x, h) = ops.lora_bias_forward(x, A.data, B.data, c.data, self.scaling)
        return y, LoRABiasCache(None, x if A.trainable else None, h if B.trainable else None, c.trainable, keep)

    def path_backward(self, dy: Array, cache: Any, grads: Gradients, needs_dx: bool) -> Array | None:
        if cache.learn_c:
            grads.add(self.lora_B_bias, ops.lora_bias_gradients(dy, self.scaling))
        return super().path_backward(dy, cache, grads, needs_dx)

    def merged(self) -> tuple[Array, Array | None]:
        """W + s B A and b + s c"""
        return self.dense() + self.delta(), self.base.bias.data + self.scaling * self.lora_B_bias.data

    @classmethod
    def join_parts(cls, base: FusedLinear, parts: list[Any]) -> LoRABiasLinear:
        """A and B as LoRA's, and the c of the parts one after another, with zeros for a part that is not adapted."""
        lora, xp = LoRALinear.join_parts(base, parts), parts[0].weight.xp
        each = [part.lora_B_bias.data if part.is_adapter else xp.zeros(len(part.weight.data)) for part in parts]
        return cls.of(base, {**lora.own_parameters(), "lora_B_bias": xp.concatenate(each)}, **lora.settings)
