"""Models in Hugging Face folders: config.json and model.safetensors, in and out. Llama-family for now.

A parameter, an adapter's tensor and a target all go through the same names (names.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .accounting import count_parameters
from .backend import Array
from .checkpoint import load_tensors, read_json, tensors_to_bytes, to_json, weights_hash, write_folder
from .families import llama
from .lora import LoRALinear, MergedLinear
from .names import hub_name
from .transformer import Config, Transformer

BUILTIN = Path(__file__).parent / "data" / "builtin"

# What a Llama config.json may say, and the one value of each that is implemented.
ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "pretraining_tp": 1,
}


def their_name(model: Transformer, path: str) -> str:
    """block_0.attention.q_proj -> model.layers.0.self_attn.q_proj. Raises ValueError for a family not supported yet."""
    if model.family != "llama":
        raise ValueError(f"Hugging Face's names are known for llama models, not yet for {model.family}")
    return hub_name(model.family, path)


def load_pretrained(source: str | Path = "builtin", dtype: str = "float32") -> Transformer:
    """The model in a folder, or the "builtin" one: a llama over bytes, pretrained on Python's documentation.

    Raises FileNotFoundError for a missing folder or file, ValueError for a family or feature that is not supported
    and for weights that are damaged or do not fit the config.
    """
    folder = BUILTIN if source == "builtin" else Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {source!r}: give 'builtin' or a folder with config.json and model.safetensors"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: it is not a model folder")
    model = llama(read_config(folder / "config.json", dtype), rng=None)
    tensors, _ = load_tensors(folder / "model.safetensors")
    ours = {their_name(model, path): path for path in model.named_parameters()}
    if model.config.tied:
        tensors.pop("lm_head.weight", None)  # some writers store the tied weight twice
    try:
        model.load_state_dict({ours.get(name, name): data for name, data in tensors.items()})
    except ValueError as error:
        raise ValueError(f"{folder / 'model.safetensors'} does not fit its config.json: {error}") from None
    return model


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
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise ValueError(f"{path}: rope_parameters = {rope!r} is not supported, only rope_type 'default'")
    try:
        config = Config(
            vocab=values["vocab_size"],
            layers=values["num_hidden_layers"],
            width=values["hidden_size"],
            heads=values["num_attention_heads"],
            kv_heads=values.get("num_key_value_heads") or 0,
            hidden=values["intermediate_size"],
            context=values["max_position_embeddings"],
            rope_theta=rope.get("rope_theta", values.get("rope_theta", 10000.0)),
            eps=values["rms_norm_eps"],
            tied=values.get("tie_word_embeddings", False),
            dtype=dtype,
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
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
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rms_norm_eps": config.eps,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "dtype": str(next(iter(tensors.values())).dtype),
        "bos_token_id": None,
        "eos_token_id": None,
        **ONLY,
    }
    return {
        "config.json": to_json(values),
        "model.safetensors": tensors_to_bytes(tensors, {"format": "pt", "adapters_merged": str(merged)}),
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
