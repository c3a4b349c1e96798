"""Gemma 3, the text models and the text part of the others. Gemma Team (2025), "Gemma 3 Technical Report"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...backend import Rng
from ...nn import Embeddings, Gelu, SandwichNormBlock
from ..config import Config
from ..layer_types import check_interval, rope_fields, rope_keys, window_fields, window_keys
from ..parts import LayerFactory, decoder_head, layers_by_name
from ..transformer import Transformer
from . import llama
from .family import decoder_classes

THETAS = {"full_attention": ("rope_theta", 1_000_000.0), "sliding_attention": ("rope_local_base_freq", 10_000.0)}


def gemma3_text(config: Config, rng: Rng | None) -> Transformer:
    """Embeddings times √C, an RMS norm before and after each part of a block and on q and k, GeGLU, and windows with a
    theta of their own in most layers. The gain of each norm is 1 + w.

    Raises ValueError for an odd width of a head.
    """
    llama.check_even(config)
    new = LayerFactory(config, rng)
    norm = new.zero_centred_rms_norm
    token = new.embedding(config.vocab_size)
    options: dict[str, Any] = {"causal": True, "bias": False, "qk_norm": norm}
    options["root"] = math.sqrt(config.query_pre_attn_scalar) or None
    blocks = [
        SandwichNormBlock(
            norm(),
            new.attention(window=config.window(i), rope=config.rope(i), **options),
            norm(),
            norm(),
            new.gated_mlp(Gelu(approximate=True)),
            norm(),
        )
        for i in range(config.n_layers)
    ]
    scale = float(np.float32(math.sqrt(config.d_model)))  # as transformers holds it
    layers = layers_by_name(Embeddings(token, scale=scale), blocks, norm=norm(), **decoder_head(new, token))
    return Transformer("gemma3_text", config, layers)


def extra_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every sliding_window_pattern'th layer has no window, where no layer_types say otherwise."""
    every, scalar = values.get("sliding_window_pattern", 6), values.get("query_pre_attn_scalar", 256)
    check_interval("sliding_window_pattern", every)
    own = {} if scalar == values["head_dim"] else {"query_pre_attn_scalar": scalar}
    windows = window_fields(values, values.get("sliding_window", 4096), lambda i: (i + 1) % every == 0)
    return windows | rope_fields(values, THETAS) | own


def extra_keys(config: Config) -> dict[str, Any]:
    scalar = config.query_pre_attn_scalar or config.head_dim
    window = config.sliding_window or config.max_length  # transformers needs one where no layer has it, too
    return window_keys(config) | rope_keys(config, THETAS) | {"sliding_window": window, "query_pre_attn_scalar": scalar}


def gguf_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that the file lacks and llama.cpp hard-codes: in the model of 62 layers, 27B, query_pre_attn_scalar is
    C/H, in the others the width of a head."""
    C, H = values["hidden_size"], values["num_attention_heads"]
    largest = values["num_hidden_layers"] == 62 and type(C) is int and type(H) is int and H > 0
    theta = values.get("rope_theta", 10_000.0)
    return {"rope_theta": theta, "query_pre_attn_scalar": C // H if largest else values["head_dim"]}


FAMILY = replace(
    llama.FAMILY,
    build=gemma3_text,
    classes=decoder_classes("Gemma3Text") | {"lm": "Gemma3ForCausalLM"},
    config_fixed={
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_dropout": 0.0,
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    config_defaults={"tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6},
    not_read={"gemma3": "it reads images as well; the models of text alone, such as 270m and 1b, are gemma3_text"},
    extra_fields=extra_fields,
    extra_keys=extra_keys,
    hf_names=[
        ("block_{}.attention_norm", "model.layers.{}.post_attention_layernorm"),
        ("block_{}.norm_2", "model.layers.{}.pre_feedforward_layernorm"),
        ("block_{}.mlp_norm", "model.layers.{}.post_feedforward_layernorm"),
        *llama.FAMILY.hf_names,
    ],
    gguf_architecture="gemma3",
    gguf_names={
        **llama.FAMILY.gguf_names,
        "blk.{}.attn_q_norm": "block_{}.attention.q_norm",
        "blk.{}.attn_k_norm": "block_{}.attention.k_norm",
        "blk.{}.post_attention_norm": "block_{}.attention_norm",
        "blk.{}.post_ffw_norm": "block_{}.mlp_norm",
    },
    gguf_keys={
        "attention.sliding_window": "sliding_window",
        "attention.sliding_window_pattern": "sliding_window_pattern",
        "rope.freq_base_swa": "rope_local_base_freq",
    },
    gguf_values=gguf_values,
    gguf_added_to_norms=1.0,
    gguf_interleaved=False,
    default_tokenizer="GemmaTokenizer",
)
