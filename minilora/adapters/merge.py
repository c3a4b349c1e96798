"""Merging adapters into plain layers, and back."""

from __future__ import annotations

import warnings

from ..backend import get_array_module
from ..nn import Embedding, Linear, Module, Parameter, Part
from ..process import blas_threads
from .base import Adapter


class MergedLinear(Linear):
    """A plain Linear with the adapter's merged W and b: as fast as the base. The adapter waits inside, with its base
    untouched, for unmerge()."""

    is_merged = True

    def __init__(self, adapter: Adapter) -> None:
        W, b = adapter.merged()
        bias = adapter.base.bias
        same = bias is not None and b is bias.data
        super().__init__(Parameter(W, trainable=False), bias if b is None or same else Parameter(b, trainable=False))
        self.adapter = adapter

    def children(self) -> dict[str, Module]:
        return {}  # the adapter is kept, but takes no part


class MergedEmbedding(Embedding):
    """A plain Embedding, as MergedLinear."""

    is_merged = True

    def __init__(self, adapter: Adapter) -> None:
        super().__init__(adapter.merged()[0])
        self.weight.trainable = False
        self.adapter = adapter

    def children(self) -> dict[str, Module]:
        return {}


def merge(model: Module) -> list[str]:
    """Put a layer with weight W₀ + ΔW in the place of every adapter; return the dotted paths.

    A merged embedding has a weight of its own. Where a head was tied to it, and was not adapted with it
    (ensure_weight_tying), the head keeps W₀, and so the two are untied; likewise for an adapted head. A warning says
    so, as the model has one large matrix more then.
    """
    modules = model.named_modules()  # a part of a fused layer is merged with the whole
    adapters = {path: m for path, m in modules if isinstance(m, Adapter) and not isinstance(m.base, Part)}
    sums: dict[tuple[Parameter, ...], Parameter] = {}
    with blas_threads():
        for path, adapter in adapters.items():
            merged = (MergedEmbedding if isinstance(adapter.base, Embedding) else MergedLinear)(adapter)
            key = adapter.weight, *adapter.own_parameters().values()
            merged.weight = sums.setdefault(key, merged.weight)  # tied before, tied after
            model[path] = merged
    left = set(model.named_parameters().values())
    untied = [path for path, adapter in adapters.items() if adapter.weight in left]
    if untied:
        warnings.warn(f"merged, {', '.join(untied)} is no longer tied: what shared its weight keeps it", stacklevel=2)
    return list(adapters)


def unmerge(model: Module) -> list[str]:
    """Put every merged adapter back on its W₀, which was never written to; return the dotted paths."""
    merged = {path: m for path, m in model.named_modules() if isinstance(m, MergedLinear | MergedEmbedding)}
    for path, layer in merged.items():
        W, adapter = layer.weight.data, layer.adapter
        if type(W) is not type(adapter.weight.data):  # the model has moved meanwhile
            adapter.to(get_array_module(W))
        if W.dtype != adapter.weight.data.dtype:
            adapter.astype(W.dtype)
        model[path] = adapter
    return list(merged)
