"""Merging adapters into plain layers, and back."""

from __future__ import annotations

import warnings
from typing import Any

from ..backend import Array
from ..nn import Conv1d, Conv2d, Convolution, Embedding, LayerNorm, Linear, Module, Parameter, Part
from ..process import blas_threads
from .base import Adapter


class Merged(Module):
    """A plain layer with the adapter's merged W and b: as fast as the base. It holds the adapter, with its unchanged
    base, for unmerge()."""

    is_merged = True
    adapter: Adapter

    def children(self) -> dict[str, Module]:
        return {}  # the adapter is stored, but not a child


class MergedLinear(Merged, Linear):
    """A plain Linear, as Merged says."""

    def __init__(self, adapter: Adapter) -> None:
        W, b = adapter.merged()
        bias = adapter.base.bias
        super().__init__(own(W, adapter.weight), bias if b is None else own(b, bias))
        self.adapter = adapter


class MergedEmbedding(Merged, Embedding):
    """A plain Embedding, as Merged says."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__(adapter.merged()[0])
        self.weight.trainable = False
        self.adapter = adapter


class MergedLayerNorm(Merged, LayerNorm):
    """A plain LayerNorm, as Merged says."""

    def __init__(self, adapter: Adapter) -> None:
        (g, b), base = adapter.merged(), adapter.base
        super().__init__(g, base.bias.data if b is None else b, base.eps)
        self.freeze()
        self.adapter = adapter


class MergedConvolution(Merged, Convolution):
    """A plain convolution, as Merged says."""

    def __init__(self, adapter: Adapter) -> None:
        (W, b), base = adapter.merged(), adapter.base
        self.weight, self.bias = own(W, base.weight), base.bias if b is None else own(b, base.bias)
        self.window, self.adapter = base.window, adapter


class MergedConv1d(MergedConvolution, Conv1d):
    """Of a Conv1d."""


class MergedConv2d(MergedConvolution, Conv2d):
    """Of a Conv2d."""


MERGED = {
    Linear: MergedLinear, Embedding: MergedEmbedding, LayerNorm: MergedLayerNorm, Conv1d: MergedConv1d,
    Conv2d: MergedConv2d,
}  # fmt: skip


def own(x: Array, of_base: Parameter | None) -> Parameter:
    """The base's Parameter where merging leaves it as it is, else one of the merged layer's own."""
    return of_base if of_base is not None and x is of_base.data else Parameter(x, trainable=False)


def merged_layer(adapter: Adapter) -> Any:
    """A plain layer that computes what the adapter does without dropout, and holds it. Raises ValueError if no single
    weight can express the adapter."""
    if not adapter.mergeable:
        raise ValueError(
            "this adapter acts on some tokens, and a weight acts on all: it cannot be merged; keep it as an adapter"
        )
    return next(merged for base, merged in MERGED.items() if isinstance(adapter.base, base))(adapter)


def to_merge(model: Module) -> dict[str, Adapter]:
    """{path: adapter}, in which those on parts of a fused layer are one on the whole."""
    modules = model.named_modules()
    return {path: m for path, m in modules if isinstance(m, Adapter) and not isinstance(m.base, Part)}


def merge(model: Module) -> list[str]:
    """Replace every adapter by a layer with the weight W₀ + ΔW; return the dotted paths.

    A merged embedding has a weight of its own. Where a head was tied to it, and was not adapted with it
    (ensure_weight_tying), the head keeps W₀, and so the two are untied; likewise for an adapted head. A warning says
    so, as the model has one large matrix more then. Raises ValueError, and leaves the model as it was, for an adapter
    that no weight can hold, such as an activated LoRA.
    """
    adapters = to_merge(model)
    sums: dict[tuple[Parameter, ...], Parameter] = {}
    with blas_threads():
        layers = {path: merged_layer(adapter) for path, adapter in adapters.items()}
    for path, adapter in adapters.items():
        model[path] = layers[path]
        key = adapter.weight, *adapter.own_parameters().values()
        layers[path].weight = sums.setdefault(key, layers[path].weight)  # tied before, tied after
    left = set(model.named_parameters().values())
    untied = [path for path, a in adapters.items() if a.weight in left and layers[path].weight is not a.weight]
    if untied:
        note = f"merged, {', '.join(untied)} is no longer tied: the layer that shared its weight keeps the unmerged one"
        warnings.warn(note, stacklevel=2)
    return list(adapters)


def unmerge(model: Module) -> list[str]:
    """Put every merged adapter back on its W₀, which was never written to; return the dotted paths."""
    merged: dict[str, Any] = {path: m for path, m in model.named_modules() if m.is_merged}
    for path, layer in merged.items():
        W, adapter = layer.weight, layer.adapter
        held = list(adapter.parameters())
        if any(p.xp is not W.xp for p in held):  # the model has moved meanwhile
            adapter.to(W.xp)
        if any(p.data.dtype != W.data.dtype for p in held):
            adapter.astype(W.data.dtype)
        model[path] = adapter
    return list(merged)
