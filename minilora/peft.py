"""Adapters in Hugging Face PEFT's format: adapter_config.json and adapter_model.safetensors.

A tensor is called base_model.model.<path in the Hugging Face model>.lora_A.weight (r, in), or .lora_B.weight
(out, r). The scaling is in no tensor: it follows from lora_alpha, r and use_rslora in the config.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from .backend import get_array_module
from .checkpoint import load_tensors, read_json, tensors_to_bytes, to_json, write_folder
from .lora import Adapter, LoRALinear, MergedLinear, check_adaptable, last
from .modules import Linear, check_fit
from .pretrained import base_hash, their_name
from .transformer import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Every key that changes what an adapter computes, with the one value that is implemented; others say nothing here.
ONLY: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "lora_bias": False,
    "modules_to_save": None,
    "layers_to_transform": None,
    "layer_replication": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "exclude_modules": None,
    "use_qalora": False,
    "use_bdlora": None,
    "alora_invocation_tokens": None,
    "kasa_config": None,
    "arrow_config": None,
    "monteclora_config": None,
}

# The ways to start that leave the base as it is (PEFT 0.21.2, tuners/lora/layer.py). The others, "pissa", "olora",
# "corda", "loftq" and "lora_ga", take from W what they give to A and B: their adapter is for another base.
KEEP_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def adapters_of(model: Transformer) -> dict[str, LoRALinear]:
    """{dotted path: adapter}. Raises ValueError when there is none, or when they are merged."""
    if any(isinstance(module, MergedLinear) for _, module in model.named_modules()):
        raise ValueError("the adapters are merged: unmerge(model) first")
    found = {path: module for path, module in model.named_modules() if isinstance(module, LoRALinear)}
    if any(isinstance(module, Adapter) and not isinstance(module, LoRALinear) for _, module in model.named_modules()):
        raise ValueError("an adapter of an embedding cannot be saved yet")
    if not found:
        raise ValueError("the model has no adapter: attach_lora(model, ...) first")
    return found


def save_adapter(model: Transformer, folder: str | Path) -> None:
    """Write the adapters of `model` to `folder`, which is made, or must be empty.

    The metadata holds the hash of the base, so that load_adapter can tell another base.
    Raises ValueError when there is no adapter, when it is merged, or when other parameters train too: PEFT keeps
    those under modules_to_save, which is not written yet.
    """
    write_folder(folder, adapter_files(model))


def adapter_files(model: Transformer) -> dict[str, bytes]:
    """{file name: content} of the adapters of `model`. Raises as save_adapter does."""
    adapters = adapters_of(model)
    others = [path for path in model.trainable_parameters() if not path.endswith(("lora_A", "lora_B"))]
    if others:
        raise ValueError(
            f"{len(others)} parameters train beside the adapters ({others[0]}, ...), and an adapter file cannot hold "
            "them yet: keep model.state_dict()"
        )
    first = next(iter(adapters.values()))
    if any(adapter.rslora != first.rslora for adapter in adapters.values()):
        raise ValueError("some adapters scale by alpha/r and some by alpha/sqrt(r): PEFT's config has one use_rslora")
    config: dict[str, Any] = {
        **{key: only for key, only in ONLY.items() if only is not None},
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "target_modules": target_names(model, adapters),
        "r": first.r,
        "lora_alpha": first.alpha,
        "rank_pattern": {their_name(model, path): a.r for path, a in adapters.items() if a.r != first.r},
        "alpha_pattern": {their_name(model, path): a.alpha for path, a in adapters.items() if a.alpha != first.alpha},
        "lora_dropout": first.dropout,
        "use_rslora": first.rslora,
        "init_lora_weights": True,
    }
    tensors = {
        tensor_name(model, path, side): getattr(adapter, side).data
        for path, adapter in adapters.items()
        for side in ("lora_A", "lora_B")
    }
    return {
        WEIGHTS: tensors_to_bytes(tensors, {"format": "pt", "base_sha256": base_hash(model)}),
        CONFIG: to_json(config),
    }


def load_adapter(model: Transformer, folder: str | Path) -> str:
    """Attach the adapter in `folder` to `model`, whose base must be the one it was made for; return a note.

    All else in the model is frozen, adapters of other layers too. An adapter that does not say its base (PEFT's own do
    not) is checked by names and shapes, and the note says so; otherwise the note is empty.
    Raises FileNotFoundError for a missing file, ValueError for another base, a feature that is not supported, layers
    that are adapted already, or missing, unexpected and misshapen tensors; the model is then as it was.
    """
    folder = Path(folder)
    config, tensors, metadata = read_adapter(folder)
    expected = metadata.get("base_sha256")
    if expected and expected != base_hash(model):
        raise ValueError(f"{folder} was made for another base: the weights of this model are not those it names")
    try:
        wanted = what_to_adapt(model, config, tensors)
    except ValueError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit this model and {CONFIG}: {error}") from None
    model.freeze()
    for path, (r, alpha) in wanted.items():
        adapter = LoRALinear(
            model[path],
            r,
            alpha,
            rng=np.random.default_rng(0),
            dropout=config.get("lora_dropout", 0.0),
            rslora=bool(config.get("use_rslora")),
        )
        for side in ("lora_A", "lora_B"):
            parameter = getattr(adapter, side)
            xp = get_array_module(parameter.data)
            parameter.data = xp.asarray(tensors[tensor_name(model, path, side)], dtype=parameter.data.dtype)
        model[path] = adapter
    return "" if expected else f"{folder} does not say which base it is for; its names and shapes fit this one"


def what_to_adapt(
    model: Transformer, config: dict[str, Any], tensors: dict[str, np.ndarray]
) -> dict[str, tuple[int, float]]:
    """{path: (r, alpha)} of the layers to adapt.

    Raises ValueError unless each can be, the tensors are just theirs, and target_modules (if given) name just them.
    """
    wanted: dict[str, tuple[int, float]] = {}
    shapes: dict[str, tuple[int, int]] = {}  # tensor name -> shape
    targets, dropout, rng = config.get("target_modules"), config.get("lora_dropout", 0.0), np.random.default_rng(0)
    for path, module in model.named_modules():
        if not isinstance(module, Linear):
            continue
        theirs, names = their_name(model, path), [tensor_name(model, path, side) for side in ("lora_A", "lora_B")]
        stored = any(name in tensors for name in names)
        named = stored if targets is None else targeted(targets, theirs)
        if stored and not named:
            raise ValueError(f"target_modules = {targets!r} do not name {theirs}, which has tensors")
        if named:
            r = pattern(config.get("rank_pattern"), theirs, config["r"])
            alpha = pattern(config.get("alpha_pattern"), theirs, config["lora_alpha"])
            try:  # model[path], as `module` may be the base inside an adapter
                check_adaptable(model[path], r, alpha, dropout, "uniform", rng)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            n_out, n_in = module.weight.data.shape
            wanted[path] = (r, alpha)
            shapes |= dict(zip(names, [(r, n_in), (n_out, r)], strict=True))
    if not tensors:
        raise ValueError("it holds no tensor")
    check_fit(tensors, shapes)
    return wanted


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, str]]:
    """The config, tensors and metadata in an adapter folder. Raises as load_adapter does."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}: it is not an adapter folder")
    config = read_json(folder / CONFIG)
    for key in ("r", "lora_alpha"):
        if key not in config:
            raise ValueError(f"{folder / CONFIG} lacks {key!r}")
    for key, only in ONLY.items():
        if config.get(key) not in (only, None):
            raise ValueError(f"{folder / CONFIG}: {key} = {config[key]!r} is not supported, only {only!r}")
    if config.get("use_rslora") not in (True, False, None):
        raise ValueError(f"{folder / CONFIG}: use_rslora = {config['use_rslora']!r} is neither true nor false")
    if config.get("init_lora_weights") not in KEEP_THE_BASE:
        raise ValueError(
            f"{folder / CONFIG}: init_lora_weights = {config['init_lora_weights']!r} is not known to leave the base as "
            "it is, so the adapter would not fit it: in PEFT, save it with path_initial_model_for_weight_conversion, "
            "or merge_and_unload() and save the model"
        )
    return config, *load_tensors(folder / WEIGHTS)


def tensor_name(model: Transformer, path: str, side: str) -> str:
    return f"base_model.model.{their_name(model, path)}.{side}.weight"


def target_names(model: Transformer, adapters: dict[str, LoRALinear]) -> list[str]:
    """The last names, if every layer so called is adapted; otherwise the whole paths."""
    names = {last(path) for path in adapters}
    called_so = {path for path, module in model.named_modules() if isinstance(module, Linear) and last(path) in names}
    return sorted(names if called_so == set(adapters) else (their_name(model, path) for path in adapters))


def targeted(targets: Any, name: str) -> bool:
    """PEFT's rule for target_modules: a regex for the whole of `name`, or names that it is or ends with."""
    try:
        if isinstance(targets, str):
            return last(name) != "lm_head" if targets == "all-linear" else bool(re.fullmatch(targets, name))
        return any(f".{name}".endswith(f".{target}") for target in targets)
    except (TypeError, re.error):
        raise ValueError(f"target_modules are names or a regular expression, not {targets!r}") from None


def pattern(patterns: dict[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's rule for rank_pattern and alpha_pattern: the first key that matches the end of `name`, as a regex."""
    try:
        return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", name)), default)
    except (AttributeError, re.error):
        raise ValueError(
            f"a rank_pattern or alpha_pattern maps regular expressions to numbers, not {patterns!r}"
        ) from None


def describe_adapter(folder: Path) -> dict[str, str]:
    """What `minilora info` says of an adapter folder."""
    config, tensors, metadata = read_adapter(folder)
    scaling = "alpha/sqrt(r)" if config.get("use_rslora") else "alpha/r"
    numbers = sum(array.size for array in tensors.values())
    return {
        "adapter": f"LoRA, r = {config['r']}, alpha = {config['lora_alpha']}, scaled by {scaling}",
        "targets": str(config.get("target_modules")),
        "layers": f"{len(tensors) // 2} adapted, {numbers:,} parameters",
        "for base": metadata.get("base_sha256", "not said"),
    }
