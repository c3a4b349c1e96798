"""Architectures by name, or from a config.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from ..files import read_json
from ..models.config import LABELLED
from ..models.hub import fetch, name_on_hub
from ..models.names import ENDINGS
from ..spelling import choose_from
from .architecture import Architecture
from .families import bert, deberta, gpt2, llama, t5, vit

BUILTIN = Path(__file__).parent.parent / "data" / "builtin"

Builder: TypeAlias = Callable[[Mapping[str, Any], str, int], Architecture]
BUILDERS: dict[str, tuple[Builder, str, list[str]]] = {  # and the stem of its class names; its heads, the usual first
    "gpt2": (gpt2, "GPT2", ["lm", "classify", "tokens", "none"]),
    "llama": (llama, "Llama", ["lm", "classify", "tokens", "none"]),
    "mistral": (llama, "Mistral", ["lm", "classify", "tokens", "none"]),
    "qwen2": (llama, "Qwen2", ["lm", "classify", "tokens", "none"]),
    "bert": (bert, "Bert", ["none", "classify", "tokens", "lm"]),
    "roberta": (bert, "Roberta", ["none", "classify", "tokens", "lm"]),
    "deberta-v2": (deberta, "DebertaV2", ["none", "classify", "tokens"]),
    "vit": (vit, "ViT", ["classify", "none"]),
    "t5": (t5, "T5", ["lm", "none"]),
}
CLASSES = ENDINGS | {"ForImageClassification": "classify", "ForConditionalGeneration": "lm"}
del CLASSES["ForPreTraining"]  # BERT's has a second head

# What a config's numbers may be. Every layer is laid out by itself, so that a file cannot ask for any number of them;
# the rest only multiply, and must stay within what floating point shows.
LAYERS = ("n_layer", "num_hidden_layers", "num_layers", "num_decoder_layers")
MOST_LAYERS, MOST = 10_000, 2**40
SIZES = (
    *LAYERS, "n_embd", "n_inner", "n_head", "n_positions", "vocab_size", "hidden_size", "intermediate_size",
    "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "position_buckets",
    "image_size", "patch_size", "num_channels", "num_labels", "d_model", "d_kv", "d_ff", "num_heads",
    "relative_attention_num_buckets",
)  # fmt: skip
FROM_ZERO = ("type_vocab_size", "conv_kernel_size")
MAY_LACK = ("n_inner", "num_key_value_heads", "head_dim", "num_decoder_layers", "num_labels")  # null is as if not there
FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "qkv_bias", "fused")


def gpt2_sizes(width: int, layers: int, heads: int, **rest: Any) -> dict[str, Any]:
    usual = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}
    return usual | {"n_embd": width, "n_layer": layers, "n_head": heads, **rest}


def bert_sizes(width: int, layers: int, heads: int, **rest: Any) -> dict[str, Any]:
    usual = {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return usual | sizes | {"intermediate_size": 4 * width, **rest}


def llama_sizes(width: int, layers: int, heads: int, kv_heads: int, hidden: int, **rest: Any) -> dict[str, Any]:
    usual = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096}
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return usual | sizes | {"num_key_value_heads": kv_heads, "intermediate_size": hidden, **rest}


ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
LLAMA_3 = {"vocab_size": 128256, "max_position_embeddings": 131072}
NAMED: dict[str, dict[str, Any]] = {
    "gpt2": gpt2_sizes(768, 12, 12),
    "gpt2-medium": gpt2_sizes(1024, 24, 16),
    "gpt2-large": gpt2_sizes(1280, 36, 20),
    "gpt2-xl": gpt2_sizes(1600, 48, 25),
    # Brown et al. (2020), table 2.1; q, k and v apart, as the LoRA paper adapts them
    "gpt3-175b": gpt2_sizes(12288, 96, 96, n_positions=2048, fused=False),
    "bert-base": bert_sizes(768, 12, 12),
    "bert-large": bert_sizes(1024, 24, 16),
    "roberta-base": bert_sizes(768, 12, 12, **ROBERTA),
    "roberta-large": bert_sizes(1024, 24, 16, **ROBERTA),
    "deberta-v2-xxlarge": bert_sizes(
        1536, 48, 24, model_type="deberta-v2", vocab_size=128100, type_vocab_size=0, relative_attention=True,
        position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type="p2c|c2p",
        conv_kernel_size=3, position_biased_input=False,
    ),
    "t5-base": {
        "model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12,
        "vocab_size": 32128, "relative_attention_num_buckets": 32,
    },
    "vit-base": {
        "model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "image_size": 224, "patch_size": 16, "num_channels": 3, "num_labels": 1000,
    },
    "llama-2-7b": llama_sizes(4096, 32, 32, 32, 11008),
    "llama-2-13b": llama_sizes(5120, 40, 40, 40, 13824),
    "llama-2-70b": llama_sizes(8192, 80, 64, 8, 28672),
    "llama-3.1-8b": llama_sizes(4096, 32, 32, 8, 14336, **LLAMA_3),
    "llama-3.1-70b": llama_sizes(8192, 80, 64, 8, 28672, **LLAMA_3),
    "mistral-7b": llama_sizes(
        4096, 32, 32, 8, 14336, model_type="mistral", max_position_embeddings=32768, sliding_window=4096
    ),
    "smollm2-135m": llama_sizes(
        576, 30, 9, 3, 1536, vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True
    ),
    "builtin": {},  # read from its folder
}  # fmt: skip

PRINTED = {  # another total than ours, or a rounder one, and where it stands
    "gpt3-175b": ("175,255.8M", "Hu et al. (2021), table 4; 175B in Brown et al. (2020)"),
    "gpt2-medium": ("354.92M", "Hu et al. (2021), table 3"),
    "gpt2-large": ("774.03M", "Hu et al. (2021), table 3"),
}


def architecture(
    source: str | Path | Mapping[str, Any], head: str | None = None, labels: int | None = None
) -> Architecture:
    """A name in NAMED, a config.json or the folder that holds one, a name on the Hugging Face Hub, or what such a file
    says.

    `head`: "lm", "classify" (with `labels` outputs, or as many as the config says, or 2), "tokens" (so many for each
    token) or "none"; without it that of the config's `architectures`, or the family's usual one. Raises
    FileNotFoundError for a name or file that is not there; ValueError for a family, a class, a head or a feature that
    is not known, and for a config that lacks something.
    """
    name, config = read(source)
    family = config.get("model_type", "")
    if not isinstance(family, str) or family not in BUILDERS:
        raise ValueError(f"{name}: family {family!r:.80} is not known: {choose_from(str(family), BUILDERS)}")
    builder, _, heads = BUILDERS[family]
    head = head or head_of(config, name) or heads[0]
    if head not in heads:
        raise ValueError(f"{name}: a {family} has no head {head!r}: {choose_from(head, heads)}")
    if labels is not None and (head not in LABELLED or labels < 1):
        raise ValueError(f"labels = {labels} needs the head 'classify' or 'tokens', and at least one")
    try:
        check_config(config)
        return replace(builder(config, head, labels or labels_of(config)), name=name)
    except KeyError as error:
        raise ValueError(f"{name}: the config lacks {error}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def head_of(config: Mapping[str, Any], name: str) -> str | None:
    """The head of the class that wrote the config, if it names one. Raises ValueError for one that is not counted."""
    written = config.get("architectures")
    if not written:
        return None
    stems = "|".join(stem for _, stem, _ in BUILDERS.values())
    ending = re.sub(f"^({stems})", "", str(written[0])) if isinstance(written, list) else ""
    if ending not in CLASSES:
        raise ValueError(f"{name}: architectures = {written!r:.80} is not counted: say the head")
    return CLASSES[ending]


def labels_of(config: Mapping[str, Any]) -> int:
    return config.get("num_labels") or len(config.get("id2label") or ()) or 2


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that no model can have, naming its key."""
    for key, value in config.items():
        if value is None and key in MAY_LACK:
            continue
        most = MOST_LAYERS if key in LAYERS else MOST
        least = 0 if key in FROM_ZERO else 1
        if key in (*SIZES, *FROM_ZERO) and (type(value) is not int or not least <= value <= most):
            raise ValueError(f"{key} = {value!r:.80} is not a whole number from {least} to {most:,}")
        if key in FLAGS and type(value) is not bool:
            raise ValueError(f"{key} = {value!r:.80} is not true or false")
    if not isinstance(config.get("id2label") or {}, Mapping):
        raise ValueError("id2label is not a table from numbers to names")
    for width, heads in (("n_embd", "n_head"), ("hidden_size", "num_attention_heads")):
        if not config.get("head_dim") and width in config and heads in config and config[width] % config[heads]:
            raise ValueError(f"{width} = {config[width]} does not divide into {heads} = {config[heads]}")
    groups, heads = config.get("num_key_value_heads"), "num_attention_heads"
    if groups and heads in config and config[heads] % groups:
        raise ValueError(f"{heads} = {config[heads]} does not divide into num_key_value_heads = {groups}")
    if "image_size" in config and config["image_size"] < config.get("patch_size", 1):
        raise ValueError(f"a patch of {config['patch_size']} is larger than the image of {config['image_size']}")


def read(source: str | Path | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """A name for it, and what its config.json says."""
    if isinstance(source, Mapping):
        return str(source.get("model_type", "config")), source
    if source == "builtin":
        return "builtin", read_json(BUILTIN / "config.json")
    if str(source) in NAMED:
        return str(source), NAMED[str(source)]
    hub = name_on_hub(source)
    path = fetch(hub, ["config.json"], known=NAMED) if hub else Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} holds no config.json: it is not a model folder")
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"no model is called {str(source)!r} and no such file is there: {choose_from(str(source), NAMED)}"
        )
    return str(source), read_json(path)
