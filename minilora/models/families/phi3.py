"""Phi-3: Llama with one matrix for q, k and v, and one for the gate and up. Abdin et al. (2024), "Phi-3"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...backend import Rng
from ...nn import Embeddings, PreNormBlock
from ..config import Config
from ..parts import LayerFactory, decoder_head, layers_by_name
from ..transformer import Transformer
from . import llama
from .family import decoder_classes


def phi3(config: Config, rng: Rng | None) -> Transformer:
    """A llama with qkv_proj and gate_up_proj. Raises ValueError for an odd width of a head."""
    llama.check_even(config)
    new = LayerFactory(config, rng)
    token = new.embedding(config.vocab_size)
    blocks = [
        PreNormBlock(
            new.rms_norm(),
            new.fused_attention(bias=False, rope=config.rope(i), window=config.window(i)),
            new.rms_norm(),
            new.fused_gated_mlp(),
        )
        for i in range(config.n_layers)
    ]
    layers = layers_by_name(Embeddings(token), blocks, norm=new.rms_norm(), **decoder_head(new, token))
    return Transformer("phi3", config, layers)


def extra_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError for scaled rotary positions: transformers takes longrope, which is not here, for any rule."""
    fields = llama.rope_fields(values)
    if "rope_scaling" in fields:
        raise ValueError(
            f"rope_scaling = {values.get('rope_scaling')!r:.80} is not supported in a phi3, only 'default'"
        )
    return fields | {"sliding_window": values.get("sliding_window")}


def extra_keys(config: Config) -> dict[str, Any]:
    return llama.rope_keys(config) | {"sliding_window": config.sliding_window}


FAMILY = replace(
    llama.FAMILY,
    build=phi3,
    classes=decoder_classes("Phi3"),
    extra_fields=extra_fields,
    extra_keys=extra_keys,
    gguf_names={
        **{
            name: ours
            for name, ours in llama.FAMILY.gguf_names.items()
            if not name.endswith(("_q", "_k", "_v", "gate"))
        },
        "blk.{}.attn_qkv": "block_{}.attention.qkv_proj",
        "blk.{}.ffn_up": "block_{}.mlp.gate_up_proj",
    },
    gguf_interleaved=False,
    tokenizer="",
)
