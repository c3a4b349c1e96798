"""Models in Hugging Face folders: config.json and model.safetensors, in and out. Llama-family for now.

A parameter, an adapter's tensor and a target all go through the same names (names.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .accounting import count_parameters
from .backend import Array
from .checkpoint import load_tensors, read_json, tensors_to_bytes, to_json, weights_hash, write_folder
from .families import llama
from .lora import LoRALinear, MergedLinear
from .names import hub_name
from .transformer import Config, Transformer

BUILTIN = Path(__file__).parent / "data" / "builtin"
TENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"

# What a Llama config.json calls the numbers of a Config.
KEYS = {
    "vocab": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "hidden": "intermediate_size",
    "context": "max_position_embeddings",
    "eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "tied": "tie_word_embeddings",
}
# What else it may say, and the one value of each that is implemented.
ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "is_causal": True,
    "sliding_window": None,
    "mlp_bias": False,
    "rope_scaling": None,
    "pretraining_tp": 1,
    "quantization_config": None,
}


def their_name(model: Transformer, path: str) -> str:
    """block_0.attention.q_proj -> model.layers.0.self_attn.q_proj. Raises ValueError for a family not supported yet."""
    if model.family != "llama":
        raise ValueError(f"Hugging Face's names are known for llama models, not yet for {model.family}")
    return hub_name(model.family, path)


def load_pretrained(source: str | Path = "builtin", dtype: str = "float32") -> Transformer:
    """The model in a folder, or the "builtin" one: a llama over bytes, pretrained on Python's documentation.

    The weights may be stored in any of float16, bfloat16, float32 and float64, in one file or in shards.
    Raises FileNotFoundError for a missing folder or file, ValueError for a family or feature that is not supported
    and for weights that are damaged, not finite, or do not fit the config.
    """
    folder = BUILTIN if source == "builtin" else Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {source!r}: give 'builtin' or a folder with config.json and model.safetensors"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: it is not a model folder")
    config, tensors = read_config(folder / "config.json", dtype), read_checkpoint(folder)
    stored_twice = tensors.pop("lm_head.weight", None) if config.tied else None  # as some writers do
    try:
        if stored_twice is not None and not np.array_equal(
            stored_twice, tensors.get("model.embed_tokens.weight", np.nan)
        ):
            raise ValueError("tie_word_embeddings = True, and lm_head.weight is not model.embed_tokens.weight")
        if config.layers > len(tensors):  # before so many layers are made
            raise ValueError(f"num_hidden_layers = {config.layers}, and there are {len(tensors)} tensors")
        model = llama(config, rng=None)
        ours = {their_name(model, path): path for path in model.named_parameters()}
        model.load_state_dict({ours.get(name, name): data for name, data in tensors.items()})
    except ValueError as error:
        raise ValueError(f"the tensors of {folder} do not fit its config.json: {error}") from None
    return model


def read_checkpoint(source: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a model folder (or "builtin"), from one file or from the shards that its index names.

    Raises FileNotFoundError for a missing file, ValueError for one that is damaged (load_tensors) or an index of
    nothing.
    """
    folder = BUILTIN if source == "builtin" else Path(source)
    if (folder / TENSORS).is_file():
        files = {TENSORS}
    elif (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{folder / INDEX} has no weight_map from tensors to files")
        files = {str(file) for file in weight_map.values()}
    else:
        raise FileNotFoundError(f"{folder} holds no {TENSORS} and no {INDEX}: it is not a checkpoint in safetensors")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(files):
        tensors |= load_tensors(folder / file)[0]
    return tensors


def base_hash(model: Transformer) -> str:
    """sha256 over the base's names, shapes and bytes; the same with an adapter attached as without."""
    return weights_hash({path: x for path, x in model.state_dict().items() if not path.endswith(("lora_A", "lora_B"))})


def read_config(path: Path, dtype: str) -> Config:
    """A Llama config.json, as transformers 4 or 5 writes it. Raises ValueError for what is not implemented."""
    values = read_json(path)
    if values.get("model_type") != "llama":
        raise ValueError(f"{path}: family {values.get('model_type')!r} is not supported yet, only 'llama'")
    for key, only in ONLY.items():
        if values.get(key, only) != only:
            raise ValueError(f"{path}: {key} = {values[key]!r} is not supported, only {only!r}")
    rope = values.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError(f"{path}: rope_parameters = {rope!r} is not supported, only rope_type 'default'")
    values = {"rope_theta": 10000.0, "tie_word_embeddings": False} | values
    values["rope_theta"] = rope.get("rope_theta", values["rope_theta"])
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = values.get("num_attention_heads")
    for key in KEYS.values():
        if key not in values:
            raise ValueError(f"{path} lacks {key!r}")
        if values[key] == 0 and values[key] is not False:  # which would ask a Config to derive it
            raise ValueError(f"{path}: {key} = 0 is not supported")
    try:
        config = Config(**{ours: values[theirs] for ours, theirs in KEYS.items()}, dtype=dtype)
    except ValueError as error:
        name, says = str(error).split(" ", 1)
        raise ValueError(f"{path}: {KEYS.get(name, name)} {says}") from None
    if values.get("head_dim") not in (None, config.head_dim):
        raise ValueError(
            f"{path}: head_dim = {values['head_dim']} is not supported, only width/heads = {config.head_dim}"
        )
    return config


def save_pretrained(model: Transformer, folder: str | Path) -> None:
    """Write config.json and model.safetensors, merged adapters merged; `transformers` loads the folder.

    Raises ValueError while adapters are attached and not merged, or when the folder holds something already.
    """
    write_folder(folder, model_files(model))


def model_files(model: Transformer) -> dict[str, bytes]:
    """{file name: content} of `model`. Raises as save_pretrained does."""
    modules = [module for _, module in model.named_modules()]
    adapted, merged = (sum(isinstance(m, kind) for m in modules) for kind in (LoRALinear, MergedLinear))
    if adapted:
        raise ValueError(f"{adapted} layers are adapted: merge(model) first, or save the adapter by itself")
    tensors: dict[str, Array] = {their_name(model, path): data for path, data in model.state_dict().items()}
    config = model.config
    values: dict[str, Any] = {
        **{theirs: getattr(config, ours) for ours, theirs in KEYS.items()},
        **{key: only for key, only in ONLY.items() if only is not None},
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": config.head_dim,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "dtype": str(next(iter(tensors.values())).dtype),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return {
        "config.json": to_json(values),
        TENSORS: tensors_to_bytes(tensors, {"format": "pt", "adapters_merged": str(merged)}),
    }


def describe_model(folder: Path) -> dict[str, str]:
    """What `minilora info` says of a model folder."""
    model = load_pretrained(folder)
    config = model.config
    return {
        "model": f"{model.family}, {count_parameters(model)['total']:,} parameters",
        "layers": f"{config.layers} of width {config.width}, hidden {config.hidden}",
        "heads": f"{config.heads} of width {config.head_dim}, {config.kv_heads} for keys and values",
        "vocabulary": f"{config.vocab}, {'tied' if config.tied else 'untied'} head",
        "positions": f"{config.context}, rotary with theta {config.rope_theta:g}",
        "base sha256": base_hash(model),
    }
