"""T5, 1.0 and 1.1. Raffel et al. (2020), "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer"; Shazeer (2020), "GLU Variants Improve Transformer", for 1.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...backend import Rng
from ...nn import DecoderBlock, Embeddings, Gelu, Labelled, Module, PreNormBlock, Relu, Scale
from ..config import Config
from ..encoder_decoder import EncoderDecoder
from ..parts import LayerFactory, layers_by_name
from .family import Family

FEED_FORWARD = {"relu": False, "gated-gelu": True}  # of 1.0 and 1.1: whether it is gated


def t5(config: Config, rng: Rng | None) -> EncoderDecoder:
    """An encoder of n_layers blocks and a decoder of decoder_layers; pre-norm with RMS norm, no biases. The
    blocks of a stack share a bias for relative positions, and no scores are divided by √D.

    1.0 has ReLU, and a head that is tied to the embedding and reads x/√C; 1.1 is gated, by a GELU in the tanh form, and
    has a head of its own. Raises ValueError for fewer heads of keys than of queries, and for buckets that
    relative_distance does not fill.
    """
    if config.n_kv_heads != config.n_heads:
        raise ValueError(f"n_kv_heads = {config.n_kv_heads}: a t5 has as many as there are heads, {config.n_heads}")
    if config.relative_buckets < 4 or config.relative_distance <= config.relative_buckets // 2:
        raise ValueError(
            f"relative_distance = {config.relative_distance} is not above half of the buckets, of which there are "
            f"{config.relative_buckets} (at least 4)"
        )
    new = LayerFactory(config, rng)
    token, norm = new.embedding(config.vocab_size), new.rms_norm

    def mlp() -> Module:
        return new.gated_mlp(Gelu(approximate=True)) if config.gated else new.mlp(Relu(), bias=False)

    bias = new.relative_bias(both_ways=True)
    read = [
        PreNormBlock(norm(), new.relative_attention(causal=False, bias=bias), norm(), mlp())
        for _ in range(config.n_layers)
    ]
    encoder: dict[str, Module] = {f"block_{i}": block for i, block in enumerate(read)}
    bias = new.relative_bias(both_ways=False)
    write = [
        DecoderBlock(
            norm(), new.relative_attention(causal=True, bias=bias), norm(), new.cross_attention(bias=False, root=1.0),
            norm(), mlp(),
        )
        for _ in range(config.decoder_layers)
    ]  # fmt: skip
    head: dict[str, Module] = {}
    if config.head == "lm":
        scale = {"scale": Scale(config.d_model**-0.5)} if config.tied else {}
        head = {"labelled": Labelled(), **scale, "lm_head": new.lm_head(token)}
    layers = layers_by_name(Embeddings(token), write, norm=norm(), **head)
    return EncoderDecoder("t5", config, layers, {**encoder, "norm": norm()})


def extra_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError for a feed-forward of neither version."""
    kind = values["feed_forward_proj"]
    if kind not in FEED_FORWARD:
        raise ValueError(f"feed_forward_proj = {kind!r:.80} is not supported, only {', '.join(FEED_FORWARD)}")
    start = values.get("decoder_start_token_id") or values.get("pad_token_id") or 0
    # transformers 5 writes tie_word_embeddings true for 1.1 too, beside a head of its own
    tied = values["tie_word_embeddings"] and values.get("scale_decoder_outputs", True)
    return {"gated": FEED_FORWARD[kind], "decoder_start": start, "tied": tied}


def extra_keys(config: Config) -> dict[str, Any]:
    kind = next(theirs for theirs, ours in FEED_FORWARD.items() if ours == config.gated)
    return {"feed_forward_proj": kind, "decoder_start_token_id": config.decoder_start, "pad_token_id": 0}


def stack(ours: str, theirs: str, parts: Mapping[str, str]) -> list[tuple[str, str]]:
    """The names of a stack, whose blocks have these parts, each in a layer of its own, and then an MLP."""
    block, layer, last = f"{ours}block_{{}}", f"{theirs}.block.{{}}.layer", len(parts)
    return [
        *((f"{block}.{part}.{x}_proj", f"{layer}.{name}.{x}") for part, name in parts.items() for x in "qkvo"),
        (f"{block}.attention.relative_bias", f"{layer}.0.SelfAttention.relative_attention_bias"),
        (f"{block}.norm_1", f"{layer}.0.layer_norm"),
        (f"{block}.norm_cross", f"{layer}.1.layer_norm"),
        (f"{block}.norm_2", f"{layer}.{last}.layer_norm"),
        (f"{block}.mlp.gate_proj", f"{layer}.{last}.DenseReluDense.wi_0"),
        (f"{block}.mlp.up_proj", f"{layer}.{last}.DenseReluDense.wi_1"),
        (f"{block}.mlp.down_proj", f"{layer}.{last}.DenseReluDense.wo"),
        (f"{ours}norm", f"{theirs}.final_layer_norm"),
    ]


FAMILY = Family(
    t5,
    classes={"lm": "T5ForConditionalGeneration", "none": "T5Model"},
    config_keys={
        "vocab_size": "vocab_size",
        "n_layers": "num_layers",
        "decoder_layers": "num_decoder_layers",
        "d_model": "d_model",
        "n_heads": "num_heads",
        "head_dim": "d_kv",
        "d_ff": "d_ff",
        "max_length": "n_positions",
        "eps": "layer_norm_epsilon",
        "relative_buckets": "relative_attention_num_buckets",
        "relative_distance": "relative_attention_max_distance",
        "tied": "tie_word_embeddings",
    },
    config_fixed={"is_encoder_decoder": True, "is_decoder": False},
    config_defaults={
        "num_decoder_layers": None,
        "n_positions": 512,
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
    },
    extra_fields=extra_fields,
    extra_keys=extra_keys,
    base_model_prefix="",
    hf_names=[
        ("embed.token", "shared"),
        *stack("encoder.", "encoder", {"attention": "0.SelfAttention"}),
        *stack("", "decoder", {"attention": "0.SelfAttention", "cross_attention": "1.EncDecAttention"}),
        ("lm_head", "lm_head"),
    ],
    ungated_names=[
        ("encoder.block_{}.mlp.up_proj", "encoder.block.{}.layer.1.DenseReluDense.wi"),
        ("block_{}.mlp.up_proj", "decoder.block.{}.layer.2.DenseReluDense.wi"),
    ],
    copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
)
