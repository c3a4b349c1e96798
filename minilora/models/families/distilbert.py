"""DistilBERT: BERT with half the layers, without segments and pooler. Sanh et al. (2019), "DistilBERT"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...backend import Rng
from ...nn import Relu
from ..config import Config
from ..parts import LayerFactory
from ..transformer import Transformer
from . import bert
from .family import Family, encoder_classes

EPS = 1e-12  # of every norm: no config.json says another


def distilbert(config: Config, rng: Rng | None) -> Transformer:
    """A bert without segments, whose classifier of texts has a ReLU. Its eps is EPS, whatever `config` says."""
    new = LayerFactory(replace(config, eps=EPS), rng)
    return bert.encoder("distilbert", new, "classifier_transform", head_gelu=new.gelu(), segments=0, act=Relu())


def extra_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The table of positions is in the file, learned or sinusoidal_pos_embds."""
    return {"eps": EPS}


LAYER = "distilbert.transformer.layer.{}"
FAMILY = Family(
    distilbert,
    classes=encoder_classes("DistilBert"),
    config_keys={
        "vocab_size": "vocab_size",
        "n_layers": "n_layers",
        "d_model": "dim",
        "n_heads": "n_heads",
        "d_ff": "hidden_dim",
        "max_length": "max_position_embeddings",
        "activation": "activation",
        "tied": "tie_word_embeddings",
    },
    config_fixed={"chunk_size_feed_forward": 0},
    config_defaults={"tie_word_embeddings": True, "activation": "gelu"},
    extra_fields=extra_fields,
    base_model_prefix="distilbert",
    hf_names=[
        ("embed.token", "distilbert.embeddings.word_embeddings"),
        ("embed.position", "distilbert.embeddings.position_embeddings"),
        ("embed.norm", "distilbert.embeddings.LayerNorm"),
        ("block_{}.attention.q_proj", f"{LAYER}.attention.q_lin"),
        ("block_{}.attention.k_proj", f"{LAYER}.attention.k_lin"),
        ("block_{}.attention.v_proj", f"{LAYER}.attention.v_lin"),
        ("block_{}.attention.o_proj", f"{LAYER}.attention.out_lin"),
        ("block_{}.norm_1", f"{LAYER}.sa_layer_norm"),
        ("block_{}.mlp.up_proj", f"{LAYER}.ffn.lin1"),
        ("block_{}.mlp.down_proj", f"{LAYER}.ffn.lin2"),
        ("block_{}.norm_2", f"{LAYER}.output_layer_norm"),
        ("head_transform", "vocab_transform"),
        ("head_norm", "vocab_layer_norm"),
        ("lm_head", "vocab_projector"),
        ("classifier_transform", "pre_classifier"),
        ("classifier", "classifier"),
    ],
    default_tokenizer="BertTokenizer",
)
