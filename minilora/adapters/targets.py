"""Which layers and parameters of a model the names mean that attaching is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from ..nn import Convolution, Embedding, FusedLinear, LayerNorm, Linear, Module, Parameter, Part, RMSNorm
from ..quantization import Quantized
from ..spelling import choose_from
from .base import Adapter

Targets: TypeAlias = str | Collection[str] | Mapping[str, int]
HEADS = "lm_head", "classifier", "classifier_transform"  # what "all-linear" leaves out
LAYERS = Linear, Embedding, LayerNorm, Convolution  # what an adapter can be on


def fused_above(model: Module, chosen: Collection[str]) -> list[str]:
    """The fused layers, not adapted yet, of which a part is chosen. Raises ValueError where the whole is too."""
    found = dict.fromkeys(path.rpartition(".")[0] for path in chosen)
    fused = [path for path in found if isinstance(model[path], FusedLinear)]
    both = next((path for path in fused if path in chosen), None)
    if both:
        raise ValueError(f"{both} and a part of it are both targets: choose the whole or its parts")
    return fused


def layer_at(model: Module, path: str) -> Any:
    """model[path], where the path may end in the name of a part of a fused layer."""
    above, _, name = path.rpartition(".")
    whole = model[above]
    return whole.part(name) if isinstance(whole, FusedLinear) else model[path]


def tied_heads(model: Module, embeddings: Collection[str], chosen: Collection[str]) -> dict[str, str]:
    """{path of a Linear: path of the Embedding, one of these, whose weight it shares}. Raises ValueError if such a
    Linear is chosen itself, or adapted."""
    plain = {path: m for path, m in model.named_modules() if isinstance(m, Linear | Embedding)}
    heads = {
        head: path
        for path in embeddings
        for head, m in plain.items()
        if isinstance(plain[path], Embedding) and isinstance(m, Linear) and m.weight is plain[path].weight
    }
    for head in heads:
        if head in chosen or isinstance(model[head], Adapter):
            raise ValueError(f"{head} shares the embedding's adapter, as the two are tied, so it can have no other")
    return heads


def choose(model: Module, targets: Targets) -> dict[str, int | None]:
    """{path: rank} of the layers that `targets` names, in the model's order; None where it gives no rank."""
    layers = {path: m for path, m in model.named_modules() if isinstance(m, (Adapter, *LAYERS))}
    if targets == "all-linear":
        plain = {path: m for path, m in layers.items() if isinstance(m, Linear) and not isinstance(m, Part)}
        targets = [path for path in plain if last(path) not in HEADS]
    fused = {path: m for path, m in layers.items() if isinstance(m, FusedLinear) and not model[path].is_adapter}
    layers |= {f"{path}.{name}": layer.part(name) for path, layer in fused.items() for name in layer.parts}
    ranks = targets if isinstance(targets, Mapping) else dict.fromkeys(listed(targets))
    called = {path: last(path.removesuffix(".token")) for path in layers}  # the token embedding: embed
    unmatched = [name for name in ranks if name not in called and name not in called.values()]
    if unmatched or not ranks:
        what = f"no layer is called {', '.join(map(repr, unmatched))}" if unmatched else "no target is named"
        raise ValueError(f"{what}: {choose_from(next(iter(unmatched), ''), called.values())}")
    return {path: ranks.get(path, ranks.get(name)) for path, name in called.items() if {path, name} & ranks.keys()}


def trained_beside_adapters(model: Module, names: str | Collection[str]) -> list[Parameter]:
    """The parameters that attach()'s `train` names."""
    found: list[Parameter] = []
    for name in listed(names):
        modules = [(path, m) for path, m in model.named_modules() if not isinstance(m, Adapter)]
        if name == "bias":
            matched = [p for path, p in model.named_parameters().items() if last(path) == "bias"]
        elif name == "norm":
            matched = [p for _, m in modules if isinstance(m, LayerNorm | RMSNorm) for p in m.parameters()]
        else:
            matched = [p for path, m in modules if last(path) == name for p in m.parameters()]
        if not matched:
            raise ValueError(f"train={name!r} matches nothing: 'bias', 'norm', or the last name of a module")
        if held := next((p for p in matched if isinstance(p.data, Quantized)), None):
            path = next(path for path, p in model.named_parameters().items() if p is held)
            raise ValueError(
                f"train={name!r}: {path} is held in {held.data.name}, which has no gradient: make its layer a target "
                "of an adapter, or load the model without quantize"
            )
        found += matched
    return found


def last(path: str) -> str:
    return path.rpartition(".")[2]


def listed(names: str | Collection[str]) -> Collection[str]:
    return [names] if isinstance(names, str) else names
