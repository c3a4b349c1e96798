"""PEFT's two files: how they are read, and what the modules of a model and their tensors are called in them.

The names are those of PEFT 0.21.2 (utils/save_and_load.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...files import load_tensors, read_json
from ...models.hub import fetch, name_on_hub, pickled
from ...models.pretrained import their_name
from ...models.transformer import Transformer
from ...nn import Embedding, LayerNorm, Linear, Module, RMSNorm
from ..base import Adapter
from .config import check_config, first_match

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PAIR = re.compile(
    r"base_model\.model\.(?P<name>.{1,200})\.(lora_(?P<side>A|B)\.weight|lora_embedding_(?P<embedding>A|B))"
)  # the name of a tensor of a layer's A or B
LABELS = "id2label"  # in the metadata of the tensors, as in config.json: PEFT warns of a key that its config lacks
PREFIX = "base_model.model."  # of every tensor; after it the path in Hugging Face's model


def locate_adapter(source: str | Path) -> Path:
    """The folder of an adapter: a path, or where no such path exists that of a name on the Hub, "ORG/NAME@REVISION".

    Raises what hub.fetch does.
    """
    hub = name_on_hub(source)
    return fetch(hub, (CONFIG, WEIGHTS)) if hub else Path(source)


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, str]]:
    """The config, tensors and metadata in an adapter folder.

    Raises FileNotFoundError for a missing file; ValueError for damaged ones, for a pickle, which is never read, and for
    a key of the config that is not supported, or not known and not empty.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: it is not an adapter folder")
    config = read_json(path)
    try:
        check_config(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if (folder / PICKLE).is_file() and not (folder / WEIGHTS).is_file():
        raise pickled(folder / PICKLE, WEIGHTS)
    return config, *load_tensors(folder / WEIGHTS)


class Pair(NamedTuple):
    """A (r, in), B (out, r) and s of one layer, as they are stored: ΔW = s B A, of an embedding its transpose."""

    A: np.ndarray
    B: np.ndarray
    s: float


def pairs_of(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Pair]:
    """{Hugging Face's name of a layer: its pair} of an adapter that no model is there for.

    Raises ValueError for a tensor that is no part of a pair, and for one that does not fit its partner and the config.
    """
    sides: dict[str, dict[str, np.ndarray]] = {}
    for tensor, x in tensors.items():
        if tensor.endswith(".base_layer.weight"):
            continue  # the frozen weight of an adapted embed_tokens or lm_head
        match = PAIR.fullmatch(tensor)
        if not match:
            raise ValueError(
                f"{folder / WEIGHTS} holds {tensor}, which is no lora_A or lora_B of a linear layer or an embedding"
            )
        sides.setdefault(match["name"], {})[match["side"] or match["embedding"]] = x
    pairs = {}
    for name, pair in sides.items():
        A, B = pair.get("A"), pair.get("B")
        r = first_match(config, "rank_pattern", name, config["r"])
        alpha = first_match(config, "alpha_pattern", name, config["lora_alpha"])
        if A is None or B is None or A.ndim != 2 or B.ndim != 2 or not 0 < len(A) == B.shape[1] == r:
            found = " and ".join(str(x.shape) for x in (A, B) if x is not None)
            raise ValueError(f"{folder / WEIGHTS}: {name} needs lora_A ({r}, in) and lora_B (out, {r}), not {found}")
        pairs[name] = Pair(A, B, float(alpha) / (math.sqrt(r) if config.get("use_rslora") else r))
    return pairs


# ---- the model's layers, and what their tensors are called ----


def layers_of(model: Transformer) -> dict[str, Any]:
    """{path: module} of all that has parameters; an adapted layer's is the adapter."""
    kinds = Linear | Embedding | LayerNorm | RMSNorm
    return {path: model[path] for path, module in model.named_modules() if isinstance(module, kinds)}


def has_pooler_apart(model: Transformer) -> bool:
    """Has Hugging Face's class a pooler that we lack? An encoder's without a head has; it changes no hidden state."""
    return model.config.head == "none" and model.family in ("bert", "roberta")


def every_layer(model: Transformer) -> list[str]:
    """The name in Hugging Face's model of every layer with parameters, a pooler's that we lack too."""
    return [their_name(model, path) for path in layers_of(model)] + ["pooler.dense"] * has_pooler_apart(model)


def every_name(model: Transformer) -> list[str]:
    """Those, and the names of what holds them."""
    ways = (name.split(".") for name in every_layer(model))
    return list(dict.fromkeys(".".join(parts[: i + 1]) for parts in ways for i in range(len(parts))))


def adapter_tensors(model: Transformer, path: str, base: Module) -> dict[str, str]:
    """{"lora_A": its tensor's name, "lora_B": ...}"""
    name = PREFIX + their_name(model, path)
    if isinstance(base, Embedding):
        return {side: f"{name}.{side.replace('lora', 'lora_embedding')}" for side in ("lora_A", "lora_B")}
    return {side: f"{name}.{side}.weight" for side in ("lora_A", "lora_B")}


def own_tensor(model: Transformer, path: str, parameter: str) -> str:
    """The name of a layer's weight or bias, by the module that it is in; of an adapted layer's bias, below it."""
    inside = ".base_layer" if isinstance(model[path], Adapter) else ""
    return f"{PREFIX}{their_name(model, path)}{inside}.{parameter}"


def tied_head(model: Transformer) -> str | None:
    """The path of the head, if it shares the token embedding's weight."""
    layers = layers_of(model)
    head = layers.get("lm_head")
    return "lm_head" if head is not None and head.weight is layers["embed.token"].weight else None


def carried(saved: Collection[str], biases: Collection[str]) -> list[str]:
    """The paths of the base's parameters of which the adapter has its own: they are no part of what it stands on."""
    return [f"{path}.{name}" for path in saved for name in ("weight", "bias")] + [f"{path}.bias" for path in biases]
