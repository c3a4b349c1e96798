"""A model as PEFT sees it: its layers, and what they are called in Hugging Face's model. Made once for a model."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...models.families import FAMILIES
from ...models.names import hf_name
from ...models.transformer import Transformer
from ...nn import Convolution, Embedding, LayerNorm, Linear, Part, RMSNorm

PREFIX = "base_model.model."  # of a tensor of one layer; after it comes the name of the layer
SHARED = "base_model."  # of a tensor that all layers share
TIED_NAMES = "embed_tokens", "lm_head"  # the names by which PEFT knows an embedding and a head that may be tied


class View(NamedTuple):
    """The layers with parameters, by our dotted paths."""

    model: Transformer
    layers: dict[str, Any]  # {path: the adapter where there is one, else the layer}; one for all parts of a fused layer
    bases: dict[str, Any]  # {path: the layer without its adapter}
    names: dict[str, str]  # {path: its name in Hugging Face's model}
    unused: tuple[str, ...]  # layers of Hugging Face's model that ours lacks, as they change no output of it
    modules: list[str]  # the names of the layers, `unused` ones too, and of the modules that hold them
    transposed: bool  # does Hugging Face's model store its linear weights as (in, out)?
    head: str  # the path of the head, if it shares the token embedding's weight, or ""
    head_bias: str  # the second name that Hugging Face's model has for the bias of the head, or ""

    def tensor(self, path: str, end: str) -> str:
        return f"{PREFIX}{self.names[path]}.{end}"

    def ties_by_name(self, path: str) -> bool:
        """Does PEFT see by its name that the layer may be tied?"""
        return self.names[path].rpartition(".")[2] in TIED_NAMES


def view_of(model: Transformer) -> View:
    kinds = Linear | Embedding | LayerNorm | RMSNorm | Convolution
    modules = {path: m for path, m in model.named_modules() if not isinstance(m, Part)}
    layers: dict[str, Any] = {path: model[path] for path, m in modules.items() if isinstance(m, kinds)}
    names = {path: hf_name(model, path) for path in layers}
    family = FAMILIES[model.family]
    unused = tuple(family.unused.get(model.config.head, ()))
    ways = [name.split(".") for name in (*names.values(), *unused)]
    head = layers.get("lm_head")
    bias = hf_name(model, "lm_head.bias") if head is not None else ""
    return View(
        model=model,
        layers=layers,
        bases={path: layer.base if layer.is_adapter else layer for path, layer in layers.items()},
        names=names,
        unused=unused,
        modules=list(dict.fromkeys(".".join(parts[: i + 1]) for parts in ways for i in range(len(parts)))),
        transposed=bool(family.transposed),
        head="lm_head" if head is not None and head.weight is layers["embed.token"].weight else "",
        head_bias=f"{PREFIX}{bias}" if head is not None and bias != f"{names['lm_head']}.bias" else "",
    )
