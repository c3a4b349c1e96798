"""RoBERTa: BERT with other names, and other rows of its position table. Liu et al. (2019), "RoBERTa"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...backend import Rng
from ...nn import Gelu
from ..config import Config
from ..parts import LayerFactory
from ..transformer import Transformer
from . import bert
from .family import encoder_classes


def roberta(config: Config, rng: Rng | None) -> Transformer:
    """BERT, whose first position is row config.offset of the table, and whose head has an exact GELU."""
    head_gelu = Gelu(approximate=False)
    return bert.encoder("roberta", LayerFactory(config, rng), "classifier_transform", head_gelu, config.segments)


def extra_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of the position table up to that of pad_token_id are not positions."""
    pad, rows = values.get("pad_token_id", 1), values["max_position_embeddings"]
    if type(pad) is not int or pad < 0:
        raise ValueError(f"pad_token_id = {pad!r:.80} is not a whole number from 0 up")
    if type(rows) is not int:
        raise ValueError(f"max_position_embeddings = {rows!r:.80} is not a whole number")
    return {"offset": pad + 1, "max_length": rows - pad - 1}


def extra_keys(config: Config) -> dict[str, Any]:
    pad = config.offset - 1 if config.offset else None
    return {"max_position_embeddings": config.max_length + config.offset, "pad_token_id": pad}


FAMILY = replace(
    bert.FAMILY,
    build=roberta,
    classes=encoder_classes("Roberta"),
    extra_fields=extra_fields,
    extra_keys=extra_keys,
    base_model_prefix="roberta",
    hf_names=[
        *((path, name.replace("bert.", "roberta.", 1)) for path, name in bert.BODY_NAMES),
        ("head_transform", "lm_head.dense"),
        ("head_norm", "lm_head.layer_norm"),
        ("lm_head.bias", "lm_head.bias"),
        ("lm_head.unused", "lm_head.decoder"),
        ("lm_head", "lm_head.decoder"),
        ("classifier_transform", "classifier.dense"),
        ("classifier", "classifier.out_proj"),
    ],
    hf_head_names={"tokens": [("classifier", "classifier")]},
    default_tokenizer="RobertaTokenizer",
)
