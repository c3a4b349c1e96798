"""Qwen2 and 2.5: Llama with biases on q, k and v, and perhaps a window in some layers. Yang et al. (2024), "Qwen2"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...backend import Rng
from ..config import Config
from ..transformer import Transformer
from . import llama
from .family import decoder_classes


def qwen2(config: Config, rng: Rng | None) -> Transformer:
    """A llama with biases on q, k and v; config.window(i) is the sliding window of layer i."""
    return llama.rotary_decoder("qwen2", config, rng, qkv_bias=True)


def extra_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """There is a window if use_sliding_window, in the layers from max_window_layers on, or those of layer_types.

    Raises ValueError for a use_sliding_window or layer_types of another type.
    """
    used, types = values.get("use_sliding_window", False), values.get("layer_types")
    if type(used) is not bool:
        raise ValueError(f"use_sliding_window = {used!r} is not true or false")
    if not isinstance(types, list | None) or not all(isinstance(name, str) for name in types or ()):
        raise ValueError(f"layer_types = {types!r:.80} is not a list of names")
    return llama.rope_fields(values) | {
        "sliding_window": values.get("sliding_window", 4096) if used else None,
        "max_window_layers": values.get("max_window_layers", 28),
        "layer_types": tuple(types or ()),
    }


def extra_keys(config: Config) -> dict[str, Any]:
    return llama.rope_keys(config) | {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "max_window_layers": config.max_window_layers,
        "layer_types": list(config.layer_types) or None,
    }


FAMILY = replace(
    llama.FAMILY,
    build=qwen2,
    classes=decoder_classes("Qwen2"),
    extra_fields=extra_fields,
    extra_keys=extra_keys,
    gguf_interleaved=False,
    tokenizer="Qwen2Tokenizer",
)
