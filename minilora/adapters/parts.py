"""Adapters on parts of a fused layer: GPT-2's and Phi-3's q_proj and v_proj are rows of their qkv_proj."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..backend import Array, get_array_module
from ..nn import Costs, FusedLinear, Gradients, Inputs, Linear, MetaArray, Module, Parameter, Pass
from ..nn.module import join
from ..quantization import dense
from .base import Adapter, preserve_trainable


class Parts(Adapter):
    """y = [y₁ | y₂ | ...], each yᵢ of a part of the frozen fused `base`, adapted or not. A part's path is the layer's
    and its own name: qkv_proj.q_proj."""

    slots, options, acts_on_some_tokens = (), (), True

    def __init__(self, base: FusedLinear) -> None:
        base.freeze()
        self.base = base
        self.parts: dict[str, Any] = {name: base.part(name) for name in base.parts}

    def children(self) -> dict[str, Module]:
        return {"base": self.base, **self.parts}

    def replace(self, name: str, module: Module) -> None:
        self.parts[name] = module

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        yield from super().named_modules(prefix)
        for name, part in self.parts.items():
            yield from part.named_modules(join(prefix, name))

    def own_parameters(self) -> dict[str, Parameter]:
        return {f"{name}.{slot}": p for name, part in self.parts.items() for slot, p in part.own_parameters().items()}

    def forward(self, x: Array, inputs: Inputs = Inputs(), run: Pass = Pass()) -> tuple[Array, list[Any]]:
        ys, caches = zip(*(part.forward(x, inputs, run) for part in self.parts.values()), strict=True)
        return get_array_module(x).concatenate(ys, axis=-1), list(caches)

    def backward(self, dy: Array, cache: list[Any], grads: Gradients) -> Array | None:
        dx, *others = (
            part.backward(dy, c, grads)
            for part, dy, c in zip(self.parts.values(), self.base.split(dy), cache, strict=True)
        )
        for other in others:
            if dx is not None:
                dx += other
        return dx

    def costs(self, x: MetaArray, costs: Costs) -> MetaArray:
        widths = [part.costs(x, costs).shape[-1] for part in self.parts.values()]
        return costs.array(*x.shape[:-1], sum(widths))

    @property
    def mergeable(self) -> bool:
        return all(part.mergeable for part in self.parts.values() if part.is_adapter)

    def merged(self) -> tuple[Array, Array | None]:
        W, b = zip(*(part.merged() if part.is_adapter else plain(part) for part in self.parts.values()), strict=True)
        xp = self.weight.xp
        return xp.concatenate([dense(x) for x in W]), None if b[0] is None else xp.concatenate(b)

    def in_file(self) -> Adapter:
        """One adapter on the whole fused layer that computes the same, for PEFT's file, which has no parts. Raises
        ValueError if the parts differ in class or options, or their variant has no such form."""
        adapted = [part for part in self.parts.values() if part.is_adapter]
        if len({type(part) for part in adapted}) > 1:
            raise ValueError(
                "the adapters on the parts of a fused layer differ in class, so one cannot replace them all in a file"
            )
        with preserve_trainable(self.base):
            return adapted[0].join_parts(self.base, list(self.parts.values()))


def plain(layer: Linear) -> tuple[Array, Array | None]:
    return layer.dense(), None if layer.bias is None else layer.bias.data
