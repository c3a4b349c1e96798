"""Qwen3: Qwen2 without biases, and with an RMS norm on each head of q and k.

Yang et al. (2025), "Qwen3 Technical Report".
"""

from __future__ import annotations

from dataclasses import replace

from ...backend import Rng
from ..config import Config
from ..transformer import Transformer
from . import llama, qwen2
from .family import decoder_classes


def qwen3(config: Config, rng: Rng | None) -> Transformer:
    """A llama with q_norm and k_norm; config.window(i) is the sliding window of layer i."""
    return llama.rotary_decoder("qwen3", config, rng, qk_norm=True)


FAMILY = replace(
    qwen2.FAMILY,
    build=qwen3,
    classes=decoder_classes("Qwen3"),
    config_defaults={**qwen2.FAMILY.config_defaults, "head_dim": 128, "num_key_value_heads": 32},
    gguf_names={
        **qwen2.FAMILY.gguf_names,
        "blk.{}.attn_q_norm": "block_{}.attention.q_norm",
        "blk.{}.attn_k_norm": "block_{}.attention.k_norm",
    },
)
