"""Llama 1 to 3, SmolLM2 and others of this shape. Touvron et al. (2023), "Llama 2"."""

from __future__ import annotations

from typing import Any

from ...backend import Rng
from ...nn import Embeddings, PreNormBlock
from ..config import Config
from ..parts import LayerFactory, decoder_head, layers_by_name
from ..rope_json import rope_fields, rope_keys
from ..transformer import Transformer
from .family import Family, decoder_classes


def llama(config: Config, rng: Rng | None) -> Transformer:
    """Pre-norm with RMS norm, rotary positions, SwiGLU, grouped queries, no biases.

    Raises ValueError for an odd width of a head, and for a sliding window.
    """
    if config.sliding_window is not None:
        raise ValueError("a llama has no sliding_window: build a mistral")
    return rotary_decoder("llama", config, rng)


def rotary_decoder(
    family: str, config: Config, rng: Rng | None, qkv_bias: bool = False, qk_norm: bool = False
) -> Transformer:
    """What Llama, Mistral, Qwen2 and Qwen3 share. Raises ValueError for an odd width of a head."""
    check_even(config)
    new = LayerFactory(config, rng)
    token = new.embedding(config.vocab_size)
    options: dict[str, Any] = {"causal": True, "bias": qkv_bias, "o_bias": False, "qk_norm": qk_norm}
    blocks = [
        PreNormBlock(
            new.rms_norm(),
            new.attention(window=config.window(i), rope=config.rope(i), **options),
            new.rms_norm(),
            new.gated_mlp(),
        )
        for i in range(config.n_layers)
    ]
    layers = layers_by_name(Embeddings(token), blocks, norm=new.rms_norm(), **decoder_head(new, token))
    return Transformer(family, config, layers)


def check_even(config: Config) -> None:
    """Raise ValueError for an odd width of a head."""
    if config.head_dim % 2:
        raise ValueError(f"rotary positions turn pairs: a head's width must be even, and {config.head_dim} is not")


FAMILY = Family(
    llama,
    classes=decoder_classes("Llama"),
    config_keys={
        "vocab_size": "vocab_size",
        "n_layers": "num_hidden_layers",
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "d_ff": "intermediate_size",
        "max_length": "max_position_embeddings",
        "eps": "rms_norm_eps",
        "tied": "tie_word_embeddings",
    },
    config_fixed={
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "is_causal": True,
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "is_decoder": False,
        "add_cross_attention": False,
    },
    config_defaults={"tie_word_embeddings": False, "num_key_value_heads": None, "head_dim": None},
    extra_fields=rope_fields,
    extra_keys=rope_keys,
    hf_names=[
        ("embed.token", "model.embed_tokens"),
        ("block_{}.norm_1", "model.layers.{}.input_layernorm"),
        ("block_{}.attention", "model.layers.{}.self_attn"),
        ("block_{}.norm_2", "model.layers.{}.post_attention_layernorm"),
        ("block_{}.mlp", "model.layers.{}.mlp"),
        ("norm", "model.norm"),
        ("lm_head", "lm_head"),
        ("classifier", "score"),
    ],
    gguf_names={
        "token_embd": "embed.token",
        "blk.{}.attn_norm": "block_{}.norm_1",
        "blk.{}.attn_q": "block_{}.attention.q_proj",
        "blk.{}.attn_k": "block_{}.attention.k_proj",
        "blk.{}.attn_v": "block_{}.attention.v_proj",
        "blk.{}.attn_output": "block_{}.attention.o_proj",
        "blk.{}.ffn_norm": "block_{}.norm_2",
        "blk.{}.ffn_gate": "block_{}.mlp.gate_proj",
        "blk.{}.ffn_up": "block_{}.mlp.up_proj",
        "blk.{}.ffn_down": "block_{}.mlp.down_proj",
        "output_norm": "norm",
        "output": "lm_head",
    },
    gguf_interleaved=True,
)
