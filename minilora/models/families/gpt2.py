"""GPT-2. Radford et al. (2019), "Language Models are Unsupervised Multitask Learners"."""

from __future__ import annotations

from ...backend import Rng
from ...nn import Embeddings, PreNormBlock
from ..config import Config
from ..parts import LayerFactory, decoder_head, layers_by_name
from ..transformer import Transformer
from .family import Family, decoder_classes


def gpt2(config: Config, rng: Rng | None) -> Transformer:
    """Pre-norm, learned positions, GELU, one fused projection for q, k and v."""
    new = LayerFactory(config, rng)
    token, position = new.embedding(config.vocab_size), new.embedding(config.max_length)
    blocks = [
        PreNormBlock(new.layer_norm(), new.fused_attention(bias=True), new.layer_norm(), new.mlp())
        for _ in range(config.n_layers)
    ]
    layers = layers_by_name(Embeddings(token, position), blocks, norm=new.layer_norm(), **decoder_head(new, token))
    return Transformer("gpt2", config, layers)


FAMILY = Family(
    gpt2,
    classes=decoder_classes("GPT2") | {"lm": "GPT2LMHeadModel"},
    config_keys={
        "vocab_size": "vocab_size",
        "n_layers": "n_layer",
        "d_model": "n_embd",
        "n_heads": "n_head",
        "d_ff": "n_inner",
        "max_length": "n_positions",
        "eps": "layer_norm_epsilon",
        "activation": "activation_function",
        "tied": "tie_word_embeddings",
    },
    config_fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    },
    config_defaults={"tie_word_embeddings": True, "n_inner": None, "activation_function": "gelu_new"},
    base_model_prefix="transformer",
    hf_names=[
        ("embed.token", "transformer.wte"),
        ("embed.position", "transformer.wpe"),
        ("block_{}.norm_1", "transformer.h.{}.ln_1"),
        ("block_{}.attention.qkv_proj", "transformer.h.{}.attn.c_attn"),
        ("block_{}.attention.o_proj", "transformer.h.{}.attn.c_proj"),
        ("block_{}.attention", "transformer.h.{}.attn"),
        ("block_{}.norm_2", "transformer.h.{}.ln_2"),
        ("block_{}.mlp.up_proj", "transformer.h.{}.mlp.c_fc"),
        ("block_{}.mlp.down_proj", "transformer.h.{}.mlp.c_proj"),
        ("norm", "transformer.ln_f"),
        ("lm_head", "lm_head"),
        ("classifier", "score"),
    ],
    hf_head_names={"tokens": [("classifier", "classifier")]},
    transposed=("c_attn", "c_proj", "c_fc"),  # Conv1D
    gguf_names={
        "token_embd": "embed.token",
        "position_embd": "embed.position",
        "blk.{}.attn_norm": "block_{}.norm_1",
        "blk.{}.attn_qkv": "block_{}.attention.qkv_proj",
        "blk.{}.attn_output": "block_{}.attention.o_proj",
        "blk.{}.ffn_norm": "block_{}.norm_2",
        "blk.{}.ffn_up": "block_{}.mlp.up_proj",
        "blk.{}.ffn_down": "block_{}.mlp.down_proj",
        "output_norm": "norm",
        "output": "lm_head",
    },
    default_tokenizer="GPT2Tokenizer",
)
