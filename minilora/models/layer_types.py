"""Layers with and without a window in a config.json, and a theta for each kind: the fields of Config, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import rope_json
from .config import LAYER_TYPES, Config

FULL, SLIDING = LAYER_TYPES
Thetas = Mapping[str, tuple[str, float]]  # type of layer -> the key of its theta in older files, and the usual theta


def check_interval(key: str, every: Any) -> None:
    """Raise ValueError unless a key that says which layers, every so many, has a whole number from 1 up."""
    if type(every) is not int or every < 1:
        raise ValueError(f"{key} = {every!r:.80} is not a whole number from 1 up")


def window_fields(values: Mapping[str, Any], window: Any, is_full: Callable[[int], bool]) -> dict[str, Any]:
    """The fields sliding_window and layer_types; {} if no layer has a window. Without layer_types in the config.json,
    is_full(i) tells whether layer i has none.

    Raises ValueError for layer_types that are not a list of names.
    """
    n, types = values["num_hidden_layers"], values.get("layer_types")
    if types is None and type(n) is int:
        types = [FULL if is_full(i) else SLIDING for i in range(n)]
    if not isinstance(types, list) or not all(isinstance(name, str) for name in types):
        raise ValueError(f"layer_types = {types!r:.80} is not a list of names")
    return {} if set(types) == {FULL} else {"sliding_window": window, "layer_types": tuple(types)}


def window_keys(config: Config) -> dict[str, Any]:
    return {"layer_types": [FULL if config.window(i) is None else SLIDING for i in range(config.n_layers)]}


def rope_fields(values: Mapping[str, Any], thetas: Thetas) -> dict[str, Any]:
    """rope_theta, rope_scaling and local_rope_theta: from rope_parameters by type of layer (transformers 5), or from
    the keys of `thetas` and rope_scaling, which is for the layers without a window (transformers 4).

    Raises ValueError as rope_json.rope_fields does, and for a scaling in the layers with a window.
    """
    given = values.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"rope_parameters = {given!r:.80} is not supported")
    found = {}
    for kind, (key, usual) in thetas.items():
        own, scaling = given.get(kind) or {}, values.get("rope_scaling") if kind == FULL else None
        theta = own.get("rope_theta", values.get(key, usual)) if isinstance(own, Mapping) else usual
        rope = {"rope_theta": theta, "rope_parameters": own, "rope_scaling": scaling}
        found[kind] = rope_json.rope_fields({**values, **rope})
    if len(found[SLIDING]) > 1:
        raise ValueError(f"rope_parameters = {dict(given)!r:.80} is not supported: a scaling in layers with a window")
    one = found[SLIDING] == found[FULL]
    return found[FULL] | ({} if one else {"local_rope_theta": found[SLIDING]["rope_theta"]})


def rope_keys(config: Config, thetas: Thetas) -> dict[str, Any]:
    """What rope_fields reads, for transformers 4 and 5."""
    keys, local = rope_json.rope_keys(config), config.local_rope_theta or config.rope_theta
    own = {FULL: keys.pop("rope_parameters"), SLIDING: {"rope_type": "default", "rope_theta": local}}
    del keys["rope_theta"]
    return keys | {key: own[kind]["rope_theta"] for kind, (key, _) in thetas.items()} | {"rope_parameters": own}
