"""What PEFT's two files hold: the keys of adapter_config.json, the names of the tensors, and which layers are meant.

The rules are those of PEFT 0.21.2 (tuners/tuners_utils.py, utils/other.py, utils/save_and_load.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..checkpoint import load_tensors, read_json
from ..lora import Adapter, is_number
from ..modules import Embedding, LayerNorm, Linear, Module, RMSNorm
from ..pretrained import their_name
from ..transformer import Transformer
from .regular import check_regular

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PAIR = re.compile(
    r"base_model\.model\.(?P<name>.{1,200})\.(lora_(?P<side>A|B)\.weight|lora_embedding_(?P<embedding>A|B))"
)  # the name of a tensor of a layer's A or B
PREFIX = "base_model.model."  # of every tensor; after it the path in Hugging Face's model

# Keys whose feature is not implemented, with the value that leaves it off.
OFF: dict[str, Any] = {
    "use_dora": False,
    "lora_bias": False,
    "layer_replication": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_qalora": False,
    "use_bdlora": None,
    "alora_invocation_tokens": None,
    "kasa_config": None,
    "arrow_config": None,
    "monteclora_config": None,
    "velora_config": None,
    "megatron_config": None,
}
# Keys that are read.
READ = {
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("fan_in_fan_out", "init_lora_weights", "ensure_weight_tying"),
}
# Keys that say where an adapter is from, or how it was started, and nothing of what it computes.
INFORMATION = {
    *("task_type", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version"),
    *("eva_config", "corda_config", "loftq_config", "lora_ga_config", "megatron_core", "qalora_group_size"),
}
# The ways to start that leave the base as it is (PEFT 0.21.2, tuners/lora/layer.py). The others, "pissa", "olora",
# "corda", "loftq" and "lora_ga", take from W what they give to A and B: their adapter is for another base.
KEEP_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
BIAS = "none", "all", "lora_only"
REGULAR = "target_modules", "exclude_modules"  # keys that are lists of names, or one regular expression
# Keys whose every name is a regular expression, and what PEFT puts around it.
WHOLE = {
    "modules_to_save": r"(^|.*\.)PATTERN($|\..*)",
    "layers_pattern": r"(?:^|.*?\.)PATTERN\.(?P<i>\d+)\.",
    "rank_pattern": r"(.*\.)?(PATTERN)$",
    "alpha_pattern": r"(.*\.)?(PATTERN)$",
}

TIED_NAMES = "embed_tokens", "lm_head"  # the names by which PEFT knows an embedding and a head that may be tied
CLASSIFIERS = "classifier", "score"  # what PEFT adds to modules_to_save for the tasks SEQ_CLS and TOKEN_CLS


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, str]]:
    """The config, tensors and metadata in an adapter folder.

    Raises FileNotFoundError for a missing file; ValueError for damaged ones, for a pickle, which is never read, and for
    a key of the config that is not supported, or not known and not empty.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: it is not an adapter folder")
    config = read_json(path)
    try:
        check_config(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if (folder / PICKLE).is_file() and not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{folder / PICKLE} is a pickle, which can run code and is never read: load it in PEFT and save it again, "
            f"as {WEIGHTS}"
        )
    return config, *load_tensors(folder / WEIGHTS)


def check_config(config: dict[str, Any]) -> None:
    """Raise ValueError, with the key and its value, for what is missing, not supported, not known, or of another kind.

    What depends on the model (ranks, names) is checked with it.
    """
    for key in ("r", "lora_alpha"):
        if key not in config:
            raise ValueError(f"it lacks {key!r}")
    if config.get("peft_type") not in ("LORA", None):
        raise ValueError(f"peft_type = {config['peft_type']!r} is not supported, only 'LORA'")
    for key, value in config.items():
        if key in OFF and value not in (OFF[key], None):
            raise ValueError(f"{key} = {value!r} is not supported, only {OFF[key]!r}")
        if key not in {*OFF, *READ, *INFORMATION} and value not in (None, False, "", [], {}):
            raise ValueError(f"{key} = {value!r} is not known here, so what it changes would be ignored")
    for key in ("use_rslora", "fan_in_fan_out", "ensure_weight_tying"):
        if config.get(key) not in (True, False, None):
            raise ValueError(f"{key} = {config[key]!r} is neither true nor false")
    if config.get("bias") not in (*BIAS, None):
        raise ValueError(f"bias = {config['bias']!r} is not one of {', '.join(BIAS)}")
    for key in ("modules_to_save", "layers_pattern", "exclude_modules", "target_modules"):
        value = config.get(key)
        if value is None or is_list_of(value, str) or (isinstance(value, str) and key != "modules_to_save"):
            continue
        raise ValueError(f"{key} is a list of names{' or a regular expression' * (key in REGULAR)}, not {value!r}")
    layers = config.get("layers_to_transform")
    if layers is not None and type(layers) is not int and not is_list_of(layers, int):
        raise ValueError(f"layers_to_transform = {layers!r} is no list of numbers of layers")
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key) is not None and not isinstance(config[key], dict):
            raise ValueError(f"{key} maps regular expressions to numbers, and is {config[key]!r}")
    for key in WHOLE:
        value = config.get(key) or []
        for pattern in [value] if isinstance(value, str) else value:
            check_regular(key, pattern, whole(key, pattern))
    for key in REGULAR:
        if isinstance(config.get(key), str):
            check_regular(key, config[key], config[key])
    if config.get("init_lora_weights") not in KEEP_THE_BASE:
        raise ValueError(
            f"init_lora_weights = {config['init_lora_weights']!r} is not known to leave the base as it is, so the "
            "adapter would not fit it: in PEFT, save it with path_initial_model_for_weight_conversion, or "
            "merge_and_unload() and save the model"
        )


def is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind and item != "" for item in value)


def whole(key: str, pattern: str) -> str:
    """The regular expression that PEFT makes of one pattern, to match a whole name or its beginning."""
    return WHOLE[key].replace("PATTERN", pattern)


# ---- which layers are meant; `name` is a module's in Hugging Face's model ----


def is_target(config: dict[str, Any], name: str) -> bool:
    """Is an adapter to be put on it? target_modules is not "all-linear" here, but what that stands for."""
    targets, excluded = config["target_modules"], config.get("exclude_modules")
    if isinstance(excluded, str) and excluded:
        if re.fullmatch(excluded, name):
            return False
    elif excluded and ends_with(name, excluded):
        return False
    if any(re.match(whole("modules_to_save", saved), name) for saved in config.get("modules_to_save") or []):
        return False
    if isinstance(targets, str):
        return bool(re.fullmatch(targets, name))
    if name in targets:
        return True
    return ends_with(name, targets) and is_layer_to_transform(config, name)


def ends_with(name: str, endings: Collection[str]) -> bool:
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def is_layer_to_transform(config: dict[str, Any], name: str) -> bool:
    """The first number in a name is the layer's; with layers_pattern, the first after such a name."""
    wanted, patterns = config.get("layers_to_transform"), config.get("layers_pattern")
    if wanted is None or wanted == []:
        return True
    if patterns:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        found = (re.match(whole("layers_pattern", pattern), name) for pattern in patterns)
        match = next(filter(None, found), None)
    else:
        match = re.match(r".*?\.[^.]*\.(?P<i>\d+)\.", name)
    return match is not None and int(match["i"]) in ([wanted] if isinstance(wanted, int) else wanted)


def is_saved(config: dict[str, Any], name: str) -> bool:
    """Is it, or a module that it is in, one of modules_to_save? Those are endings of names, not of their parts."""
    parts = name.split(".")
    wholes = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(whole.endswith(saved) for whole in wholes for saved in config.get("modules_to_save") or [])


def first_match(config: dict[str, Any], key: str, name: str, default: Any) -> Any:
    """PEFT's rule for rank_pattern and alpha_pattern: the first regex that matches the end of `name`."""
    patterns = config.get(key) or {}
    return next((value for regex, value in patterns.items() if re.match(whole(key, regex), name)), default)


class Pair(NamedTuple):
    """A (r, in), B (out, r) and s of one layer, as they are stored: ΔW = s B A, of an embedding its transpose."""

    A: np.ndarray
    B: np.ndarray
    s: float


def pairs_of(
    folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], embeddings: bool = False
) -> dict[str, Pair]:
    """{Hugging Face's name of a layer: its pair} of an adapter that no model is there for.

    Raises ValueError for a tensor that is no part of a pair of a linear layer (or with `embeddings` of one), and for
    one that does not fit its partner and the config.
    """
    sides: dict[str, dict[str, np.ndarray]] = {}
    for tensor, x in tensors.items():
        if tensor.endswith(".base_layer.weight"):
            continue  # the frozen weight of an adapted embed_tokens or lm_head
        match = PAIR.fullmatch(tensor)
        if not match or (match["embedding"] and not embeddings):
            what = "layer or an embedding" if embeddings else "layer"
            raise ValueError(f"{folder / WEIGHTS} holds {tensor}, which is no lora_A or lora_B of a linear {what}")
        sides.setdefault(match["name"], {})[match["side"] or match["embedding"]] = x
    pairs = {}
    for name, pair in sides.items():
        A, B = pair.get("A"), pair.get("B")
        r = first_match(config, "rank_pattern", name, config["r"])
        alpha = first_match(config, "alpha_pattern", name, config["lora_alpha"])
        if A is None or B is None or A.ndim != 2 or B.ndim != 2 or not 0 < len(A) == B.shape[1] == r:
            found = " and ".join(str(x.shape) for x in (A, B) if x is not None)
            raise ValueError(f"{folder / WEIGHTS}: {name} needs lora_A ({r}, in) and lora_B (out, {r}), not {found}")
        if not is_number(alpha):
            raise ValueError(f"{folder / CONFIG}: the alpha of {name}, {alpha!r}, is not a number")
        pairs[name] = Pair(A, B, float(alpha) / (math.sqrt(r) if config.get("use_rslora") else r))
    return pairs


# ---- the model's layers, and what their tensors are called ----


def layers_of(model: Transformer) -> dict[str, Any]:
    """{path: module} of all that has parameters; an adapted layer's is the adapter."""
    kinds = Linear | Embedding | LayerNorm | RMSNorm
    return {path: model[path] for path, module in model.named_modules() if isinstance(module, kinds)}


def has_pooler_apart(model: Transformer) -> bool:
    """Has Hugging Face's class a pooler that we lack? An encoder's without a head has; it changes no hidden state."""
    return model.config.head == "none" and model.family in ("bert", "roberta")


def adapter_tensors(model: Transformer, path: str, base: Module) -> dict[str, str]:
    """{"lora_A": its tensor's name, "lora_B": ...}"""
    name = PREFIX + their_name(model, path)
    if isinstance(base, Embedding):
        return {side: f"{name}.{side.replace('lora', 'lora_embedding')}" for side in ("lora_A", "lora_B")}
    return {side: f"{name}.{side}.weight" for side in ("lora_A", "lora_B")}


def own_tensor(model: Transformer, path: str, parameter: str) -> str:
    """The name of a layer's weight or bias, by the module that it is in; of an adapted layer's bias, below it."""
    inside = ".base_layer" if isinstance(model[path], Adapter) else ""
    return f"{PREFIX}{their_name(model, path)}{inside}.{parameter}"


def tied_head(model: Transformer) -> str | None:
    """The path of the head, if it shares the token embedding's weight."""
    layers = layers_of(model)
    head = layers.get("lm_head")
    return "lm_head" if head is not None and head.weight is layers["embed.token"].weight else None


def carried(saved: Collection[str], biases: Collection[str]) -> list[str]:
    """The paths of the base's parameters of which the adapter has its own: they are no part of what it stands on."""
    return [f"{path}.{name}" for path in saved for name in ("weight", "bias")] + [f"{path}.bias" for path in biases]
