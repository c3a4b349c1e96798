"""Checks of every model family, in a model of two layers and three heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import ops
from ..adapters.attach import attach_lora
from ..models.config import LABELLED, Config
from ..models.families import FAMILIES
from ..models.transformer import Transformer
from .check import Report
from .fed import SHAPES, check, shaken
from .op import EPS, THETA, Rng

VOCABULARY = 11
SPECIAL: dict[str, dict[str, Any]] = {
    "mistral": {"n_kv_heads": 1, "rope_theta": THETA, "sliding_window": 3, "rope_scaling": ops.YarnScaling(2.0, 6)},
    "qwen2": {"n_kv_heads": 1, "rope_theta": THETA, "sliding_window": 3, "max_window_layers": 1},
    "qwen3": {"n_kv_heads": 1, "head_dim": 6, "rope_theta": THETA},
    "llama": {"n_kv_heads": 1, "head_dim": 6, "rope_theta": THETA,
              "rope_scaling": ops.Llama3Scaling(4.0, 0.2, 1.5, 9)},
    "smollm3": {"n_kv_heads": 1, "rope_theta": THETA, "rotary_layers": (False, True)},
    "phi3": {"n_kv_heads": 1, "rope_theta": THETA, "sliding_window": 3},
    "roberta": {"offset": 2, "activation": "gelu"},
    "gemma3_text": {"n_kv_heads": 1, "head_dim": 6, "rope_theta": THETA, "local_rope_theta": 2.0, "sliding_window": 2,
                    "layer_types": ("sliding_attention", "full_attention"), "query_pre_attn_scalar": 3},
    "modernbert": {"rope_theta": THETA, "local_rope_theta": 2.0, "sliding_window": 2, "classifier_pooling": "mean",
                   "layer_types": ("full_attention", "sliding_attention")},
    "vit": {"activation": "gelu", "vocab_size": 0, "image_size": 5, "patch_size": 2, "channels": 2},
    "t5": {"d_ff": 23, "head_dim": 5, "decoder_layers": 3, "gated": False, "relative_buckets": 6,
           "relative_distance": 4},  # all of 7 hidden units may be below 0, where ReLU has no gradient
}  # fmt: skip
BODIES = {name: "lm" if "lm" in family.classes else "none" for name, family in FAMILIES.items()}  # a head for each
CLASSIFIERS = [name for name, family in FAMILIES.items() if "classify" in family.classes]
ENCODERS = [name for name, family in FAMILIES.items() if "tokens" in family.classes]


def model(family: str, rng: Rng, adapted: bool = True, head: str = "") -> Transformer:
    """A model with random parameters; with `adapted`, LoRA is on every linear layer, and on the patch projection."""
    config = Config(VOCABULARY, n_layers=2, d_model=12, n_heads=3, d_ff=7, max_length=9, eps=EPS, dtype="float64")
    config = replace(config, head=head or BODIES[family], labels=4, **SPECIAL.get(family, {}))
    made = FAMILIES[family].build(config, rng)
    if adapted:
        attach_lora(made, "all-linear", r=2, alpha=3, rng=rng)
    if adapted and config.image_size:
        attach_lora(made, ["projection"], r=2, alpha=3, rng=rng)
    return shaken(made, rng)


def checked(
    made: Transformer, shape: tuple[int, int, int, int, str], rng: Rng, invocation: Sequence[int] = ()
) -> Report:
    """Check every gradient of the model's output, for random images or token ids, `invocation` among them."""
    B, T, _, _, side = shape
    x = read_by(made, B, T + 2, rng)
    if invocation:
        x[:, T - 1 : T - 1 + len(invocation)] = invocation
    return check(made, x, side if x.ndim == 2 else "none", rng)


def read_by(made: Transformer, B: int, T: int, rng: Rng) -> np.ndarray:
    """Random token ids (B, T), or B images."""
    c = made.config
    if c.image_size:
        return rng.standard_normal((B, c.channels, c.image_size, c.image_size))
    return rng.integers(0, VOCABULARY, (B, T))


def of_family(family: str, adapted: bool, head: str, rng: Rng) -> Iterator[Report]:
    shapes = SHAPES[1:] if head in LABELLED else SHAPES  # the layers below the head are checked without
    return (checked(model(family, rng, adapted, head), shape, rng) for shape in shapes)
