"""Rotary positions in a config.json: the fields of Config for its keys, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ops import SCALINGS, DynamicScaling, Llama3Scaling, RopeScaling, YarnScaling
from .config import HUGE, Config


def rope_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling, from rope_parameters (transformers 5) or rope_scaling (transformers 4); of dynamic
    scaling, which goes on past max_position_embeddings, also max_length.

    Raises ValueError for a rule other than those of ops/rope.py, numbers that are none, and heads rotated in part.
    """
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.get(key) or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"{key} = {rope!r:.80} is not supported")
    theta = rope.get("rope_theta", values.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    part = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if part not in (None, 1):
        raise ValueError(f"partial_rotary_factor = {part!r:.80} is not supported: a head is rotated whole")
    if kind == "default":
        return {"rope_theta": theta}
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise ValueError(f"{key} = {dict(rope)!r:.80} is not supported, only {', '.join(('default', *SCALINGS))}")
    lengths = {"max_position_embeddings": values.get("max_position_embeddings")}
    trained = rope.get("original_max_position_embeddings", lengths["max_position_embeddings"])
    lengths["original_max_position_embeddings"] = values.get("original_max_position_embeddings", trained)
    rule: Any = SCALINGS[kind]
    given = {**rule._field_defaults, **rope, **lengths}
    scaling: RopeScaling = rule(**{name: given.get(name) for name in rule._fields})
    wrong = next((name for name, number in scaling._asdict().items() if not fits(rule, name, number)), None)
    if wrong:
        raise ValueError(f"{key} = {dict(rope)!r:.80} is not supported: {wrong} is {given.get(wrong)!r:.80}")
    if isinstance(scaling, Llama3Scaling) and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise ValueError(f"{key} = {dict(rope)!r:.80} is not supported: high_freq_factor must be above low_freq_factor")
    if isinstance(scaling, YarnScaling) and (scaling.beta_fast < scaling.beta_slow or theta == 1):
        raise ValueError(f"{key} = {dict(rope)!r:.80} is not supported: beta_fast is below beta_slow, or theta 1")
    of_dynamic = {"max_length": scaling.max_length} if isinstance(scaling, DynamicScaling) else {}
    return {"rope_theta": theta, "rope_scaling": scaling, **of_dynamic}


def fits(rule: type[RopeScaling], name: str, value: Any) -> bool:
    """Whether a rule's number is one, or what it may be instead."""
    default = rule._field_defaults.get(name, 0)
    if type(default) is bool:
        return type(value) is bool
    return (value is None and default is None) or (type(value) in (int, float) and 0 < value < HUGE)


def rope_keys(config: Config) -> dict[str, Any]:
    """rope_theta and rope_scaling for transformers 4, rope_parameters for transformers 5."""
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_theta": config.rope_theta, "rope_parameters": rope}
    rope["rope_type"] = next(kind for kind, rule in SCALINGS.items() if isinstance(scaling, rule))
    numbers = {name: number for name, number in scaling._asdict().items() if number is not None}
    lengths = {"max_position_embeddings": numbers.pop("max_position_embeddings", config.max_length)}
    rope |= numbers
    return {"rope_theta": config.rope_theta, "rope_parameters": rope, "rope_scaling": rope, **lengths}
