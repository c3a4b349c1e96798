"""Mistral: Llama with a sliding window in every layer. Jiang et al. (2023), "Mistral 7B"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...backend import Rng
from ..config import Config
from ..transformer import Transformer
from . import llama
from .family import decoder_classes


def mistral(config: Config, rng: Rng | None) -> Transformer:
    """A llama in which a query sees config.sliding_window keys, its own the last."""
    return llama.rotary_decoder("mistral", config, rng)


def extra_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    return llama.rope_fields(values) | {"sliding_window": values.get("sliding_window", 4096)}


def extra_keys(config: Config) -> dict[str, Any]:
    return llama.rope_keys(config) | {"sliding_window": config.sliding_window}


FAMILY = replace(
    llama.FAMILY,
    build=mistral,
    classes=decoder_classes("Mistral"),
    extra_fields=extra_fields,
    extra_keys=extra_keys,
    gguf_names={},  # llama.cpp writes it as a llama
    tokenizer="",
)
