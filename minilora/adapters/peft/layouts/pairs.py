"""What every layout comes to: A, B and s of each layer, from PEFT's files and into them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ....files import tensors_to_bytes, to_json, write_folder
from ....nn import Convolution, Embedding, Linear
from ... import DEFAULT
from ...base import Adapter
from ...registry import variants
from ..config import classes_of
from ..format import CONFIG, WEIGHTS, base_without_weights, layers_in, read_adapter
from ..view import PREFIX
from ..writing import variant_keys

TABLES = "embed_tokens", "wte", "word_embeddings"  # last names of token embeddings
CONV1D = "c_attn", "c_proj", "c_fc"

Pair: TypeAlias = tuple[np.ndarray, np.ndarray, float]
"""A (r, in), B (out, r) and s of one layer: ΔW = s B A, of an embedding its transpose."""


def matrices(
    file: Path, tensors: Mapping[str, np.ndarray], one: str, two: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{path: its two matrices, so called}. Raises ValueError for anything else in the file."""
    extra = sorted(name for name in tensors if last(name) not in (one, two))
    if extra:
        raise ValueError(f"{file} holds {extra[0]}, which is not {one} or {two}: only those are converted")
    found = {}
    for path in sorted({name.rpartition(".")[0] for name in tensors}):
        pair = [tensors[name] for name in (f"{path}.{one}", f"{path}.{two}") if name in tensors]
        if [x.ndim for x in pair] != [2, 2]:
            raise misfit(file, path, f"{one} and {two}, two matrices", *pair)
        found[path] = pair[0], pair[1]
    return found


def misfit(file: Path, path: str, needed: str, *found: np.ndarray) -> ValueError:
    return ValueError(f"{file}: {path} needs {needed}, not {' and '.join(str(x.shape) for x in found)}")


def read_pairs(folder: Path) -> tuple[dict[str, Any], dict[str, Pair], float]:
    """The config, {name: pair} and dropout. Raises as read_adapter does, and ValueError where it holds more than
    pairs."""
    config, tensors, _ = read_adapter(folder)
    if config.get("bias") not in ("none", None) or config.get("modules_to_save"):
        raise ValueError(f"{folder} trains whole modules or biases of the base, which this layout has no place for")
    if classes_of(config)[0].replaces_weight:
        raise ValueError(f"{folder} has a base in fewer bits, which this layout cannot say: merge it (minilora merge)")
    layers = layers_in(folder, config, tensors)
    if not layers:
        raise ValueError(f"{folder / WEIGHTS} holds no tensor")
    pairs: dict[str, Pair] = {}
    for name, layer in layers.items():
        if isinstance(layer.base, Convolution):
            raise ValueError(f"{folder}: {name} is a convolution, which has no place here: see adapters/lora_conv.py")
        factors = layer.factors()
        if factors is None:
            raise ValueError(f"{folder}: ΔW of {layer.variant} is not a product of two matrices, as this layout needs")
        A, B, s = factors
        pairs[name] = (B.T, A.T, s) if isinstance(layer.base, Embedding) else (A, B, s)
    return config, pairs, float(layer.settings.get("dropout") or 0.0)


def write_peft(folder: str | Path, pairs: Mapping[str, Pair], dropout: float, ties: bool) -> None:
    if not pairs:
        raise ValueError("there is no lora_A and lora_B to convert")
    layers = {name: lora(name, *pair, dropout) for name, pair in pairs.items()}
    config = variant_keys(layers, transposed=False) | {
        "task_type": None,
        "target_modules": sorted(layers),
        "bias": "none",
        "fan_in_fan_out": any(last(name) in CONV1D for name in layers),
        "ensure_weight_tying": ties,
    }
    tensors = {
        f"{PREFIX}{name}.{slot.file}": getattr(layer, slot.name).data
        for name, layer in layers.items()
        for slot in layer.slots
    }
    write_folder(folder, {WEIGHTS: tensors_to_bytes(tensors, {"format": "pt"}), CONFIG: to_json(config)})


def lora(name: str, A: np.ndarray, B: np.ndarray, s: float, dropout: float) -> Adapter:
    """The adapter of the layer of that name; its base has no weights."""
    kind = Embedding if last(name) in TABLES else Linear
    cls = next(cls for cls in variants()[DEFAULT] if cls.base_type is kind)
    base = base_without_weights(cls, {"n_in": A.shape[1], "n_out": len(B)}, np.result_type(A, B))
    tensors = dict(zip((slot.name for slot in cls.slots), (A, B), strict=True))
    return cls.of(base, tensors, r=len(A), alpha=alpha_for(s, len(A)), dropout=dropout)


def alpha_for(s: float, r: int) -> float:
    """The α with α / r = s, to the last bit where there is one."""
    near = s * r
    return next((alpha for alpha in (near, *np.nextafter(near, (-np.inf, np.inf)).tolist()) if alpha / r == s), near)


def last(name: str) -> str:
    return name.rpartition(".")[2]
