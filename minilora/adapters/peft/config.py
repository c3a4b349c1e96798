"""What adapter_config.json says: the keys that are known, what each may hold, and how PEFT matches its names.

The rules are those of PEFT 0.21.2 (tuners/tuners_utils.py, utils/other.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from ..base import is_number
from .regular import check_regular

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

# What else PEFT makes: peft_type -> what it is. Those of PROMPTS change no weight, so there is nothing to merge.
OTHER_TYPES = {
    "ADALORA": "AdaLoRA, which trains a singular value decomposition of each update and prunes its ranks",
    "ADAMSS": "AdaMSS, which trains low-rank updates in subspaces of each weight",
    "BEFT": "BEFT, which trains biases of some projections",
    "BOFT": "BOFT, which rotates weights by butterfly factors",
    "C3A": "C3A, which trains block-circulant updates",
    "DEFT": "DEFT, which projects a part of each weight away and trains another in its place",
    "DELORA": "DeLoRA, which trains direction and strength of a low-rank update apart",
    "FOURIERFT": "FourierFT, which trains Fourier coefficients of the update",
    "FROD": "FRoD, which trains sparse updates in a basis that all layers share",
    "GLORA": "GLoRA, which scales and shifts weights and biases",
    "GRALORA": "GraLoRA, which trains a low-rank update for each block of a weight",
    "HIRA": "HiRA, which multiplies each weight by a low-rank one, entry by entry",
    "HRA": "HRA, which reflects weights",
    "IA3": "(IA)³, which trains a scale for each activation",
    "LILY": "Lily, which shares A and B among layers and mixes them by a router",
    "LN_TUNING": "LN tuning, which trains the layer norms",
    "LOHA": "LoHa, which trains a Hadamard product of two low-rank matrices",
    "LOKR": "LoKr, which trains a Kronecker product",
    "MISS": "MiSS, which trains one small matrix that is repeated over a weight",
    "OFT": "OFT, which rotates weights",
    "OSF": "OSF, which trains the small singular directions of each weight",
    "PEANUT": "PEANuT, which makes the update from the weight by a small network",
    "POLY": "Poly, which mixes several LoRA adapters for each task",
    "PSOFT": "PSOFT, which rotates weights in a low-rank subspace",
    "PVERA": "PVeRA, which is VeRA with scales that are drawn at random",
    "RANDLORA": "RandLoRA, which trains scales of many random low-rank matrices",
    "ROAD": "RoAd, which rotates pairs of outputs",
    "SHADOW": "ShadowPEFT, which runs a small trained network beside the model",
    "SHIRA": "SHiRA, which trains a sparse set of the entries of each weight",
    "SUPERTUNING": "Super-Tuning, which trains a sparse set of the entries of each weight",
    "TINYLORA": "TinyLoRA, which trains a few numbers in the singular directions of each weight",
    "TRAINABLE_TOKENS": "trainable tokens, which are rows of the embedding",
    "UNILORA": "Uni-LoRA, which projects all of A and B from one short vector",
    "VBLORA": "VB-LoRA, which composes A and B from a shared bank of vectors",
    "VERA": "VeRA, which trains two scales around random matrices that all layers share",
    "WAVEFT": "WaveFT, which trains wavelet coefficients of the update",
    "XLORA": "X-LoRA, which mixes several LoRA adapters",
    "ADAPTION_PROMPT": "an adaption prompt, which is learned tokens inside the attention of the upper layers",
    "CARTRIDGE": "a cartridge, which is learned keys and values before the text",
    "CPT": "context-aware prompt tuning, which is learned embeddings before the text",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning, which is learned embeddings before the text",
    "P_TUNING": "P-tuning, which is learned embeddings before the text",
    "PREFIX_TUNING": "prefix tuning, which is learned keys and values before the text",
    "PROMPT_TUNING": "prompt tuning, which is learned embeddings before the text",
}
PROMPTS = (
    *("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING"),
    *("P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING"),
)

TIED_NAMES = "embed_tokens", "lm_head"  # the names by which PEFT knows an embedding and a head that may be tied
CLASSIFIERS = "classifier", "score"
# What PEFT adds to modules_to_save for a task_type, whatever the model has (peft_model.py).
ADDED = {"SEQ_CLS": CLASSIFIERS, "TOKEN_CLS": CLASSIFIERS, "QUESTION_ANS": ("qa_outputs",)}


def check_config(config: dict[str, Any]) -> None:
    """Raise ValueError, with the key and its value, for what is missing, not supported, not known, or of another kind.

    What depends on the model, the names and the numbers of layers, is checked with it (plan.py).
    """
    check_type(config)
    for key in ("r", "lora_alpha"):
        if key not in config:
            raise ValueError(f"it lacks {key!r}, which PEFT always writes for LoRA: save it again in PEFT")
    for key, value in config.items():
        if key in OFF and value not in (OFF[key], None):
            raise ValueError(f"{key} = {short(value)} is not supported, only {OFF[key]!r}")
        if key not in {*OFF, *READ, *INFORMATION} and value not in (None, False, "", [], {}):
            raise ValueError(f"{key} = {short(value)} is not known here, so what it changes would be ignored")
    if config.get("init_lora_weights") not in KEEP_THE_BASE:
        raise ValueError(
            f"init_lora_weights = {short(config['init_lora_weights'])} is not known to leave the base as it is, so the "
            "adapter would not fit it: in PEFT, save it with path_initial_model_for_weight_conversion, or "
            "merge_and_unload() and save the model"
        )
    check_kinds(config)
    check_numbers(config)
    for key in WHOLE:
        for pattern in entries(config, key):
            check_regular(key, pattern, whole(key, pattern))
    for key in REGULAR:
        if isinstance(config.get(key), str):
            check_regular(key, config[key], config[key])
    layers, targets = config.get("layers_to_transform"), config.get("target_modules")
    if config.get("layers_pattern") and layers is None:
        raise ValueError(
            f"layers_pattern = {short(config['layers_pattern'])} does nothing without layers_to_transform: give the "
            "numbers of the layers too, or take it out"
        )
    if isinstance(targets, str) and layers is not None:
        raise ValueError(
            f"layers_to_transform = {short(layers)} does nothing beside target_modules = {short(targets)}, which is no "
            "list: say the layers in the regular expression, or take it out"
        )


def check_type(config: dict[str, Any]) -> None:
    """Raise ValueError, saying what it is, for an adapter that is not LoRA."""
    if "peft_type" not in config:
        raise ValueError(
            "it lacks 'peft_type', which PEFT always writes: it is no adapter of PEFT; peft.layouts converts those of "
            "mlx-lm and loralib"
        )
    kind = config["peft_type"]
    if kind == "LORA":
        return
    what = OTHER_TYPES.get(kind, "not a kind that is known here") if isinstance(kind, str) else "no name"
    instead = "merge it into its base (merge_and_unload) and save that model"
    if kind in PROMPTS:
        instead = "no weight can hold it, so generate with it there"
    raise ValueError(f"peft_type = {short(kind)} is {what}; only 'LORA' is read here: in PEFT, {instead}")


def check_kinds(config: dict[str, Any]) -> None:
    for key in ("use_rslora", "fan_in_fan_out", "ensure_weight_tying"):
        if config.get(key) not in (True, False, None):
            raise ValueError(f"{key} = {short(config[key])} is neither true nor false")
    if config.get("bias") not in (*BIAS, None):
        raise ValueError(f"bias = {short(config['bias'])} is not one of {', '.join(BIAS)}")
    for key in ("modules_to_save", "layers_pattern", "exclude_modules", "target_modules"):
        value = config.get(key)
        if value is None or is_list_of(value, str) or (isinstance(value, str) and key != "modules_to_save"):
            continue
        raise ValueError(f"{key} is a list of names{' or a regular expression' * (key in REGULAR)}, not {short(value)}")
    layers = config.get("layers_to_transform")
    if layers is not None and type(layers) is not int and not is_list_of(layers, int):
        raise ValueError(f"layers_to_transform = {short(layers)} is no list of numbers of layers")
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key) is not None and not isinstance(config[key], dict):
            raise ValueError(f"{key} maps regular expressions to numbers, and is {short(config[key])}")


def check_numbers(config: dict[str, Any]) -> None:
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    for key, r in [("r", config["r"]), *(("rank_pattern", r) for r in ranks.values())]:
        if type(r) is not int or not 0 < r < 2**31:
            raise ValueError(f"{key}: rank {short(r)} is not a whole number from 1 to {2**31 - 1}")
    for key, alpha in [("lora_alpha", config["lora_alpha"]), *(("alpha_pattern", alpha) for alpha in alphas.values())]:
        if not is_number(alpha):
            raise ValueError(f"{key}: alpha {short(alpha)} is not a number that a float can hold")
    dropout = config.get("lora_dropout")
    if dropout is not None and not (is_number(dropout) and 0 <= dropout < 1):
        raise ValueError(f"lora_dropout: dropout {short(dropout)} is not a probability below 1")


def short(value: Any) -> str:
    """A value from a file, in a line for people."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def entries(config: dict[str, Any], key: str) -> list[str]:
    """The names that a key holds: one, a list, or the keys of a mapping."""
    value = config.get(key) or []
    return [value] if isinstance(value, str) else list(value)


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


def matches(config: dict[str, Any], key: str, entry: str, name: str) -> bool:
    """Does one of the entries of a key match this module?"""
    if key == "modules_to_save":
        return is_saved({key: [entry]}, name)
    if key in WHOLE:
        return bool(re.match(whole(key, entry), name))
    return bool(re.fullmatch(entry, name)) if isinstance(config[key], str) else ends_with(name, [entry])


def ends_with(name: str, endings: Collection[str]) -> bool:
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def is_layer_to_transform(config: dict[str, Any], name: str) -> bool:
    """The first number in a name is the layer's; with layers_pattern, the first after such a name."""
    wanted, patterns = config.get("layers_to_transform"), entries(config, "layers_pattern")
    if wanted is None or wanted == []:
        return True
    if patterns:
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
