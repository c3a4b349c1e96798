"""Small models with any head and with adapters that PEFT has too."""

from typing import Any

import numpy as np

import minilora
from minilora.models.config import Config
from minilora.models.families import FAMILIES
from minilora.models.transformer import Transformer
from minilora.nn import Inputs
from minilora.verify.model_cases import SPECIAL

V, T = 31, 7
IDS = np.random.default_rng(9).integers(2, V, (2, T))

PADDING = np.arange(T) < np.array([[T], [4]])


def base(
    family: str = "llama", head: str = "lm", seed: int = 1, tied: bool = True, dtype: str = "float64"
) -> Transformer:
    """A small model no parameter of which is 0 or 1."""
    rng = np.random.default_rng(seed)
    special: dict[str, Any] = SPECIAL | {
        "llama": {"n_kv_heads": 1},
        "qwen3": {"n_kv_heads": 1},
        "smollm3": {"n_kv_heads": 1, "rotary_layers": (True, False)},
        "phi3": {"n_kv_heads": 1},
        "bert": {"activation": "gelu"},
        "roberta": {"offset": 2, "segments": 1, "activation": "gelu"},
    }
    shape = {
        "vocab_size": V, "n_layers": 2, "d_model": 12, "n_heads": 2, "d_ff": 20, "max_length": 16, "labels": 3,
        **special.get(family, {}),
    }  # fmt: skip
    model = FAMILIES[family].build(Config(**shape, head=head, tied=tied, dtype=dtype), rng)
    for parameter in model.named_parameters().values():
        parameter.data = (parameter.data + 0.2 * rng.standard_normal(parameter.data.shape)).astype(dtype)
    return model


def trained(model: Transformer, seed: int = 3) -> Transformer:
    """With other numbers in all that learns."""
    rng = np.random.default_rng(seed)
    for parameter in model.trainable_parameters().values():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.data.shape).astype(parameter.data.dtype)
    return model


def adapted(family: str, head: str, targets: Any, seed: int = 1, tied: bool = True, **words: Any) -> Transformer:
    model = base(family, head, seed, tied)
    minilora.attach_lora(model, targets, rng=np.random.default_rng(2), **{"r": 3, "alpha": 5, **words})
    return trained(model)


def logits(model: Transformer) -> np.ndarray:
    return model.forward(IDS, Inputs(padding=PADDING))[0]
