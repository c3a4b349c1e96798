"""Rotary positions in a config.json: the fields of Config for its keys, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ops import RopeScaling
from .config import HUGE, Config


def rope_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling, from rope_parameters (transformers 5) or rope_scaling (transformers 4).

    Raises ValueError for a rule other than those of ops/rope.py.
    """
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.get(key) or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"{key} = {rope!r:.80} is not supported")
    theta = rope.get("rope_theta", values.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta}
    names = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    numbers: list[Any] = [rope.get(name) for name in names]
    if kind != "llama3" or not all(type(number) in (int, float) and 0 < number < HUGE for number in numbers):
        raise ValueError(f"{key} = {dict(rope)!r:.80} is not supported, only 'default' and a whole 'llama3'")
    scaling = RopeScaling(*numbers)
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ValueError(f"{key} = {dict(rope)!r:.80} is not supported: high_freq_factor must be above low_freq_factor")
    return {"rope_theta": theta, "rope_scaling": scaling}


def rope_keys(config: Config) -> dict[str, Any]:
    """rope_theta and rope_scaling for transformers 4, rope_parameters for transformers 5."""
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.rope_scaling is None:
        return {"rope_theta": config.rope_theta, "rope_parameters": rope}
    factor, low, high, trained = config.rope_scaling
    rope |= {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    rope |= {"original_max_position_embeddings": trained}
    return {"rope_theta": config.rope_theta, "rope_parameters": rope, "rope_scaling": rope}
