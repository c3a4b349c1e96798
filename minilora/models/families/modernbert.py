"""ModernBERT: an encoder with what decoders have learned since BERT. Warner et al. (2024), "Smarter, Better, Faster,
Longer: A Modern Bidirectional Encoder"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...backend import Rng
from ...nn import Embeddings, Gelu, Identity, Labelled, MeanTokens, Module, PreNormBlock, Select
from ..config import Config
from ..layer_types import rope_fields, rope_keys, window_fields, window_keys
from ..parts import LayerFactory, layers_by_name
from ..transformer import Transformer
from .family import Family, encoder_classes
from .llama import check_even

THETAS = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}


def modernbert(config: Config, rng: Rng | None) -> Transformer:
    """Pre-norm without biases, but for the first attention, which reads the embedding's norm as it is; rotary
    positions, windows, fused projections, GeGLU. Every head reads norm(gelu(W h)), W and norm its own.

    Raises ValueError for an odd width of a head.
    """
    check_even(config)
    new, C = LayerFactory(config, rng), config.d_model
    token = new.embedding(config.vocab_size)
    blocks = [
        PreNormBlock(
            new.layer_norm(bias=False) if i else Identity(),
            new.fused_attention(causal=False, bias=False, rope=config.rope(i), window=config.window(i)),
            new.layer_norm(bias=False),
            new.fused_gated_mlp(Gelu(approximate=False)),
        )
        for i in range(config.n_layers)
    ]

    head: dict[str, Module] = {"labelled": Labelled()} if config.head == "lm" else {}
    if config.head == "classify":
        head = {"pooled": MeanTokens() if config.classifier_pooling == "mean" else Select(last=False)}
    if config.head != "none":
        head |= {"head_transform": new.linear(C, C, False), "head_gelu": Gelu(approximate=False)}
        head["head_norm"] = new.layer_norm(bias=False)
        last = new.lm_head(token, bias=True) if config.head == "lm" else new.classifier(bias=True)
        head["lm_head" if config.head == "lm" else "classifier"] = last
    embed = Embeddings(token, norm=new.layer_norm(bias=False))
    return Transformer("modernbert", config, layers_by_name(embed, blocks, norm=new.layer_norm(bias=False), **head))


def extra_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Where no layer_types say otherwise, every global_attn_every_n_layers'th layer, the first one of them, has no
    window. In the others a token sees those that are at most local_attention // 2 away.

    Raises ValueError for a number that is not an integer from 1 up, and for scaled rotary positions.
    """
    reach, every = values.get("local_attention", 128), values.get("global_attn_every_n_layers", 3)
    for key, number in (("local_attention", reach), ("global_attn_every_n_layers", every)):
        if type(number) is not int or number < 1:
            raise ValueError(f"{key} = {number!r:.80} is not a whole number from 1 up")
    windows, ropes = window_fields(values, reach // 2 + 1, lambda i: i % every == 0), rope_fields(values, THETAS)
    if "rope_scaling" in ropes:
        raise ValueError(f"rope_scaling = {ropes['rope_scaling']!r:.80} is not supported in a modernbert")
    return windows | ropes | {"classifier_pooling": values.get("classifier_pooling", "cls")}


def extra_keys(config: Config) -> dict[str, Any]:
    """Of the layers without a window, transformers 4 reads only a number."""
    full = [config.window(i) is None for i in range(config.n_layers)]
    fits = (n for n in range(1, config.n_layers + 1) if full == [i % n == 0 for i in range(config.n_layers)])
    return (
        window_keys(config)
        | rope_keys(config, THETAS)
        | {
            "local_attention": 2 * ((config.sliding_window or config.max_length) - 1),
            "global_attn_every_n_layers": next(fits, 1),
            "classifier_pooling": config.classifier_pooling,
        }
    )


FAMILY = Family(
    modernbert,
    classes=encoder_classes("ModernBert"),
    config_keys={
        "vocab_size": "vocab_size",
        "n_layers": "num_hidden_layers",
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "d_ff": "intermediate_size",
        "max_length": "max_position_embeddings",
        "eps": "norm_eps",
        "tied": "tie_word_embeddings",
    },
    config_fixed={
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_bias": False,
        "decoder_bias": True,
    },
    config_defaults={"tie_word_embeddings": True, "norm_eps": 1e-5},
    extra_fields=extra_fields,
    extra_keys=extra_keys,
    hf_names=[
        ("embed.token", "model.embeddings.tok_embeddings"),
        ("embed.norm", "model.embeddings.norm"),
        ("block_{}.norm_1", "model.layers.{}.attn_norm"),
        ("block_{}.attention.qkv_proj", "model.layers.{}.attn.Wqkv"),
        ("block_{}.attention.o_proj", "model.layers.{}.attn.Wo"),
        ("block_{}.norm_2", "model.layers.{}.mlp_norm"),
        ("block_{}.mlp.gate_up_proj", "model.layers.{}.mlp.Wi"),
        ("block_{}.mlp.down_proj", "model.layers.{}.mlp.Wo"),
        ("norm", "model.final_norm"),
        ("head_transform", "head.dense"),
        ("head_norm", "head.norm"),
        ("lm_head", "decoder"),
        ("classifier", "classifier"),
    ],
    tokenizer="",
)
