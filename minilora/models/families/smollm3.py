"""SmolLM3: Llama whose every fourth layer has no rotary positions. Bakouch et al. (2025), "SmolLM3".

Without them a layer's scores depend on what the tokens are, and not on where (Yang et al., 2025, "Rope to Nope and Back
Again"): order comes from the layers below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...backend import Rng
from ..config import Config
from ..layer_types import check_interval
from ..transformer import Transformer
from . import llama, qwen2
from .family import decoder_classes


def smollm3(config: Config, rng: Rng | None) -> Transformer:
    """A llama in which config.rotary_layers says the layers with rotary positions, config.window(i) the windows."""
    return llama.rotary_decoder("smollm3", config, rng)


def extra_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """no_rope_layers says 1 for a layer with rotary positions; without it every no_rope_layer_interval-th has none.
    A window, where there is one, is in the layers without, unless layer_types says otherwise.

    Raises ValueError for another interval or list, and as qwen2's.
    """
    n, every, listed = values["num_hidden_layers"], values["no_rope_layer_interval"], values["no_rope_layers"]
    check_interval("no_rope_layer_interval", every)
    if listed is None and type(n) is int:
        listed = [int((i + 1) % every != 0) for i in range(n)]
    if not isinstance(listed, list) or not all(type(has) is int and has in (0, 1) for has in listed):
        raise ValueError(f"no_rope_layers = {listed!r:.80} is not 0 or 1 for each layer")
    fields, rotary = qwen2.extra_fields(values), tuple(map(bool, listed[:n]))
    if fields["sliding_window"] and not fields["layer_types"]:
        fields["layer_types"] = tuple("full_attention" if has else "sliding_attention" for has in rotary)
    return fields | {"max_window_layers": 0, "rotary_layers": rotary}


def extra_keys(config: Config) -> dict[str, Any]:
    keys = qwen2.extra_keys(config) | {
        "no_rope_layers": [int(i) for i in config.rotary_layers or [1] * config.n_layers]
    }
    return {key: value for key, value in keys.items() if key != "max_window_layers"}


FAMILY = replace(
    llama.FAMILY,
    build=smollm3,
    classes=decoder_classes("SmolLM3"),
    config_defaults={
        "tie_word_embeddings": True,
        "num_key_value_heads": 4,
        "head_dim": None,
        "rope_theta": 2000000.0,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    },
    extra_fields=extra_fields,
    extra_keys=extra_keys,
)
