"""Which layers the names in a config mean, as PEFT 0.21.2 matches them; a `name` is a module's in Hugging Face's
model."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

# What PEFT puts around each name of a key, which is a regular expression; of an option's pattern VALUES.
WHOLE = {"modules_to_save": r"(^|.*\.)PATTERN($|\..*)", "layers_pattern": r"(?:^|.*?\.)PATTERN\.(?P<i>\d+)\."}
VALUES = r"(.*\.)?(PATTERN)$"


def entries(config: dict[str, Any], key: str) -> list[str]:
    """The names that a key holds: one, a list, or the keys of a mapping."""
    value = config.get(key) or []
    return [value] if isinstance(value, str) else list(value)


def is_target(config: dict[str, Any], name: str) -> bool:
    """Is an adapter to be put on it? target_modules is not "all-linear" here, but what that stands for."""
    targets = config["target_modules"]
    if is_named_by(config.get("exclude_modules"), name):
        return False
    if any(matches_pattern("modules_to_save", saved, name) for saved in config.get("modules_to_save") or []):
        return False
    return is_named_by(targets, name) and (isinstance(targets, str) or name in targets or is_of_layers(config, name))


def is_named_by(value: Any, name: str) -> bool:
    """PEFT's rule for target_modules and exclude_modules: one regular expression, or a list of endings."""
    return bool(value) and (bool(re.fullmatch(value, name)) if isinstance(value, str) else ends_with(name, value))


def matches_pattern(key: str, pattern: str, name: str) -> re.Match[str] | None:
    return re.match(WHOLE.get(key, VALUES).replace("PATTERN", pattern), name)


def ends_with(name: str, endings: Collection[str]) -> bool:
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def is_of_layers(config: dict[str, Any], name: str) -> bool:
    """Is it in one of layers_to_transform? The first number in a name is the layer's; with layers_pattern, the first
    after such a name."""
    wanted, patterns = config.get("layers_to_transform"), entries(config, "layers_pattern")
    if wanted is None or wanted == []:
        return True
    if patterns:
        match = next(filter(None, (matches_pattern("layers_pattern", pattern, name) for pattern in patterns)), None)
    else:
        match = re.match(r".*?\.[^.]*\.(?P<i>\d+)\.", name)
    return match is not None and int(match["i"]) in ([wanted] if isinstance(wanted, int) else wanted)


def is_saved(config: dict[str, Any], name: str) -> bool:
    """Is it, or a module that it is in, one of modules_to_save? Those are endings of names, not of their parts."""
    parts = name.split(".")
    wholes = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(whole.endswith(saved) for whole in wholes for saved in config.get("modules_to_save") or [])
