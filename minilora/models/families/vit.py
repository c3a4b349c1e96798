"""ViT, which reads images. Dosovitskiy et al. (2021), "An Image is Worth 16x16 Words"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...backend import Rng
from ...nn import Conv2d, Module, PatchEmbeddings, PreNormBlock, Select
from ..config import Config
from ..parts import LayerFactory, layers_by_name
from ..transformer import Transformer
from .family import Family


def vit(config: Config, rng: Rng | None) -> Transformer:
    """Pre-norm, patches of an image and a class token in the place of words, GELU; every token sees every other.

    A classifier reads the class token. Raises ValueError for a config without an image_size.
    """
    if not config.image_size:
        raise ValueError("a vit reads images: its config needs image_size and patch_size")
    new, C, p = LayerFactory(config, rng), config.d_model, config.patch_size
    projection = Conv2d(new.normal(C, config.channels, p, p), new.full(0, C), stride=p)
    embed = PatchEmbeddings(projection, new.normal(1, 1, C), new.normal(1, config.max_length, C))
    blocks = [
        PreNormBlock(new.layer_norm(), new.attention(causal=False, bias=True), new.layer_norm(), new.mlp())
        for _ in range(config.n_layers)
    ]
    head: dict[str, Module] = {}
    if config.head == "classify":
        head = {"first": Select(last=False), "classifier": new.classifier(bias=True)}
    return Transformer("vit", config, layers_by_name(embed, blocks, norm=new.layer_norm(), **head))


def extra_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """There are no words. Raises ValueError for a pooler of another width than the model's."""
    width = values.get("pooler_output_size")
    if width not in (None, values["hidden_size"]):
        raise ValueError(f"pooler_output_size = {width!r:.80} is not supported, only that of hidden_size")
    return {"vocab_size": 0}


FAMILY = Family(
    vit,
    classes={"classify": "ViTForImageClassification", "none": "ViTModel"},
    config_keys={
        "image_size": "image_size",
        "patch_size": "patch_size",
        "channels": "num_channels",
        "n_layers": "num_hidden_layers",
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "d_ff": "intermediate_size",
        "eps": "layer_norm_eps",
        "activation": "hidden_act",
    },
    config_fixed={"qkv_bias": True, "pooler_act": "tanh"},
    extra_fields=extra_fields,
    base_model_prefix="vit",
    hf_names=[
        ("embed.class_token", "vit.embeddings.cls_token"),
        ("embed.position", "vit.embeddings.position_embeddings"),
        ("embed.projection", "vit.embeddings.patch_embeddings.projection"),
        ("block_{}.norm_1", "vit.layers.{}.layernorm_before"),
        ("block_{}.attention", "vit.layers.{}.attention"),
        ("block_{}.norm_2", "vit.layers.{}.layernorm_after"),
        ("block_{}.mlp.up_proj", "vit.layers.{}.mlp.fc1"),
        ("block_{}.mlp.down_proj", "vit.layers.{}.mlp.fc2"),
        ("norm", "vit.layernorm"),
        ("pooler", "vit.pooler.dense"),
        ("classifier", "classifier"),
    ],
    file_names=[
        ("layers.", "encoder.layer."),
        *((f"attention.{x[0]}_proj", f"attention.attention.{x}") for x in ("query", "key", "value")),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ],
    unused={"none": ("pooler.dense",)},
)
