"""Attaching adapters to the layers of a model: visible assignment, in a loop.

model.freeze()
model["block_0.attention.q_proj"] = LoRALinear(model["block_0.attention.q_proj"], r=8, alpha=16, rng=rng)
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..nn import Embedding, FusedLinear, LayerNorm, Linear, Module, Parameter, Part, RMSNorm
from ..spelling import choose_from
from .base import Adapter, variants
from .lora import TiedLoRALinear
from .parts import Parts

HEADS = "lm_head", "classifier", "classifier_transform"  # what "all-linear" leaves out, as in PEFT


def wasted_rank(ranks: Mapping[str, tuple[int, int]]) -> str:
    """A note on the layers whose rank is more than they can use, of {layer: (rank, min(in, out))}; "" if none is."""
    above = {name: pair for name, pair in ranks.items() if pair[0] > pair[1]}
    if not above:
        return ""
    name, (r, most) = next(iter(above.items()))
    others = f" (and of {len(above) - 1} more)" if len(above) > 1 else ""
    return f"rank {r} of {name}{others} is above {most}, the smaller side of its weight: the rest is wasted"


def attach_lora(
    model: Module,
    targets: str | Collection[str] | Mapping[str, int] = ("q_proj", "v_proj"),
    r: int = 8,
    alpha: float = 16,
    *,
    rng: np.random.Generator,
    dropout: float = 0.0,
    rslora: bool = False,
    init: str = "uniform",
    train: Collection[str] = (),
    ensure_weight_tying: bool = False,
) -> list[str]:
    """Freeze the model and put an adapter in the place of every target; return the dotted paths replaced.

    `targets`: last names, exactly ("q_proj"; "embed" for the token embedding); or "all-linear", every Linear but those
    of HEADS; or a dict from last names or dotted paths to ranks. `train` names what else learns: "bias" (every bias),
    "norm" (every gain and bias of a norm), or the last name of a module, such as "lm_head".
    An adapter of an embedding acts on the input alone, also where a head is tied to it. With `ensure_weight_tying`
    (PEFT's name for it) such a head is adapted too, by the same A and B: TiedLoRALinear.
    Called again, it adapts further layers: every adapter learns then, one that was frozen meanwhile too, and of the
    rest only what this call's `train` names.
    One warning names the layers whose rank is above min(in, out), which adds numbers to train and nothing to learn.
    Raises ValueError, and leaves the model as it was, when a target matches nothing or is adapted already, when a rank
    is below 1, when there is nothing tied, and for an `rng` that is no generator.
    """
    chosen = choose(model, targets, r)
    extra = trained_beside_adapters(model, train)
    options: dict[str, Any] = {"alpha": alpha, "dropout": dropout, "rslora": rslora, "init": init, "rng": rng}
    layers = {path: layer_at(model, path) for path in chosen}
    for path, rank in chosen.items():
        try:
            adapter_for(layers[path]).check(layers[path], r=rank, **options)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    heads = tied_heads(model, chosen) if ensure_weight_tying else {}
    note = wasted_rank({path: (rank, min(layers[path].weight.data.shape)) for path, rank in chosen.items()})
    if note:
        warnings.warn(note, stacklevel=2)
    adapters = [module for _, module in model.named_modules() if isinstance(module, Adapter)]
    model.freeze()
    for path in fused_above(model, chosen):
        model[path] = Parts(model[path])  # type: ignore[arg-type]
    for path, rank in chosen.items():
        adapter = adapter_for(model[path]).start(model[path], r=rank, **options)
        model[path] = adapter
        adapters.append(adapter)
    for head, embedding in heads.items():
        model[head] = TiedLoRALinear(model[head], model[embedding], dropout)  # type: ignore[arg-type]
    for parameter in [*extra, *(p for adapter in adapters for p in adapter.own_parameters().values())]:
        parameter.trainable = True
    return [*chosen, *heads]


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


def adapter_for(base: Module, variant: str = "lora") -> type[Adapter]:
    """The class of a variant for a layer. Raises ValueError where it has none, or the layer is adapted already."""
    classes = variants()[variant]
    found = next((cls for cls in classes if isinstance(base, cls.base_type)), None)
    return found or classes[0]  # whose check() says what is wrong


def tied_heads(model: Module, chosen: Collection[str]) -> dict[str, str]:
    """{path of a Linear: path of the chosen Embedding whose weight it shares}. Raises ValueError where there is none,
    or where it is to be adapted, or is, by itself."""
    plain = {path: m for path, m in model.named_modules() if isinstance(m, Linear | Embedding)}
    heads = {
        head: path
        for path in chosen
        for head, m in plain.items()
        if isinstance(plain[path], Embedding) and isinstance(m, Linear) and m.weight is plain[path].weight
    }
    if not heads:
        raise ValueError("ensure_weight_tying: no target is an embedding that a head is tied to; it is called 'embed'")
    for head in heads:
        if head in chosen or isinstance(model[head], Adapter):
            raise ValueError(f"ensure_weight_tying: {head} has the embedding's adapter, so it can have no other")
    return heads


def choose(model: Module, targets: str | Collection[str] | Mapping[str, int], r: int) -> dict[str, int]:
    """{path: rank} of the layers that `targets` names, in the model's order."""
    layers = {path: m for path, m in model.named_modules() if isinstance(m, Adapter | Linear | Embedding)}
    if targets == "all-linear":
        whole = {path: m for path, m in layers.items() if isinstance(m, Linear) and not isinstance(m, Part)}
        targets = {path: r for path in whole if last(path) not in HEADS}
    elif isinstance(targets, str):
        targets = [targets]
    fused = {path: m for path, m in layers.items() if isinstance(m, FusedLinear) and not model[path].is_adapter}
    layers |= {f"{path}.{name}": layer.part(name) for path, layer in fused.items() for name in layer.parts}
    ranks = targets if isinstance(targets, Mapping) else dict.fromkeys(targets, r)
    called = {path: last(path.removesuffix(".token")) for path in layers}  # the token embedding: embed
    unmatched = [name for name in ranks if name not in called and name not in called.values()]
    if unmatched or not ranks:
        what = f"no layer is called {', '.join(map(repr, unmatched))}" if unmatched else "no target is named"
        raise ValueError(f"{what}: {choose_from(''.join(unmatched[:1]), called.values())}")
    return {path: ranks.get(path, ranks.get(name, r)) for path, name in called.items() if {path, name} & ranks.keys()}


def trained_beside_adapters(model: Module, names: Collection[str]) -> list[Parameter]:
    """The parameters that `names` names, as attach_lora's `train` says."""
    found: list[Parameter] = []
    for name in [names] if isinstance(names, str) else names:
        modules = [(path, m) for path, m in model.named_modules() if not isinstance(m, Adapter)]
        if name == "bias":
            matched = [p for path, p in model.named_parameters().items() if last(path) == "bias"]
        elif name == "norm":
            matched = [p for _, m in modules if isinstance(m, LayerNorm | RMSNorm) for p in m.parameters()]
        else:
            matched = [p for path, m in modules if last(path) == name for p in m.parameters()]
        if not matched:
            raise ValueError(f"train={name!r} matches nothing: 'bias', 'norm', or the last name of a module")
        found += matched
    return found


def last(path: str) -> str:
    return path.rpartition(".")[2]
